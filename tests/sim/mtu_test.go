package sim

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
)

// mtu returns what n's packets to the peer may measure.
func (n *node) mtu(to *node) int {
	for _, p := range n.engine.Status().Peers {
		if p.Key == to.Key {
			return p.MTU
		}
	}
	return 0
}

// sized returns a datagram of so many bytes that must reach its receiver whole,
// or may be cut on its way.
func (n *node) sized(to *node, bytes int, whole, six bool) []byte {
	from, dest, headers := n.Addr4(), to.Addr4(), 28
	if six {
		from, dest, headers = n.Addr6(), to.Addr6(), 48
	}
	b := enginetest.UDP(netip.AddrPortFrom(from, 5000), netip.AddrPortFrom(dest, 53), strings.Repeat("x", bytes-headers))
	if whole && !six {
		// "Don't fragment" is a bit of the header's checksum, too.
		b[6] |= 0x40
		binary.BigEndian.PutUint16(b[10:], binary.BigEndian.Uint16(b[10:])-0x4000)
	}
	return b
}

// delivered sends a packet and returns what came out at either end first, nil
// for nothing.
func (n *node) delivered(to *node, b []byte) (there, back []byte) {
	n.tun.Send(b)
	select {
	case there = <-to.tun.Received():
	case back = <-n.tun.Received():
	case <-alarm.New(time.Second).C:
	}
	return there, back
}

// TestPacketsFitThePath: whatever the way carries, what fits passes, what does
// not is refused with the length that does, connections are opened with it, and
// what may be cut goes in pieces.
func TestPacketsFitThePath(t *testing.T) {
	t.Parallel()
	if !sock.DontFragment {
		t.Skip("this system fragments datagrams, so what paths carry is not asked for")
	}
	for i, test := range []struct{ link, want int }{{1500, 1420}, {1400, 1328}, {1280, 1216}, {1200, 1136}} {
		t.Run(fmt.Sprint(test.link), func(t *testing.T) {
			run(t, uint64(20+i), func(s *sim) {
				s.world.Do(func(n *simnet.Network) { n.SetMTU(test.link) })
				a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
				s.meet(a, b)
				a.until(b, 10*time.Second, "both ends know what the path carries", func() bool {
					return a.path(b).Kind == engine.PathDirect && a.mtu(b) == test.want && b.mtu(a) == test.want
				})
				for _, six := range []bool{false, true} {
					fits := test.want
					if six {
						fits = max(fits, 1280) // what IPv6 may always send
					}
					if there, back := a.delivered(b, a.sized(b, fits, true, six)); len(there) != fits {
						s.Fatalf("IPv6 %v: %d bytes: %d arrived, %d came back", six, fits, len(there), len(back))
					}
					if fits == 1420 {
						continue
					}
					there, back := a.delivered(b, a.sized(b, fits+1, true, six))
					if there != nil || back == nil {
						s.Fatalf("IPv6 %v: %d bytes: %d arrived, %d came back", six, fits+1, len(there), len(back))
					}
					if info := parsed(s, back); !info.TooBig() || info.MTU != uint32(fits) {
						s.Fatalf("%+v, want too big for %d", info, fits)
					}
				}
				if there, back := a.delivered(b, a.sized(b, 1420, false, false)); len(there) != 1420 {
					s.Fatalf("what may be cut: %d bytes arrived, %d came back", len(there), len(back))
				}
				// Opened by either end, the connection has segments that fit.
				for _, n := range []struct{ from, to *node }{{a, b}, {b, a}} {
					syn := enginetest.TCPWithOptions(netip.AddrPortFrom(n.from.Addr4(), 6000), netip.AddrPortFrom(n.to.Addr4(), 80), packet.SYN, []byte{2, 4, 0x23, 0})
					there, _ := n.from.delivered(n.to, syn)
					if len(there) != 44 || int(binary.BigEndian.Uint16(there[42:])) != test.want-40 {
						s.Fatalf("% x arrived, want segments of %d", there, test.want-40)
					}
				}
			})
		})
	}
}

// TestPathThatBeginsToSwallow: when a path stops carrying long packets while
// they are sent, the sender is told soon, and the path stays in use.
func TestPathThatBeginsToSwallow(t *testing.T) {
	t.Parallel()
	if !sock.DontFragment {
		t.Skip("this system fragments datagrams, so what paths carry is not asked for")
	}
	run(t, 30, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.meet(a, b)
		a.until(b, 10*time.Second, "the whole MTU", func() bool {
			return a.path(b).Kind == engine.PathDirect && a.mtu(b) == 1420
		})
		flow := func(d time.Duration, until func(there, back []byte) bool) time.Duration {
			began := time.Now()
			for time.Since(began) < d {
				a.tun.Send(a.sized(b, 1420, true, false))
				time.Sleep(50 * time.Millisecond)
				for more := true; more; {
					select {
					case p := <-b.tun.Received():
						if until(p, nil) {
							return time.Since(began)
						}
					case p := <-a.tun.Received():
						if until(nil, p) {
							return time.Since(began)
						}
					default:
						more = false
					}
				}
			}
			return -1
		}
		if flow(5*time.Second, func(_, back []byte) bool { return back != nil }) >= 0 {
			s.Fatal("a packet was refused on a path that carries it")
		}
		s.world.Do(func(n *simnet.Network) { n.SetMTU(1280) })
		took := flow(10*time.Second, func(_, back []byte) bool { return back != nil })
		// One second until the engine sees the use of long packets, and what
		// package path says.
		if took < 0 || took > 2300*time.Millisecond {
			s.Fatalf("the sender was told after %v", took)
		}
		s.Logf("the sender was told after %v", took)
		time.Sleep(3 * time.Second)
		if got := a.path(b); got.Kind != engine.PathDirect || a.mtu(b) != 1216 {
			s.Fatalf("%v, MTU %d", got, a.mtu(b))
		}
		if there, _ := a.delivered(b, a.sized(b, 1216, true, false)); len(there) != 1216 {
			s.Fatal("a packet that fits was lost")
		}
	})
}
