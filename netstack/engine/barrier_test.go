package engine

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/tun"
)

var everything = netip.MustParsePrefix("0.0.0.0/0")

// exitNetwork is a device, and the configurations of it with an exit node alone,
// and with another peer besides.
func exitNetwork(t *testing.T) (a *node, exit, friend *enginetest.Member, few, full *config.Config) {
	t.Helper()
	network := enginetest.NewNetwork(t, 1, time.Now())
	a = newNode(t, network.Join("laptop", nil))
	exit = network.Join("exit", func(c *authority.Certificate) { c.Routes = append(c.Routes, everything) })
	friend = network.Join("friend", nil)
	now := time.Now()
	rules := func() *ruleset.RuleSet { return enginetest.AllowAll(exit, friend) }
	full, few = a.Config(now, rules(), exit, friend), a.Config(now, rules(), exit)
	for _, c := range []*config.Config{full, few} {
		c.Peers[0].Routes = []netip.Prefix{everything}
		c.Overlay = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}
	}
	return a, exit, friend, few, full
}

func (n *node) owner(a netip.Addr) ident.NodeKey {
	if p := n.engine.host.forwarding.Load().lookup(a); p != nil {
		return p.key
	}
	return ident.NodeKey{}
}

// While the peers of an exit node's device change, an address that falls to the
// exit node in WireGuard's table belongs to nobody in ours.
func TestContestedAddressesAreNobodysDuringAChange(t *testing.T) {
	a, exit, friend, few, full := exitNetwork(t)
	elsewhere := netip.MustParseAddr("198.51.100.1")
	a.apply(t, few)
	calls := 0
	a.engine.suspended = func() {
		calls++
		if got := a.owner(friend.Addr4()); !got.IsZero() {
			t.Errorf("call %d: the friend's address belongs to %s", calls, got.Short())
		}
		if got := a.owner(elsewhere); got != exit.Key {
			t.Errorf("call %d: the exit node has lost its route", calls)
		}
	}
	for _, step := range []struct {
		name   string
		change func()
		owner  ident.NodeKey
	}{
		{"add", func() { a.apply(t, full) }, friend.Key},
		{"remove", func() { a.apply(t, few) }, exit.Key},
		{"add again", func() { a.apply(t, full) }, friend.Key},
		{"expire", func() {
			ask(a.engine, func(c *control) error { c.expire(c.peers[friend.Key]); return nil })
		}, exit.Key},
	} {
		calls = 0
		step.change()
		if calls == 0 {
			t.Errorf("%s: nothing was suspended", step.name)
		}
		if got := a.owner(friend.Addr4()); got != step.owner {
			t.Errorf("%s: the friend's address belongs to %s", step.name, got.Short())
		}
	}
}

func TestNothingIsSuspendedWithoutRouters(t *testing.T) {
	network, a, b := two(t)
	c := network.Join("spare", nil)
	a.engine.suspended = func() { t.Error("suspended") }
	now := time.Now()
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member), b.Member))
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member), b.Member, c))
	a.apply(t, a.Config(now, enginetest.AllowAll(c), c))
	a.apply(t, nil)
}

func TestContested(t *testing.T) {
	prefixes := func(of ...string) (out []netip.Prefix) {
		for _, s := range of {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	x, y, z := ident.NodeKey{1}, ident.NodeKey{2}, ident.NodeKey{3}
	type list = map[ident.NodeKey][]netip.Prefix
	for _, tt := range []struct {
		name          string
		before, after list
		ended         ident.NodeKey
		want          []netip.Prefix
	}{
		{name: "nothing"},
		{name: "addresses only", before: list{x: prefixes("100.64.0.1/32")}, after: list{y: prefixes("100.64.0.2/32")}},
		{
			name:   "a route goes to another",
			before: list{x: prefixes("100.64.0.1/32", "10.0.0.0/8"), y: prefixes("100.64.0.2/32")},
			after:  list{x: prefixes("100.64.0.1/32"), y: prefixes("100.64.0.2/32", "10.0.0.0/8")},
			want:   prefixes("10.0.0.0/8"),
		},
		{
			name:   "a route in a route, and the other list stays",
			before: list{x: prefixes("10.0.0.0/8"), y: prefixes("100.64.0.2/32")},
			after:  list{x: prefixes("10.0.0.0/8"), y: prefixes("100.64.0.2/32", "10.1.0.0/16")},
			want:   prefixes("10.1.0.0/16"),
		},
		{
			name:   "a list is replaced: its address is in doubt, too",
			before: list{x: prefixes("0.0.0.0/0"), y: prefixes("100.64.0.2/32", "10.1.0.0/16"), z: prefixes("100.64.0.3/32")},
			after:  list{x: prefixes("0.0.0.0/0"), y: prefixes("100.64.0.2/32"), z: prefixes("100.64.0.3/32")},
			want:   prefixes("10.1.0.0/16", "100.64.0.2/32"),
		},
		{
			name:   "a route in the same peer's",
			before: list{x: prefixes("10.0.0.0/8")}, after: list{x: prefixes("10.0.0.0/8", "10.1.0.0/16")},
		},
		{
			name:   "families are apart",
			before: list{x: prefixes("0.0.0.0/0")}, after: list{x: prefixes("0.0.0.0/0"), y: prefixes("fd00::2/128")},
		},
		{
			name:   "removed and added again",
			before: list{x: prefixes("::/0"), y: prefixes("fd00::2/128")}, after: list{x: prefixes("::/0"), y: prefixes("fd00::2/128")},
			ended: y, want: prefixes("fd00::2/128"),
		},
	} {
		c := &control{peers: make(map[ident.NodeKey]*peer)}
		for key, allowed := range tt.before {
			c.peers[key] = &peer{key: key, allowed: allowed}
		}
		if got := c.contested(tt.after, func(key ident.NodeKey) bool { return key == tt.ended }); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// What a packet's session says goes before what its source says.
func TestPacketsOfAnotherSessionAreDropped(t *testing.T) {
	a, exit, friend, few, full := exitNetwork(t)
	host := a.engine.host
	deliver := func(session ident.NodeKey, known bool) int {
		host.sender = func([]byte, int) (ident.NodeKey, bool) { return session, known }
		b := enginetest.UDP(netip.AddrPortFrom(friend.Addr4(), 5000), netip.AddrPortFrom(a.Addr4(), 53), "whose?")
		return host.filterInbound([][]byte{append(make([]byte, tun.Headroom), b...)}, tun.Headroom)
	}
	a.apply(t, full)
	if deliver(friend.Key, true) != 1 {
		t.Error("the friend's own packet was dropped")
	}
	if deliver(exit.Key, true) != 0 || deliver(ident.NodeKey{}, false) != 0 {
		t.Error("another's packet was taken for the friend's")
	}
	if got := a.engine.Status().Drops["drop_spoof"]; got != 2 {
		t.Errorf("%d packets counted", got)
	}
	// Without the friend its address lies in the exit node's prefix. No address
	// of the network can be behind a router (packet-filter.md, P2).
	a.apply(t, few)
	if a.owner(friend.Addr4()) != exit.Key || deliver(exit.Key, true) != 0 {
		t.Error("the exit node sends with an address of the network")
	}
	if got := a.engine.Status().Drops["drop_spoof"]; got != 3 {
		t.Errorf("%d packets counted: %v", got, a.engine.Status().Drops)
	}
}

// Packets that were let out are underway until WireGuard asks for more.
func TestSettleWaitsForPacketsUnderway(t *testing.T) {
	device := simnet.NewTUN(0)
	e, err := New(Config{TUN: device, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	go e.host.reader.run()
	bufs, sizes := buffers(e.host.BatchSize())
	device.Send([]byte("no packet"))
	if _, err := e.host.Read(bufs, sizes, tun.Headroom); err != nil {
		t.Fatal(err)
	}
	if e.host.underway.TryLock() {
		t.Fatal("nothing is underway")
	}
	again := make(chan error)
	go func() {
		_, err := e.host.Read(bufs, sizes, tun.Headroom)
		again <- err
	}()
	e.host.settle()
	// One of our own for nobody is not let out either.
	e.host.reader.inject(enginetest.UDP(netip.MustParseAddrPort("100.64.0.1:1"), netip.MustParseAddrPort("100.64.0.2:2"), ""))
	if err := <-again; err != nil {
		t.Fatal(err)
	}
	if last := sizes[len(sizes)-1]; last != 0 {
		t.Errorf("%d bytes for nobody", last)
	}
	if err := e.host.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.host.Read(bufs, sizes, tun.Headroom); err == nil {
		t.Error("read from a closed device")
	}
	e.host.settle()
}
