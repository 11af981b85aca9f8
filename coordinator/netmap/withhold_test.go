package netmap

import (
	"net/netip"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// TestCertificateThatClaimsTooMuchIsWithheld narrows a membership while
// certificates find no space on the disk: nobody is told the old one, by whole
// maps or by deltas, and everybody the new one once it is recorded.
func TestCertificateThatClaimsTooMuchIsWithheld(t *testing.T) {
	const open = `{"groups": {"group:x": ["alice@example.com"]}, "acls": [
		{"action": "accept", "src": ["*"], "dst": ["*:*"]}, {"action": "accept", "src": ["group:x"], "dst": ["*:1"]}]}`
	const narrower = `{"groups": {"group:x": []}, "acls": [
		{"action": "accept", "src": ["*"], "dst": ["*:*"]}, {"action": "accept", "src": ["group:x"], "dst": ["*:1"]}]}`
	route := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
	for _, c := range []struct {
		name   string
		narrow func(a *registry.Device) registry.Command
		stays  bool
	}{
		{name: "another owner", narrow: func(a *registry.Device) registry.Command {
			return registry.RegisterDevice{Machine: a.Machine, NodeKey: a.NodeKey, Key: "bob", Secret: hash("bob"), Hostname: "a"}
		}},
		{name: "tags instead of an owner", narrow: func(a *registry.Device) registry.Command {
			return registry.RegisterDevice{Machine: a.Machine, NodeKey: a.NodeKey, Key: "web", Secret: hash("web"), Hostname: "a"}
		}},
		{name: "a label less", narrow: func(*registry.Device) registry.Command { return registry.SetPolicy{Text: narrower} }},
		{name: "a route less", narrow: func(a *registry.Device) registry.Command {
			return registry.RemoveRoutes{Node: a.ID, Routes: route}
		}},
		{name: "another key", narrow: func(a *registry.Device) registry.Command {
			return registry.RotateNodeKey{Node: a.ID, NodeKey: ident.NodeKey{99}}
		}},
		{name: "a route more", stays: true, narrow: func(a *registry.Device) registry.Command {
			return registry.ApproveRoutes{Node: a.ID, Routes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newOrg(t)
			o.mustRun(registry.SetPolicy{Text: open})
			a, b := o.register(1, "ali"), o.register(2, "bob")
			o.mustRun(registry.AdvertiseRoutes{Node: a.ID, Routes: append(route, netip.MustParsePrefix("10.2.0.0/24"))})
			o.mustRun(registry.ApproveRoutes{Node: a.ID, Routes: route})
			o.connect(b.ID)
			if len(o.nodes[b.ID].Peers[a.ID].Certificate) == 0 {
				t.Fatal("b is not told of a to begin with")
			}
			old := string(o.nodes[b.ID].Peers[a.ID].Certificate)
			told := func() (byMap, byDelta string) {
				m, err := o.net.Map(b.ID)
				if err != nil {
					t.Fatal(err)
				}
				return string(m.Peers[a.ID].Certificate), string(o.nodes[b.ID].Peers[a.ID].Certificate)
			}

			o.full = true
			o.mustRun(c.narrow(o.state.Device(a.ID)))
			byMap, byDelta := told()
			if stays := byMap == old; stays != c.stays || byMap != byDelta {
				t.Errorf("the old certificate is told by the map: %v, by deltas: %v", byMap == old, byDelta == old)
			}
			if _, ok := o.net.Peer(a.ID); ok != c.stays {
				t.Errorf("there is something to tell of a: %v", ok)
			}
			o.net.HandleTimeout(o.now)
			o.tell(o.renew())
			if again, _ := told(); again != byMap {
				t.Error("it is told at the second attempt")
			}

			o.full = false
			o.tell(o.renew())
			if byMap, byDelta = told(); byMap == old || byMap == "" || byMap != byDelta {
				t.Errorf("with space, by the map: %d bytes, by deltas: %d; the old one: %v", len(byMap), len(byDelta), byMap == old)
			}
			if len(o.net.stale) != 0 || len(o.net.withheld) != 0 {
				t.Errorf("still to do: %v %v", o.net.stale, o.net.withheld)
			}
		})
	}
}

// TestCertificateThatIsRightAgainIsTold narrows a membership and takes that
// back before any certificate found space.
func TestCertificateThatIsRightAgainIsTold(t *testing.T) {
	o := newOrg(t)
	o.mustRun(registry.SetPolicy{Text: `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`})
	a, b := o.register(1, "ali"), o.register(2, "bob")
	o.connect(b.ID)
	as := func(key string) registry.Command {
		return registry.RegisterDevice{Machine: a.Machine, NodeKey: a.NodeKey, Key: key, Secret: hash(key), Hostname: a.Name}
	}
	o.full = true
	o.mustRun(as("web"))
	if len(o.nodes[b.ID].Peers) != 0 {
		t.Error("b is told the old certificate")
	}
	o.mustRun(as("ali"))
	if len(o.nodes[b.ID].Peers) != 1 {
		t.Error("b is not told the certificate, which is right again")
	}
}
