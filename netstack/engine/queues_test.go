package engine

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/aqm"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/netstack/wg"
)

// standing is a queue whose average wait is far too long, at now.
func standing(d filter.Direction) (q *queues, now time.Time) {
	q, now = new(queues), time.Unix(1000, 0)
	for range 100 {
		now = now.Add(aqm.Interval / 50)
		q.left(d, 1<<20, 20*time.Millisecond, aqm.Way{}, now)
	}
	return q, now
}

// TestShedPrefersLongPackets: a long queue costs a long packet, and a short one only
// where no long one came for an interval; one that can be marked is not lost.
func TestShedPrefersLongPackets(t *testing.T) {
	capable := func(length uint32) ([]byte, *packet.Info) {
		return []byte{0x60, 0x20, 19: 0}, &packet.Info{Version: 6, Length: length}
	}
	plain := func(length uint32) ([]byte, *packet.Info) {
		return []byte{0x60, 19: 0}, &packet.Info{Version: 6, Length: length}
	}
	for _, d := range []filter.Direction{filter.Inbound, filter.Outbound} {
		other := filter.Inbound + filter.Outbound - d
		var counted [2]shedding
		q, now := standing(d)
		shed := func(d filter.Direction, b []byte, info *packet.Info, now time.Time) bool {
			return !q.pass(d, b, info, &counted, now)
		}
		b, info := plain(40)
		if shed(d, b, info, now) {
			t.Error("a short packet was dropped at once")
		}
		b, info = plain(1400)
		if shed(other, b, info, now) {
			t.Error("a packet of the other direction was dropped")
		}
		if !shed(d, b, info, now) || shed(d, b, info, now) {
			t.Error("want one long packet dropped")
		}
		if dropped, marked := counted[d].dropped.Load(), counted[d].marked.Load(); dropped != 1 || marked != 0 {
			t.Errorf("%d packets dropped and %d marked", dropped, marked)
		}

		q, now = standing(d)
		b, info = plain(40)
		if !shed(d, b, info, now.Add(aqm.Interval)) {
			t.Error("no packet was dropped, since all are short")
		}

		q, now = standing(d)
		b, info = capable(1400)
		if shed(d, b, info, now) || counted[d].marked.Load() != 1 || b[1] != 0x30 {
			t.Errorf("want a marked packet, got %x", b[:2])
		}
		if b, info = plain(1400); shed(d, b, info, now) {
			t.Error("a packet was dropped although another was marked")
		}
		if counted[other].dropped.Load() != 0 {
			t.Error("counted for the other direction")
		}
	}
}

// TestAnotherTunnelBeginsAnew: sums of a new tunnel with the same peer are smaller
// than those of the last one, and say nothing until they were looked at once.
func TestAnotherTunnelBeginsAnew(t *testing.T) {
	var q queues
	now := time.Unix(1000, 0)
	add := func(bytes, byteMicroseconds uint64) {
		now = now.Add(aqm.Interval / 10)
		q.outbound(wg.Waiting{Bytes: bytes, ByteMicroseconds: byteMicroseconds}, aqm.Way{}, now)
	}
	add(100<<20, 1000)
	for i := range uint64(30) {
		add(i<<10, i)
		if _, due := q.control[filter.Outbound].Due(); due {
			t.Fatal("a packet is dropped because the sums became smaller")
		}
	}
	for i := range uint64(30) {
		add((30+i)<<20, 30+i<<20*20_000)
	}
	if _, due := q.control[filter.Outbound].Due(); !due {
		t.Fatal("nothing is dropped although packets wait")
	}
}

// long is a datagram that fills a packet of the usual MTU.
func long(from, to *node) []byte {
	return enginetest.UDP(netip.AddrPortFrom(from.Addr4(), 5000), netip.AddrPortFrom(to.Addr4(), 53), strings.Repeat("x", 1392))
}

// TestDataPathSheds: of a batch that passes while the queue stands, in either
// direction, one packet is lost.
func TestDataPathSheds(t *testing.T) {
	_, a, b := two(t)
	a.apply(t, a.Config(time.Now(), enginetest.AllowAll(b.Member), b.Member))
	host := a.engine.host
	host.sender = func([]byte, int) (ident.NodeKey, bool) { return b.Key, true }
	const offset = tun.Headroom
	stand := func(d filter.Direction) {
		p := host.forwarding.Load().byKey[b.Key]
		p.mu.Lock()
		defer p.mu.Unlock()
		q, _ := standing(d)
		p.queues.control[d] = q.control[d]
	}
	bufs, sizes := unstamped(32)
	passed := map[filter.Direction]func() int{
		filter.Outbound: func() (n int) {
			for i := range bufs {
				sizes[i] = copy(bufs[i][offset:], long(a, b))
			}
			host.filterOutbound(bufs, sizes, offset)
			for _, size := range sizes {
				if size > 0 {
					n++
				}
			}
			return n
		},
		filter.Inbound: func() int {
			for i := range bufs {
				bufs[i] = append(bufs[i][:offset], long(b, a)...)
			}
			return host.filterInbound(bufs, offset)
		},
	}
	for d, pass := range passed {
		if _, stamped := host.device.Load().Waited(bufs[0][:offset+sizes[0]], offset); stamped {
			t.Fatal("the buffers say how long packets waited")
		}
		if n := pass(); n != len(bufs) {
			t.Fatalf("direction %v: %d of %d packets passed", d, n, len(bufs))
		}
		stand(d)
		for _, want := range []int{len(bufs) - 1, len(bufs)} {
			if n := pass(); n != want {
				t.Errorf("direction %v: %d packets passed, want %d", d, n, want)
			}
		}
		if n := host.shed[d].dropped.Load(); n != 1 {
			t.Errorf("direction %v: %d packets counted", d, n)
		}
	}
}

// slowLine sends so slowly that a host's packets wait for it.
type slowLine struct{ sock.Conn }

func (c slowLine) WriteBatch(bufs [][]byte, to netip.AddrPort) error {
	if len(bufs[0]) > largePacket {
		<-time.After(time.Duration(len(bufs)) * time.Millisecond)
	}
	return c.Conn.WriteBatch(bufs, to)
}

// TestSlowLineSheds: packets of a host that sends more than its line carries are
// dropped, and the counters say so.
func TestSlowLineSheds(t *testing.T) {
	network := enginetest.NewNetwork(t, 1, time.Now())
	a := newNodeOn(t, network.Join("laptop", nil), func(c sock.Conn) sock.Conn { return slowLine{c} })
	b := newNode(t, network.Join("db", nil))
	now := time.Now()
	a.apply(t, a.Config(now, enginetest.AllowAll(b.Member), b.Member))
	b.apply(t, b.Config(now, enginetest.AllowAll(a.Member), a.Member))
	a.send(t, b, 53, "first")
	ask := time.NewTicker(10 * time.Millisecond)
	defer ask.Stop()
	for deadline := time.Now().Add(patience); a.engine.Status().Drops["queue_outbound"] == 0; <-ask.C {
		if time.Now().After(deadline) {
			t.Fatalf("nothing was dropped: %v", a.engine.Status().Drops)
		}
		for range 20 {
			a.tun.Send(long(a, b))
		}
	}
	if n := a.engine.Status().Drops["queue_inbound"]; n != 0 {
		t.Errorf("%d packets of the other direction were dropped", n)
	}
}
