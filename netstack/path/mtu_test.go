package path_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/simnet"
)

// carried returns the MTU inside a tunnel whose device has the given one, over
// links with an MTU: what packets are padded to must fit.
func carried(device, link int, v6 bool) int {
	payload := link - 20 - 8
	if v6 {
		payload -= 20
	}
	if payload >= device+32 {
		return device
	}
	return (payload - 32) &^ 15
}

// sizeLab is two public hosts of one family with an internet between them.
func sizeLab(t *testing.T, seed uint64, device, link int, v6 bool, p simnet.Path) (l *lab, a, b *node) {
	l = newLab(t, seed, p)
	l.mtu = device
	l.net.SetMTU(link)
	addrs := [2]netip.Addr{addr4(1, 1, 1, 1), addr4(2, 2, 2, 2)}
	if v6 {
		addrs = [2]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	}
	a = l.join(0, l.net.Internet().NewHost("a", addrs[0]), seed)
	b = l.join(1, l.net.Internet().NewHost("b", addrs[1]), seed)
	return l, a, b
}

// TestMTUIsFound: both ends find exactly what the path carries, whatever lies
// between, and do not use a direct path in place of the relay before they did:
// in the time of two round trips where it carries everything, and with the first
// search else.
func TestMTUIsFound(t *testing.T) {
	for _, device := range []int{1280, 1420, 8920} {
		for _, v6 := range []bool{false, true} {
			for _, link := range []int{600, 1100, 1200, 1280, 1281, 1340, 1360, 1400, 1460, 1480, 1492, 1500, 4352, 9000} {
				if v6 && link < 1280 {
					continue // RFC 8200 5
				}
				t.Run(fmt.Sprintf("%d over %d, IPv6 %v", device, link, v6), func(t *testing.T) {
					l, a, b := sizeLab(t, 1, device, link, v6, simnet.Path{Delay: 15 * time.Millisecond})
					l.setRelay(true)
					l.run(time.Second)
					want := carried(device, link, v6)
					if a.agent.MTU() != device {
						l.fail("MTU %d over the relay", a.agent.MTU())
					}
					began := l.now
					for a.primary.Kind != path.Direct || b.primary.Kind != path.Direct {
						l.run(10*time.Millisecond, a, b)
						if l.now.Sub(began) > 3*time.Second {
							l.fail("no direct path after 3 s")
						}
					}
					took := l.now.Sub(began)
					if got := a.agent.MTU(); want == device && (got != want || took > 150*time.Millisecond) {
						l.fail("MTU %d when it became direct, after %v; want %d", got, took, want)
					}
					l.run(20*time.Second, a, b)
					for _, n := range []*node{a, b} {
						if got := n.agent.MTU(); got != want || n.agent.Snapshot().MTU != want {
							l.fail("%s: MTU %d, want %d", n.name, got, want)
						}
						longest := n.agent.MaxDatagram()
						if want == device && longest != 0 || want < device && longest != want+32 {
							l.fail("%s: datagrams of %d bytes", n.name, longest)
						}
					}
				})
			}
		}
	}
}

// TestMTUOfTheInterface: a device that allows more than this machine's interface
// carries costs no time, because what the interface refuses is not asked for again.
func TestMTUOfTheInterface(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, link := range []int{600, 1200, 1280, 1400, 1500, 4352, 9000} {
			if v6 && link < 1280 {
				continue
			}
			t.Run(fmt.Sprintf("%d, IPv6 %v", link, v6), func(t *testing.T) {
				l, a, b := sizeLab(t, 1, 8920, link, v6, simnet.Path{Delay: 15 * time.Millisecond})
				l.card = link
				l.setRelay(true)
				l.run(time.Second)
				began := l.now
				// As below 1280 nothing is asked for at first, a try more.
				want, limit := carried(8920, link, v6), 700*time.Millisecond
				for a.agent.MTU() != want || b.agent.MTU() != want || a.primary.Kind != path.Direct || b.primary.Kind != path.Direct {
					if l.run(10*time.Millisecond, a, b); l.now.Sub(began) > limit {
						l.fail("%v with %d, %v with %d after %v, want direct with %d", a.primary, a.agent.MTU(), b.primary, b.agent.MTU(), l.now.Sub(began), want)
					}
				}
				sent := a.agent.Snapshot().Stats.SizesSent
				l.run(20*time.Second, a, b)
				if more := a.agent.Snapshot().Stats.SizesSent - sent; more > 40 {
					l.fail("%d more sizes were tried when all was known", more)
				}
			})
		}
	}
}

// TestMTUOfTheDeviceChanges: when the device's MTU grows the path is asked for
// more at once, and less is kept to at once when it falls.
func TestMTUOfTheDeviceChanges(t *testing.T) {
	l, a, b := sizeLab(t, 1, 1420, 9000, false, simnet.Path{Delay: 15 * time.Millisecond})
	l.setRelay(true)
	l.run(3*time.Second, a, b)
	for _, mtu := range []int{8920, 1420, 1280, 8920} {
		for _, n := range []*node{a, b} {
			n.agent.SetMTU(mtu, l.now)
			n.agent.SetMTU(mtu, l.now)
			if got := n.agent.MTU(); got > mtu {
				l.fail("%s: MTU %d of %d at once", n.name, got, mtu)
			}
		}
		l.run(200*time.Millisecond, a, b)
		if x, y := a.agent.MTU(), b.agent.MTU(); x != mtu || y != mtu || a.primary.Kind != path.Direct {
			l.fail("MTU %d and %d, want %d", x, y, mtu)
		}
	}
}

// TestMTUWithoutRelay: where nothing else carries, a direct path is used at
// once, with what nearly every path carries.
func TestMTUWithoutRelay(t *testing.T) {
	l, a, b := sizeLab(t, 1, 1420, 1500, false, simnet.Path{Delay: 15 * time.Millisecond})
	l.run(time.Second)
	began := l.now
	for a.primary.Kind != path.Direct {
		if l.run(time.Millisecond, a, b); l.now.Sub(began) > time.Second {
			l.fail("no direct path")
		}
	}
	if took := l.now.Sub(began); a.agent.MTU() != path.BaseMTU || took > 35*time.Millisecond {
		l.fail("MTU %d after %v", a.agent.MTU(), took)
	}
	l.run(31*time.Millisecond, a, b)
	if a.agent.MTU() != 1420 {
		l.fail("MTU %d a round trip later", a.agent.MTU())
	}
}

// TestMTUOfOtherPaths: over the relay it is what the relay carries, and without
// a path or where nobody can tell that of the device.
func TestMTUOfOtherPaths(t *testing.T) {
	for _, c := range []struct{ device, relay, none, relayed int }{
		{0, 0, 0, 0}, {1420, 0, 1420, 1420}, {1420, 1300, 1420, 1300}, {1420, 9000, 1420, 1420},
	} {
		a, err := path.New(path.Config{Rand: rand.NewChaCha8([32]byte{1}), MTU: c.device, RelayMTU: c.relay}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		none := a.MTU()
		a.HandleRelayState(true, epoch)
		if none != c.none || a.MTU() != c.relayed || a.MaxDatagram() != 0 {
			t.Errorf("%+v: %d without a path, %d over the relay, datagrams of %d", c, none, a.MTU(), a.MaxDatagram())
		}
	}
}

// TestBlackHole: a path that begins to swallow long packets while they are sent
// is used with shorter ones before TCP repeats itself for the third time, and
// with long ones again when it carries them; short packets go on all the time.
func TestBlackHole(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, to := range []int{1480, 1400, 1280, 1200} {
			if v6 && to < 1280 || carried(1420, to, v6) == 1420 {
				continue
			}
			l, a, b := sizeLab(t, 1, 1420, 1500, v6, simnet.Path{Delay: 15 * time.Millisecond})
			l.setRelay(true)
			l.large = true
			l.run(10*time.Second, a, b)
			changes := a.changes
			l.net.SetMTU(to)
			began := l.now
			for a.agent.MTU() == 1420 {
				l.run(10*time.Millisecond, a, b)
				if l.now.Sub(began) > 1300*time.Millisecond {
					l.fail("%d: MTU %d for too long", to, a.agent.MTU())
				}
			}
			l.run(5*time.Second, a, b)
			if got, want := a.agent.MTU(), carried(1420, to, v6); got != want || a.agent.Snapshot().Stats.BlackHoles != 1 {
				l.fail("%d: MTU %d, want %d", to, got, want)
			}
			l.net.SetMTU(1500)
			l.run(40*time.Second, a, b)
			if a.agent.MTU() != 1420 || a.changes != changes {
				l.fail("%d: MTU %d, %d changes of the path", to, a.agent.MTU(), a.changes-changes)
			}
		}
	}
}

// TestMTUOutlivesPorts: a NAT that forgets its mappings gives the peer another
// port, and the path carries what it did.
func TestMTUOutlivesPorts(t *testing.T) {
	for _, relay := range []bool{true, false} {
		l := newLab(t, 3, simnet.Path{Delay: 15 * time.Millisecond})
		l.mtu, l.large = 1420, true
		lan, router := l.net.Internet().NewLAN("b", simnet.FullCone, addr4(2, 2, 2, 2), netip.Prefix{})
		a := l.join(0, l.net.Internet().NewHost("a", addr4(1, 1, 1, 1)), 3)
		b := l.join(1, lan.NewHost("b", addr4(192, 168, 1, 2)), 3)
		l.setRelay(relay)
		l.run(5*time.Second, a, b)
		was := a.primary
		if was.Kind != path.Direct || a.agent.MTU() != 1420 {
			l.fail("relay %v: %v, MTU %d", relay, was, a.agent.MTU())
		}
		router.Rebind()
		for end := l.now.Add(10 * time.Second); l.now.Before(end); {
			if l.run(10*time.Millisecond, a, b); a.agent.MTU() != 1420 {
				l.fail("relay %v: MTU %d of %v", relay, a.agent.MTU(), a.primary)
			}
		}
		if a.primary.Kind != path.Direct || a.primary == was {
			l.fail("relay %v: %v after %v", relay, a.primary, was)
		}
	}
}

// TestMTUIsSoughtSparingly: what is sent is bounded by what is used.
func TestMTUIsSoughtSparingly(t *testing.T) {
	l, a, b := sizeLab(t, 1, 1420, 1400, false, simnet.Path{Delay: 15 * time.Millisecond})
	l.setRelay(true)
	sent := func(d time.Duration, use ...*node) uint64 {
		before := a.agent.Snapshot().Stats.SizesSent
		l.run(d, use...)
		return a.agent.Snapshot().Stats.SizesSent - before
	}
	if n := sent(20*time.Second, a, b); n == 0 || n > 40 {
		l.fail("%d padded pings for a search", n)
	}
	if n := sent(time.Hour, a, b); n > 200 {
		l.fail("%d padded pings in an hour of short packets", n)
	}
	l.large = true
	if n := sent(time.Minute, a, b); n < 100 || n > 130 {
		l.fail("%d padded pings in a minute of long packets", n)
	}
	sent(2 * time.Minute)
	if n := sent(time.Hour); n != 0 {
		l.fail("%d padded pings in an idle hour", n)
	}
	if n := sent(10*time.Second, a, b); a.agent.MTU() != carried(1420, 1400, false) || n > 60 {
		l.fail("MTU %d and %d padded pings when it was used again", a.agent.MTU(), n)
	}
}

// TestSleepIsNoBlackHole: pings that were not sent while the machine slept were
// not swallowed.
func TestSleepIsNoBlackHole(t *testing.T) {
	l, a, b := sizeLab(t, 1, 1420, 1500, false, simnet.Path{Delay: 15 * time.Millisecond})
	l.setRelay(true)
	l.large = true
	l.run(10*time.Second, a, b)
	l.now = l.now.Add(200 * time.Second)
	l.run(10*time.Second, a, b)
	if s := a.agent.Snapshot(); s.Primary.Kind != path.Direct || s.MTU != 1420 || s.Stats.BlackHoles != 0 {
		l.fail("%v, MTU %d, %d black holes", s.Primary, s.MTU, s.Stats.BlackHoles)
	}
}

// TestPeerWithoutPaddedPings: an older version is reached directly and with
// what nearly every path carries.
func TestPeerWithoutPaddedPings(t *testing.T) {
	l, a, b := sizeLab(t, 1, 1420, 1500, false, simnet.Path{Delay: 15 * time.Millisecond})
	l.deaf = true
	l.setRelay(true)
	l.large = true
	l.run(3*time.Second, a, b)
	if a.primary.Kind != path.Direct || a.agent.MTU() != path.BaseMTU {
		l.fail("%v, MTU %d", a.primary, a.agent.MTU())
	}
	l.run(time.Minute, a, b)
	if s := a.agent.Snapshot(); s.Primary.Kind != path.Direct || s.Stats.BlackHoles != 0 {
		l.fail("%v, %d black holes", s.Primary, s.Stats.BlackHoles)
	}
}

// TestMTUUnderChange: whatever the path does, with loss and jitter, no end goes
// on for long with packets that are swallowed, and both find the truth when it
// stays the same.
func TestMTUUnderChange(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		random := rand.New(rand.NewPCG(seed, 7))
		v6 := random.IntN(2) == 0
		link := func() int {
			if v6 {
				return 1280 + random.IntN(300)
			}
			return 1000 + random.IntN(600)
		}
		mtu := link()
		l, a, b := sizeLab(t, seed, 1420, mtu, v6, simnet.Path{
			Delay: time.Duration(random.IntN(60)) * time.Millisecond, Jitter: 5 * time.Millisecond,
			Loss: random.Float64() * 0.05,
		})
		l.setRelay(random.IntN(2) == 0)
		l.large = true
		wrong := time.Duration(0)
		for range 6 {
			length := 5*time.Second + time.Duration(random.IntN(20_000))*time.Millisecond
			for end := l.now.Add(length); l.now.Before(end); {
				l.run(50*time.Millisecond, a, b)
				wrong += 50 * time.Millisecond
				s := a.agent.Snapshot()
				if s.Primary.Kind != path.Direct || s.MTU <= carried(1420, mtu, v6) {
					wrong = 0
				}
				if wrong > 3*time.Second {
					l.fail("seed %d: MTU %d over %d for %v", seed, s.MTU, mtu, wrong)
				}
				if s.MTU > 1420 || s.MTU < 512 {
					l.fail("seed %d: MTU %d", seed, s.MTU)
				}
			}
			mtu = link()
			l.net.SetMTU(mtu)
			wrong = 0
		}
		l.run(22*time.Minute, a, b)
		if got, want := a.agent.MTU(), carried(1420, mtu, v6); got != want {
			l.fail("seed %d: MTU %d over %d, want %d", seed, got, mtu, want)
		}
	}
}
