//go:build linux

package netns

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-overlay/warren/tests/lab"
)

// icmpError makes an ICMP error about a captured packet, as a router on the way
// would: destination unreachable (RFC 792) with a code, and the MTU for code 4
// (RFC 1191).
func icmpError(about []byte, code byte, mtu uint16) []byte {
	quoted := about[:int(about[0]&15)*4+8]
	b := make([]byte, 28, 28+len(quoted))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_ICMP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(quoted)))
	copy(b[12:], about[16:20])
	copy(b[16:], about[12:16])
	b[20], b[21] = 3, code
	binary.BigEndian.PutUint16(b[26:], mtu)
	b = append(b, quoted...)
	binary.BigEndian.PutUint16(b[22:], lab.Checksum(b[20:]))
	binary.BigEndian.PutUint16(b[10:], lab.Checksum(b[:20]))
	return b
}

// icmp6Errors are the types of ICMPv6 errors and how many codes each has (RFC 4443,
// sections 3.1 to 3.4): unreachable, too big, time exceeded, parameter problem.
var icmp6Errors = []struct{ kind, codes byte }{{1, 8}, {2, 1}, {3, 2}, {4, 3}}

// icmp6Error makes an ICMPv6 error about a captured packet, as a router on the way
// would, with the MTU or pointer that it has. It quotes as much as it may.
func icmp6Error(about []byte, kind, code byte, value uint32) []byte {
	const headers = 40 + 8
	quoted := about[:min(len(about), 1280-headers)]
	b := make([]byte, headers, headers+len(quoted))
	b[0], b[6], b[7] = 6<<4, unix.IPPROTO_ICMPV6, 64
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(quoted)))
	copy(b[8:], about[24:40])
	copy(b[24:], about[8:24])
	b[40], b[41] = kind, code
	binary.BigEndian.PutUint32(b[44:], value)
	b = append(b, quoted...)
	from, to := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	binary.BigEndian.PutUint16(b[42:], lab.TransportChecksum(from, to, unix.IPPROTO_ICMPV6, b[40:]))
	return b
}

// icmpErrorsReceived returns how many ICMP errors of unreachable kinds a host's kernel
// has taken for valid, in both families.
func icmpErrorsReceived(t *testing.T, h *lab.Host) (n int) {
	t.Helper()
	for name, wanted := range map[string][]string{
		"snmp": {"Icmp: InDestUnreachs"}, "snmp6": {"Icmp6InDestUnreachs", "Icmp6InPktTooBigs", "Icmp6InTimeExcds", "Icmp6InParmProblems"},
	} {
		counts := kernelCounters(t, h, name)
		for _, w := range wanted {
			n += counts[w]
		}
	}
	return n
}

// kernelCounters returns the counters of a file in /proc/net of the host: those of
// tables with a line of names and a line of numbers as "Table: name".
func kernelCounters(t *testing.T, h *lab.Host, file string) map[string]int {
	t.Helper()
	var text []byte
	h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/" + file)
		return err
	})
	counts := make(map[string]int)
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2:
			counts[fields[0]], _ = strconv.Atoi(fields[1])
		case len(fields) > 2 && len(names) == len(fields) && names[0] == fields[0]:
			for i := range fields[1:] {
				counts[names[0]+" "+names[i+1]], _ = strconv.Atoi(fields[i+1])
			}
			names = nil
		default:
			names = fields
		}
	}
	return counts
}

// TestForgedErrors is fault F17: errors of ICMP about the tunnel's own packets,
// with every code, and resets of the connection to the relay. Nothing ends.
func TestForgedErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		family, without string
		forge           func(about []byte, n int64) []byte
	}{
		{"IPv4", withoutIPv6, func(about []byte, n int64) []byte { return icmpError(about, byte(n%16), 576) }},
		// The coordinator is reached by IPv4, the nodes by IPv6 only.
		{"IPv6", "ip protocol udp drop", func(about []byte, n int64) []byte {
			e := icmp6Errors[n%int64(len(icmp6Errors))]
			return icmp6Error(about, e.kind, byte(n/int64(len(icmp6Errors)))%e.codes, 1280)
		}},
	} {
		t.Run(c.family, func(t *testing.T) {
			t.Parallel()
			a := newTravellers(t).underAttack(t, c.without)
			at := a.db.Host.V4
			if c.family == "IPv6" {
				at = a.db.Host.V6
			}
			up := lab.StartPulse(t, a.laptop.Host, a.db.Host, address(a.db, "-4", 7002))
			down := lab.StartPulse(t, a.db.Host, a.laptop.Host, address(a.laptop, "-4", 7003))
			x := lab.StartTransfer(t, a.laptop.Host, a.db.Host, address(a.db, "-4", 7000))
			eventuallyDirect(t, a.laptop, a.db)
			eventuallyAt(t, a.laptop, a.db, at)
			paths, taken := a.paths(t), icmpErrorsReceived(t, a.laptop.Host)
			begin := time.Now()
			var forged, resets atomic.Int64
			a.line.Watch(func(d lab.Direction, packet []byte) bool {
				if d != lab.Outbound {
					return true
				}
				if _, to := lab.Endpoints(packet); to.Addr() == at {
					a.line.Send(lab.Inbound, c.forge(packet, forged.Add(1)))
				}
				if _, _, ok := tcp(packet); ok { // the answer that was expected, with RST
					resets.Add(1)
					a.line.Send(lab.Inbound, reset(packet, 0))
				}
				return true
			})
			lab.Eventually(t, 30*time.Second, func() error {
				if forged.Load() < 1000 || resets.Load() < 1 {
					return fmt.Errorf("%d errors and %d resets were forged", forged.Load(), resets.Load())
				}
				return nil
			})
			a.line.Watch(nil)
			up.Steady(t, 10*time.Second)
			down.Steady(t, 10*time.Second)
			gap := max(up.Gap(begin), down.Gap(begin))
			taken = icmpErrorsReceived(t, a.laptop.Host) - taken
			t.Logf("%d errors, of which the kernel took %d, and %d resets forged; nothing for %v, TCP %v", forged.Load(), taken, resets.Load(), gap, x.Gap(begin))
			if gap > time.Second {
				t.Errorf("nothing for %v", gap)
			}
			if now := a.paths(t); now != paths {
				t.Errorf("paths were\n%sand are\n%s", paths, now)
			}
			if int64(taken) < forged.Load()/2 {
				t.Errorf("the kernel took %d of %d errors: they are not made as they should be", taken, forged.Load())
			}
			x.Finish(t)
		})
	}
}

// tcp returns where a TCP segment over IPv4 comes from and goes to, and whether the
// packet is one.
func tcp(packet []byte) (from, to netip.AddrPort, ok bool) {
	if len(packet) < 40 || packet[0]>>4 != 4 || packet[9] != unix.IPPROTO_TCP {
		return from, to, false
	}
	h := int(packet[0]&15) * 4
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[12:])), binary.BigEndian.Uint16(packet[h:])),
		netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[16:])), binary.BigEndian.Uint16(packet[h+2:])), true
}

// reset makes the RST that answers a TCP segment over IPv4, so many bytes beside the
// number that the segment's sender expects. Beside is 0 where who sends the RST has seen
// the segment; then its receiver takes it (RFC 5961, section 3.2).
func reset(packet []byte, beside uint32) []byte {
	h := int(packet[0]&15) * 4
	segment := packet[h:]
	b := make([]byte, 40)
	b[0], b[3], b[8], b[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	copy(b[12:], packet[16:20])
	copy(b[16:], packet[12:16])
	copy(b[20:], segment[2:4])
	copy(b[22:], segment[0:2])
	binary.BigEndian.PutUint32(b[24:], binary.BigEndian.Uint32(segment[8:])+beside)
	b[32], b[33] = 5<<4, 4
	from, to := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	binary.BigEndian.PutUint16(b[36:], lab.TransportChecksum(from, to, unix.IPPROTO_TCP, b[20:]))
	binary.BigEndian.PutUint16(b[10:], lab.Checksum(b[:20]))
	return b
}

// TestForgedResets is fault F17 where the relay carries the tunnel, inside HTTP since
// there is no UDP at all. Somebody beside the way who knows every connection's addresses
// and ports, and guesses at its numbers, ends none; somebody on the way ends all of the
// laptop's, again and again, and the same connection goes on within the tunnel.
func TestForgedResets(t *testing.T) {
	t.Parallel()
	a := newTravellers(t).underAttack(t, "meta l4proto udp drop")
	up := lab.StartPulse(t, a.laptop.Host, a.db.Host, address(a.db, "-4", 7002))
	down := lab.StartPulse(t, a.db.Host, a.laptop.Host, address(a.laptop, "-4", 7003))
	x := lab.StartTransfer(t, a.laptop.Host, a.db.Host, address(a.db, "-4", 7000))
	byDatagrams(t, a.laptop, false, 30*time.Second)
	lost := func() float64 { return metric(t, a.laptop, "warren_relay_events_total", `event="connection_lost"`) }

	// The last segment of each connection in each direction, by the laptop's end.
	var mu sync.Mutex // protects last
	last := map[lab.Direction]map[netip.AddrPort][]byte{lab.Outbound: {}, lab.Inbound: {}}
	var armed atomic.Pointer[map[netip.AddrPort]bool]
	var resets atomic.Int64
	a.line.Watch(func(d lab.Direction, packet []byte) bool {
		from, to, ok := tcp(packet)
		if !ok {
			return true
		}
		mu.Lock()
		defer mu.Unlock()
		if d == lab.Inbound {
			from = to
		}
		last[d][from] = slices.Clone(packet)
		if known := armed.Load(); known != nil && d == lab.Outbound && (*known)[from] {
			resets.Add(1)
			a.line.Send(lab.Inbound, reset(packet, 0))
		}
		return true
	})
	lab.Eventually(t, 30*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(last[lab.Outbound]) < 2 || len(last[lab.Inbound]) < 2 {
			return fmt.Errorf("%d connections of the laptop were seen", len(last[lab.Outbound]))
		}
		return nil
	})

	// Beside the way: numbers at random, and such as lie within the window, where the
	// receiver asks what was meant.
	asked := func() int {
		return kernelCounters(t, a.laptop.Host, "netstat")["TcpExt: TCPChallengeACK"] + kernelCounters(t, a.coordinator.Host, "netstat")["TcpExt: TCPChallengeACK"]
	}
	ends, questions, begin := lost(), asked(), time.Now()
	random := rand.New(rand.NewPCG(17, 17))
	forged := 0
	for range 200 {
		mu.Lock()
		var packets [2][][]byte
		for d, by := range last {
			for _, packet := range by {
				packets[d] = append(packets[d], packet)
			}
		}
		mu.Unlock()
		for d, all := range packets {
			for _, packet := range all {
				// So far that what comes meanwhile does not make it the right one.
				for _, beside := range []uint32{random.Uint32(), random.Uint32(), 20_000 + random.Uint32N(10_000)} {
					a.line.Send(1-lab.Direction(d), reset(packet, beside))
					forged++
				}
			}
		}
	}
	up.Steady(t, 10*time.Second)
	down.Steady(t, 10*time.Second)
	gap := max(up.Gap(begin), down.Gap(begin))
	t.Logf("%d resets from beside the way, %d of them questioned; nothing for %v, TCP %v", forged, asked()-questions, gap, x.Gap(begin))
	if gap > time.Second {
		t.Errorf("resets from beside the way: nothing for %v", gap)
	}
	if n := lost() - ends; n != 0 {
		t.Errorf("resets from beside the way ended %v connections to the relay", n)
	}
	if asked() == questions {
		t.Error("no reset was near a window: they are not made as they should be")
	}

	for range 3 {
		ends, begin = lost(), time.Now()
		before := resets.Load()
		mu.Lock()
		known := make(map[netip.AddrPort]bool)
		for from := range last[lab.Outbound] {
			known[from] = true
		}
		clear(last[lab.Outbound]) // what has ended is not seen again
		armed.Store(&known)
		mu.Unlock()
		lab.Eventually(t, 30*time.Second, func() error {
			if lost() == ends {
				return fmt.Errorf("%d resets on the way ended no connection to the relay", resets.Load()-before)
			}
			return nil
		})
		armed.Store(nil)
		up.Steady(t, 10*time.Second)
		down.Steady(t, 10*time.Second)
		gap := max(up.Gap(begin), down.Gap(begin))
		t.Logf("%d connections that were there, %d resets on the way; nothing for %v, TCP %v", len(known), resets.Load()-before, gap, x.Gap(begin))
		if gap > failover {
			t.Errorf("resets on the way: nothing for %v", gap)
		}
	}
	a.line.Watch(nil)
	t.Logf("%d bytes arrived as they were sent", x.Finish(t))
}
