package netmap

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// policyRoutes lets databases route 10.1.0.0/16 and be exit nodes, and alice
// reach one subnet.
const policyRoutes = `{
  "tagOwners": {"tag:db": ["alice@example.com"]},
  "autoApprovers": {"routes": {"10.1.0.0/16": ["tag:db"]}, "exitNode": ["tag:db"]},
  "acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["10.1.2.0/24:443", "autogroup:internet:*"]}],
}`

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func someRoutes(r *rand.Rand) []netip.Prefix {
	all := prefixes("10.1.2.0/24", "10.1.0.0/16", "192.168.7.0/24", "2001:db8::/32", "0.0.0.0/0", "::/0")
	return slices.DeleteFunc(all, func(netip.Prefix) bool { return r.IntN(2) == 0 })
}

// TestRoutesAreThoseOfferedAndApproved follows the routes of a certificate as
// offers and approvals come and go.
func TestRoutesAreThoseOfferedAndApproved(t *testing.T) {
	o := newOrg(t)
	db, web := o.register(1, "db"), o.register(2, "web")
	everything := prefixes("0.0.0.0/0", "10.1.2.0/24", "10.9.0.0/24", "::/0")
	for _, step := range []struct {
		name string
		cmd  registry.Command
		want []netip.Prefix // of db
	}{
		{"offered", registry.AdvertiseRoutes{Node: db.ID, Routes: everything}, nil},
		{"one approved", registry.ApproveRoutes{Node: db.ID, Routes: prefixes("10.9.0.0/24")}, prefixes("10.9.0.0/24")},
		{"approved, not offered", registry.ApproveRoutes{Node: db.ID, Routes: prefixes("172.16.0.0/12")}, prefixes("10.9.0.0/24")},
		{"by policy too", registry.SetPolicy{Text: policyRoutes}, everything},
		{"others are not meant", registry.AdvertiseRoutes{Node: web.ID, Routes: everything}, everything},
		{"no whole exit", registry.AdvertiseRoutes{Node: db.ID, Routes: prefixes("0.0.0.0/0", "10.9.0.0/24")}, prefixes("10.9.0.0/24")},
		{"all again", registry.AdvertiseRoutes{Node: db.ID, Routes: everything}, everything},
		{"taken back", registry.RemoveRoutes{Node: db.ID, Routes: prefixes("10.9.0.0/24")}, prefixes("0.0.0.0/0", "10.1.2.0/24", "::/0")},
		{"policy without", registry.SetPolicy{Text: policyA}, nil},
		{"exit by hand", registry.ApproveRoutes{Node: db.ID, Routes: prefixes("::/0")}, prefixes("0.0.0.0/0", "::/0")},
		{"not offered any more", registry.AdvertiseRoutes{Node: db.ID}, nil},
	} {
		o.mustRun(step.cmd)
		a, err := authority.New(o.cfg.Genesis, web.NodeKey, authority.State{})
		if err != nil {
			t.Fatal(err)
		}
		peer, err := a.Admit(o.state.Certificate(db.ID).Signed, o.now)
		if err != nil {
			t.Fatal(err)
		}
		if got := peer.Identity().Routes; !slices.Equal(got, step.want) {
			t.Errorf("%s: certificate has %v, want %v", step.name, got, step.want)
		}
		if got := o.net.Routes(web.ID); len(got) != 0 {
			t.Errorf("%s: web routes %v", step.name, got)
		}
		o.check()
	}
}
