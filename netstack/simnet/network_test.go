package simnet

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func addr(s string) netip.Addr   { return netip.MustParseAddr(s) }
func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// arrive lets everything arrive and returns it.
func arrive(n *Network) (got []Delivery) {
	for t, ok := n.NextTimeout(); ok; t, ok = n.NextTimeout() {
		n.HandleTimeout(t)
	}
	for d, ok := n.NextDelivery(); ok; d, ok = n.NextDelivery() {
		got = append(got, d)
	}
	return got
}

// one sends a packet and returns where it came from at its destination, the
// zero value where it did not arrive.
func one(n *Network, h *Host, port uint16, to netip.AddrPort, now time.Time) netip.AddrPort {
	n.Send(h, port, to, []byte("x"), now)
	got := arrive(n)
	if len(got) != 1 {
		return netip.AddrPort{}
	}
	return got[0].Packet.From
}

// TestMappingAndFiltering asks every NAT the questions of RFC 4787: does another
// destination see another port, and who may answer?
func TestMappingAndFiltering(t *testing.T) {
	for _, m := range []Behavior{EndpointIndependent, AddressDependent, AddressAndPortDependent} {
		for _, f := range []Behavior{EndpointIndependent, AddressDependent, AddressAndPortDependent} {
			kind := NAT{Mapping: m, Filtering: f}
			n := NewNetwork(1)
			a := n.Internet().NewHost("a", addr("9.0.0.1"))
			b := n.Internet().NewHost("b", addr("9.0.0.2"))
			lan, _ := n.Internet().NewLAN("lan", kind, addr("1.1.1.1"), netip.Prefix{})
			h := lan.NewHost("h", addr("192.168.0.2"))
			first := one(n, h, 5000, at("9.0.0.1:1"), epoch)
			if first.Addr() != addr("1.1.1.1") {
				t.Fatalf("%v: translated to %v", kind, first)
			}
			reply := func(from *Host, port uint16) bool {
				return one(n, from, port, first, epoch).IsValid()
			}
			// Who may answer, before anything was sent to others.
			for _, c := range []struct {
				name string
				got  bool
				want bool
			}{
				{"same endpoint", reply(a, 1), true},
				{"other port", reply(a, 2), f != AddressAndPortDependent},
				{"other address", reply(b, 1), f == EndpointIndependent},
			} {
				if c.got != c.want {
					t.Errorf("%v: answer from %s arrives: %v", kind, c.name, c.got)
				}
			}
			for _, c := range []struct {
				to   string
				same bool
			}{
				{"9.0.0.1:1", true},
				{"9.0.0.1:2", m != AddressAndPortDependent},
				{"9.0.0.2:1", m == EndpointIndependent},
			} {
				if got := one(n, h, 5000, at(c.to), epoch); got == first != c.same {
					t.Errorf("%v: %v sees %v, the first saw %v", kind, c.to, got, first)
				}
			}
		}
	}
}

func TestMappingExpires(t *testing.T) {
	n := NewNetwork(1)
	a := n.Internet().NewHost("a", addr("9.0.0.1"))
	lan, router := n.Internet().NewLAN("lan", NAT{Timeout: 30 * time.Second}, addr("1.1.1.1"), netip.Prefix{})
	h := lan.NewHost("h", addr("192.168.0.2"))
	first := one(n, h, 5000, at("9.0.0.1:1"), epoch)
	if !one(n, a, 1, first, epoch.Add(29*time.Second)).IsValid() {
		t.Error("expired too soon")
	}
	if one(n, a, 1, first, epoch.Add(30*time.Second)).IsValid() {
		t.Error("an inbound packet kept the mapping alive, or it did not expire")
	}
	second := one(n, h, 5000, at("9.0.0.1:1"), epoch.Add(31*time.Second))
	if second == first {
		t.Error("the mapping came back")
	}
	router.Rebind()
	if one(n, a, 1, second, epoch.Add(32*time.Second)).IsValid() {
		t.Error("a restarted NAT remembers")
	}
	router.SetExternal(addr("1.1.1.2"))
	if got := one(n, h, 5000, at("9.0.0.1:1"), epoch.Add(33*time.Second)); got.Addr() != addr("1.1.1.2") {
		t.Errorf("after a new address: %v", got)
	}
}

func TestHairpin(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		n := NewNetwork(1)
		n.Internet().NewHost("a", addr("9.0.0.1"))
		lan, _ := n.Internet().NewLAN("lan", NAT{Hairpin: hairpin}, addr("1.1.1.1"), netip.Prefix{})
		h, g := lan.NewHost("h", addr("192.168.0.2")), lan.NewHost("g", addr("192.168.0.3"))
		external := one(n, h, 5000, at("9.0.0.1:1"), epoch)
		if got := one(n, g, 6000, external, epoch); got.IsValid() != hairpin || hairpin && got.Addr() != addr("1.1.1.1") {
			t.Errorf("hairpin %v: %v", hairpin, got)
		}
		if got := one(n, g, 6000, at("192.168.0.2:5000"), epoch); got != at("192.168.0.3:6000") {
			t.Errorf("inside one LAN: %v", got)
		}
	}
}

func TestPortAllocation(t *testing.T) {
	ports := func(a Allocation) (got []uint16) {
		n := NewNetwork(1)
		n.Internet().NewHost("a", addr("9.0.0.1"))
		lan, _ := n.Internet().NewLAN("lan", NAT{Mapping: AddressAndPortDependent, Allocation: a}, addr("1.1.1.1"), netip.Prefix{})
		h := lan.NewHost("h", addr("192.168.0.2"))
		for i := range uint16(3) {
			got = append(got, one(n, h, 5000, netip.AddrPortFrom(addr("9.0.0.1"), 1+i), epoch).Port())
		}
		return got
	}
	if p := ports(Preserving); p[0] != 5000 || p[1] == 5000 {
		t.Errorf("preserving: %v", p)
	}
	if p := ports(Sequential); p[1] != p[0]+1 || p[2] != p[1]+1 {
		t.Errorf("sequential: %v", p)
	}
	if p := ports(Random); p[1] == p[0]+1 {
		t.Errorf("random: %v", p)
	}
}

// TestOverloading: two hosts with one port share it outside, and each gets the
// answers of those that it sent to.
func TestOverloading(t *testing.T) {
	n := NewNetwork(1)
	a, b := n.Internet().NewHost("a", addr("9.0.0.1")), n.Internet().NewHost("b", addr("9.0.0.2"))
	kind := NAT{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Allocation: Overloading}
	lan, _ := n.Internet().NewLAN("lan", kind, addr("1.1.1.1"), netip.Prefix{})
	h, g := lan.NewHost("h", addr("192.168.0.2")), lan.NewHost("g", addr("192.168.0.3"))
	outside := at("1.1.1.1:5000")
	if one(n, h, 5000, at("9.0.0.1:1"), epoch) != outside || one(n, g, 5000, at("9.0.0.2:1"), epoch) != outside {
		t.Fatal("the port is not overloaded")
	}
	for from, to := range map[*Host]*Host{a: h, b: g} {
		n.Send(from, 1, outside, []byte("x"), epoch)
		if got := arrive(n); len(got) != 1 || got[0].Host != to {
			t.Errorf("the answer of %s arrived as %+v", from.Name(), got)
		}
	}
}

// TestMove: what is on its way when a host moves is lost, also where it has the same
// address as before.
func TestMove(t *testing.T) {
	n := NewNetwork(1)
	n.SetPath(Path{Delay: time.Second})
	a := n.Internet().NewHost("a", addr("9.0.0.1"))
	lan, _ := n.Internet().NewLAN("lan", FullCone, addr("1.1.1.1"), netip.Prefix{})
	other, _ := n.Internet().NewLAN("other", FullCone, addr("2.2.2.2"), netip.Prefix{})
	h := lan.NewHost("h", addr("192.168.0.2"))
	n.Send(h, 5000, at("9.0.0.1:1"), []byte("x"), epoch)
	n.HandleTimeout(epoch.Add(time.Second))
	d, ok := n.NextDelivery()
	if !ok {
		t.Fatal("nothing arrived")
	}
	answer := func() { n.Send(a, 1, d.Packet.From, []byte("y"), epoch) }
	answer()
	h.Move(other, addr("192.168.0.2"))
	n.HandleTimeout(epoch.Add(2 * time.Second))
	if d, ok := n.NextDelivery(); ok || n.Stats().Unroutable != 1 {
		t.Errorf("%+v arrived at who has moved", d)
	}
	h.Move(lan, addr("192.168.0.2"))
	answer()
	n.HandleTimeout(epoch.Add(3 * time.Second))
	if _, ok := n.NextDelivery(); !ok {
		t.Error("nothing arrived at who has come back")
	}
}

// TestFirewall: without translation, what was not sent to does not get in.
func TestFirewall(t *testing.T) {
	n := NewNetwork(1)
	a := n.Internet().NewHost("a", addr("9.0.0.1"))
	for filtering, want := range map[Behavior][2]bool{
		EndpointIndependent: {true, true}, AddressDependent: {true, false}, AddressAndPortDependent: {false, false},
	} {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{5, 0, byte(filtering), 0}), 24)
		lan, router := n.Internet().NewFirewalledLAN("lan", filtering, prefix)
		h := lan.NewHost("h", prefix.Addr().Next())
		inside := netip.AddrPortFrom(prefix.Addr().Next(), 5000)
		stranger := n.Internet().NewHost("s", netip.AddrFrom4([4]byte{9, 1, byte(filtering), 1}))
		if one(n, a, 1, inside, epoch).IsValid() {
			t.Errorf("%v: an unasked packet came in", filtering)
		}
		if got := one(n, h, 5000, at("9.0.0.1:1"), epoch); got != inside {
			t.Errorf("%v: seen as %v", filtering, got)
		}
		if !one(n, a, 1, inside, epoch).IsValid() {
			t.Errorf("%v: the answer is filtered", filtering)
		}
		if got := [2]bool{one(n, a, 2, inside, epoch).IsValid(), one(n, stranger, 1, inside, epoch).IsValid()}; got != want {
			t.Errorf("%v: other port and stranger: %v", filtering, got)
		}
		router.Rebind()
		if one(n, a, 1, inside, epoch).IsValid() {
			t.Errorf("%v: a restarted firewall remembers", filtering)
		}
	}
}

// TestDefaultRoute: a host without one reaches its LAN, and nothing else.
func TestDefaultRoute(t *testing.T) {
	n := NewNetwork(1)
	n.Internet().NewHost("a", addr("9.0.0.1"))
	lan, _ := n.Internet().NewLAN("lan", FullCone, addr("1.1.1.1"), netip.Prefix{})
	h := lan.NewHost("h", addr("192.168.0.2"))
	lan.NewHost("g", addr("192.168.0.3"))
	h.SetDefaultRoute(false)
	if one(n, h, 1, at("9.0.0.1:1"), epoch).IsValid() || !one(n, h, 1, at("192.168.0.3:1"), epoch).IsValid() {
		t.Error("it leaves the LAN, or does not reach it")
	}
	h.SetDefaultRoute(true)
	if !one(n, h, 1, at("9.0.0.1:1"), epoch).IsValid() {
		t.Error("the route does not come back")
	}
}

// TestCarrierGradeNAT: two translators in a row.
func TestCarrierGradeNAT(t *testing.T) {
	n := NewNetwork(1)
	a := n.Internet().NewHost("a", addr("9.0.0.1"))
	carrier, _ := n.Internet().NewLAN("carrier", PortRestricted, addr("1.1.1.1"), netip.Prefix{})
	lan, _ := carrier.NewLAN("home", PortRestricted, addr("100.64.0.2"), netip.Prefix{})
	h := lan.NewHost("h", addr("192.168.0.2"))
	seen := one(n, h, 5000, at("9.0.0.1:1"), epoch)
	if seen.Addr() != addr("1.1.1.1") {
		t.Fatalf("seen as %v", seen)
	}
	if got := one(n, a, 1, seen, epoch); got != at("9.0.0.1:1") {
		t.Errorf("answer came from %v", got)
	}
	if one(n, a, 2, seen, epoch).IsValid() {
		t.Error("a stranger comes through two firewalls")
	}
}

// TestIPv6Firewall: no translation, but only what was sent to may answer.
func TestIPv6Firewall(t *testing.T) {
	n := NewNetwork(1)
	a := n.Internet().NewHost("a", addr("2001:db8:9::1"))
	lan, router := n.Internet().NewLAN("lan", FullCone, addr("1.1.1.1"), netip.MustParsePrefix("2001:db8:1::/64"))
	h := lan.NewHost("h", addr("192.168.0.2"), addr("2001:db8:1::2"))
	inside := at("[2001:db8:1::2]:5000")
	if one(n, a, 1, inside, epoch).IsValid() {
		t.Error("an unasked packet came in")
	}
	if got := one(n, h, 5000, at("[2001:db8:9::1]:1"), epoch); got != inside {
		t.Errorf("seen as %v", got)
	}
	if !one(n, a, 1, inside, epoch).IsValid() || one(n, a, 2, inside, epoch).IsValid() {
		t.Error("the answer is filtered, or a stranger is not")
	}
	router.BlockUDP(true)
	if one(n, h, 5000, at("[2001:db8:9::1]:1"), epoch).IsValid() || one(n, a, 1, inside, epoch).IsValid() {
		t.Error("UDP passes where it is blocked")
	}
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		path     Path
		min, max int
	}{
		"none":      {Path{}, 10000, 10000},
		"loss":      {Path{Loss: 0.2}, 7800, 8200},
		"duplicate": {Path{Duplicate: 0.1}, 10800, 11200},
	} {
		n := NewNetwork(5)
		n.SetPath(c.path)
		a, _ := n.Internet().NewHost("a", addr("9.0.0.1")), n.Internet().NewHost("b", addr("9.0.0.2"))
		for range 10000 {
			n.Send(a, 1, at("9.0.0.2:1"), []byte("x"), epoch)
		}
		got := arrive(n)
		if len(got) < c.min || len(got) > c.max {
			t.Errorf("%s: %d of 10000 arrived", name, len(got))
		}
		if s := n.Stats(); s.Sent-s.Lost+s.Duplicated != s.Delivered || int(s.Delivered) != len(got) {
			t.Errorf("%s: counters do not add up: %+v", name, s)
		}
	}
}

func TestDelayAndOrder(t *testing.T) {
	n := NewNetwork(5)
	n.SetPath(Path{Delay: 20 * time.Millisecond})
	a, b := n.Internet().NewHost("a", addr("9.0.0.1")), n.Internet().NewHost("b", addr("9.0.0.2"))
	b.SetPath(Path{Delay: 5 * time.Millisecond})
	for i := range byte(50) {
		n.Send(a, 1, at("9.0.0.2:1"), []byte{i}, epoch)
	}
	if d, _ := n.NextTimeout(); d.Sub(epoch) != 25*time.Millisecond {
		t.Errorf("arrives after %v", d.Sub(epoch))
	}
	inOrder := func(got []Delivery) bool {
		return slices.IsSortedFunc(got, func(a, b Delivery) int { return int(a.Packet.Payload[0]) - int(b.Packet.Payload[0]) })
	}
	if got := arrive(n); len(got) != 50 || !inOrder(got) {
		t.Error("reordered without a reason")
	}
	n.SetPath(Path{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond})
	for i := range byte(50) {
		n.Send(a, 1, at("9.0.0.2:1"), []byte{i}, epoch)
	}
	if got := arrive(n); len(got) != 50 || inOrder(got) {
		t.Error("jitter reorders nothing")
	}
}

func TestCutDownAndMove(t *testing.T) {
	n := NewNetwork(1)
	a, b := n.Internet().NewHost("a", addr("9.0.0.1")), n.Internet().NewHost("b", addr("9.0.0.2"))
	ping := func() bool { return one(n, a, 1, at("9.0.0.2:1"), epoch).IsValid() }
	n.Cut(a, b, true)
	if ping() || !one(n, b, 1, at("9.0.0.1:1"), epoch).IsValid() {
		t.Error("a cut is of one direction")
	}
	n.Cut(a, b, false)
	b.SetDown(true)
	if ping() {
		t.Error("a host that is down received")
	}
	b.SetDown(false)
	if !ping() {
		t.Error("healed, and still cut off")
	}
	b.Move(n.Internet(), addr("9.0.0.3"))
	if ping() {
		t.Error("the old address still works")
	}
	if n.Send(a, 1, at("[2001:db8::1]:1"), nil, epoch) {
		t.Error("sent from a family that the host lacks")
	}
	if s := n.Stats(); s.Unroutable != 1 || s.Filtered != 2 {
		t.Errorf("%+v", s)
	}
}

// TestSameSeedSameRun: a failure can be repeated by its seed.
func TestSameSeedSameRun(t *testing.T) {
	run := func(seed uint64) string {
		n := NewNetwork(seed)
		n.SetPath(Path{Delay: time.Millisecond, Jitter: time.Millisecond, Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, Corrupt: 0.1})
		lan, _ := n.Internet().NewLAN("lan", Symmetric, addr("1.1.1.1"), netip.Prefix{})
		h := lan.NewHost("h", addr("192.168.0.2"))
		n.Internet().NewHost("a", addr("9.0.0.1"))
		for i := range byte(100) {
			n.Send(h, 1, netip.AddrPortFrom(addr("9.0.0.1"), uint16(i)+1), []byte{i}, epoch)
		}
		s := ""
		for _, d := range arrive(n) {
			s += fmt.Sprint(d.Packet.From, d.Packet.Payload)
		}
		return s
	}
	if once, again := run(1), run(1); once != again {
		t.Error("one seed, two runs")
	}
	if run(1) == run(2) {
		t.Error("the seed does nothing")
	}
}
