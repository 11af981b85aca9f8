package authority_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
)

// TestWhatIsIssuedIsAdmitted draws certificates of which every field may be
// odd: what is signed at all is taken when it begins.
func TestWhatIsIssuedIsAdmitted(t *testing.T) {
	n := acltest.NewNetwork(1, start)
	self, other := n.NodeKey().Public(), n.NodeKey().Public()
	r := rand.New(rand.NewPCG(1, 1))
	route := func(s string) netip.Prefix { return netip.MustParsePrefix(s) }
	times := []time.Time{
		start, start.Add(time.Nanosecond), start.Add(999 * time.Millisecond), start.Add(time.Second), start.Add(time.Hour), start.AddDate(0, 0, 400),
		{},
		time.Unix(-1, 0), time.Unix(0, 0), time.Unix(-1, 999_999_999), time.Unix(1<<34, 0), time.Unix(1<<34-9, 0), time.Unix(1<<34-8, 0), time.Unix(1<<62, 0),
	}
	routes := [][]netip.Prefix{
		nil,
		{route("0.0.0.0/0")},
		{route("10.1.0.0/16")},
		{route("10.1.0.1/16")},
		{{}},
		{netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 104)},
		{route("10.1.0.0/16"), route("10.1.0.0/24")},
		{route("10.1.0.0/24"), route("10.1.0.0/16")},
		{netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 0)},
	}
	addresses := [][]netip.Addr{
		nil, {netip.MustParseAddr("100.64.0.7")}, {netip.MustParseAddr("::ffff:100.64.0.7")}, {netip.MustParseAddr("fd12:3456:789a::7%eth0")}, {{}},
	}
	issued, odd := 0, 0
	for i := range 200_000 {
		c := n.Certificate(7, other, "db", ident.Label(r.IntN(3)), 12)
		if r.IntN(2) == 0 {
			c.NotBefore, c.NotAfter = times[r.IntN(len(times))], times[r.IntN(len(times))]
		}
		if r.IntN(2) == 0 {
			c.Routes = routes[r.IntN(len(routes))]
		}
		if r.IntN(4) == 0 {
			c.Addresses = addresses[r.IntN(len(addresses))]
		}
		if r.IntN(8) == 0 {
			c.Name = []string{"", "DB", "a-", "0"}[r.IntN(4)]
		}
		signed, err := authority.IssueCertificate(n.Genesis, c, n.Signer)
		if err != nil {
			odd++
			continue
		}
		if issued++; issued > 300 {
			break // each costs two signatures
		}
		if _, err := n.Authority(self).Admit(signed, c.NotBefore); err != nil {
			t.Errorf("certificate %d is signed and not taken: %v\n%+v", i, err, c)
		}
	}
	if issued < 100 || odd < 100 {
		t.Errorf("%d issued, %d refused: nothing was tried", issued, odd)
	}
}
