package engine

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/aqm"
	"github.com/warren-overlay/warren/netstack/enginetest"
)

// scaled offers window scaling by 7 bits, as most systems do.
var scaled = []byte{2, 4, 5, 0xb4, 1, 3, 3, 7}

// conversation is one TCP connection through queues, whose data goes out.
type conversation struct {
	t             *testing.T
	queues        queues
	now           time.Time
	ours, theirs  netip.AddrPort
	counted       [2]shedding
	sent, allowed uint32 // up to where was sent, and may be
}

func (c *conversation) pass(d filter.Direction, b []byte) bool {
	c.t.Helper()
	var info packet.Info
	if fault := packet.Parse(b, &info); fault != packet.None {
		c.t.Fatal(fault)
	}
	return c.queues.pass(d, b, &info, &c.counted, c.now)
}

// converse opens a connection with the options of its two SYNs and has it send for a
// second, as much as it may, while everything in the queue waits for long.
func converse(t *testing.T, options [2][]byte) *conversation {
	c := &conversation{
		t: t, now: time.Unix(1000, 0),
		ours: netip.MustParseAddrPort("100.64.0.1:40000"), theirs: netip.MustParseAddrPort("100.64.0.2:443"),
	}
	c.open(options)
	for range 1000 {
		c.send(30 * time.Millisecond)
	}
	return c
}

// open opens the connection with the options of its two SYNs.
func (c *conversation) open(options [2][]byte) {
	c.pass(filter.Outbound, enginetest.TCPWithOptions(c.ours, c.theirs, packet.SYN, options[filter.Outbound]))
	c.pass(filter.Inbound, enginetest.TCPWithOptions(c.theirs, c.ours, packet.SYN|packet.ACK, options[filter.Inbound]))
	c.allowed = c.acknowledge()
}

// send sends as much as may be, of which the end is seen, while what left had waited;
// a millisecond later it is acknowledged.
func (c *conversation) send(waited time.Duration) {
	c.now = c.now.Add(time.Millisecond)
	c.sent = c.allowed
	c.pass(filter.Outbound, enginetest.TCP(c.ours, c.theirs, packet.ACK, c.sent-1000, 1, string(make([]byte, 1000))))
	c.queues.left(filter.Outbound, 1<<20, waited, aqm.Way{}, c.now)
	c.allowed = c.acknowledge()
}

// acknowledge has the other side acknowledge all that was sent, and returns up to
// where it allows our side to send.
func (c *conversation) acknowledge() uint32 {
	b := enginetest.TCP(c.theirs, c.ours, packet.ACK, 1, c.sent, "")
	before := bytes.Clone(b)
	if !c.pass(filter.Inbound, b) {
		c.t.Fatal("an acknowledgment was dropped")
	}
	var info packet.Info
	packet.Parse(b, &info)
	window := packet.Window(b, &info)
	packet.SetWindow(before, &info, window)
	if !bytes.Equal(b, before) {
		c.t.Fatal("more than the window was changed")
	}
	return c.sent + uint32(window)<<7
}

// TestWindowsAreLowered: a connection that fills a queue is told to by its window,
// and loses packets only where that cannot be less; one whose windows are not known,
// or must stay as they are, loses them at once.
func TestWindowsAreLowered(t *testing.T) {
	md5 := append([]byte{19, 18, 17: 0, 18: 1, 19: 1}, scaled...)
	for name, test := range map[string]struct {
		options [2][]byte
		scale   uint8 // of the windows
		lowered bool
	}{
		"as usual":                    {[2][]byte{scaled, scaled}, 7, true},
		"signed by one side":          {[2][]byte{scaled, md5}, 7, false},
		"one of several, other side":  {[2][]byte{append([]byte{30, 4, 0, 0}, scaled...), scaled}, 7, false},
		"small windows, as of old":    {[2][]byte{nil, nil}, 0, true},
		"scaled by only one of them":  {[2][]byte{scaled, nil}, 0, true},
		"scaled by the other of them": {[2][]byte{nil, scaled}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := converse(t, test.options)
			if lowered := c.allowed-c.sent < 0xffff<<7; lowered != test.lowered {
				t.Errorf("a window of %d is allowed at last", c.allowed-c.sent)
			}
			if field := (c.allowed - c.sent) >> 7; field < aqm.MinWindow/2>>test.scale {
				t.Errorf("a window of %d units is allowed, which is less than may be", field)
			}
			counted := &c.counted[filter.Outbound]
			if lowered := counted.lowered.Load() > 0; lowered != test.lowered {
				t.Errorf("%d windows were counted as lowered", counted.lowered.Load())
			}
			if !test.lowered && counted.dropped.Load() < 20 {
				t.Errorf("%d packets were dropped", counted.dropped.Load())
			}
			if other := &c.counted[filter.Inbound]; other.lowered.Load()+other.dropped.Load() > 0 {
				t.Error("something was done about the other direction")
			}
		})
	}
}

// TestLoweredWindowSparesPackets: until it is as small as can be, and those of others
// meanwhile.
func TestLoweredWindowSparesPackets(t *testing.T) {
	c := converse(t, [2][]byte{scaled, scaled})
	if c.counted[filter.Outbound].dropped.Load() == 0 {
		t.Error("nothing was dropped of a flow that keeps the queue long with the least window")
	}
	c = &conversation{t: t, now: time.Unix(1000, 0), ours: c.ours, theirs: c.theirs}
	c.open([2][]byte{scaled, scaled})
	other := netip.AddrPortFrom(c.ours.Addr(), 53)
	for range 100 {
		c.send(0)
	}
	for range 150 { // not long enough for the least window
		c.send(30 * time.Millisecond)
		if !c.pass(filter.Outbound, enginetest.UDP(other, c.theirs, "question")) {
			t.Error("a question was dropped")
		}
	}
	if n := c.counted[filter.Outbound].dropped.Load(); n != 0 {
		t.Errorf("%d packets were dropped although the window can be lowered", n)
	}
	if c.counted[filter.Outbound].lowered.Load() == 0 {
		t.Error("the window was not lowered; this test shows nothing")
	}
}

// TestPortsAreUsedAgain: a new connection between the same ports has windows of its
// own.
func TestPortsAreUsedAgain(t *testing.T) {
	c := converse(t, [2][]byte{scaled, scaled})
	before := c.queues.tcp.found
	c.pass(filter.Outbound, enginetest.TCPWithOptions(c.ours, c.theirs, packet.SYN, scaled))
	after := c.queues.tcp.found
	if after == before || after.seen != [2]bool{filter.Outbound: true} {
		t.Errorf("the windows of the former connection: %+v", after)
	}
}

// TestConnectionsAreBounded: those that were silent for longest are forgotten.
func TestConnectionsAreBounded(t *testing.T) {
	var c connections
	b := enginetest.TCPWithOptions(netip.MustParseAddrPort("100.64.0.1:1"), netip.MustParseAddrPort("100.64.0.2:1"), packet.SYN, scaled)
	var info packet.Info
	packet.Parse(b, &info)
	const busy = 7
	for n := range 10 * maxWindows {
		i := info
		i.SourcePort = uint16(n)
		c.begin(b, &i, filter.Outbound)
		if kept := len(c.recent) + len(c.former); kept > 2*maxWindows {
			t.Fatalf("%d connections are kept", kept)
		}
		i.SourcePort = busy
		if n >= busy && c.find(&i, filter.Outbound) == nil {
			t.Fatalf("one that is never silent was forgotten, after %d", n)
		}
	}
	if info.SourcePort = busy + 1; c.find(&info, filter.Outbound) != nil {
		t.Error("one that was silent is kept")
	}
}

// TestWindowsAllocateNothing: of a connection that is known.
func TestWindowsAllocateNothing(t *testing.T) {
	c := converse(t, [2][]byte{scaled, scaled})
	acknowledgment := enginetest.TCP(c.theirs, c.ours, packet.ACK, 1, c.sent, "")
	data := enginetest.TCP(c.ours, c.theirs, packet.ACK, c.sent, 1, string(make([]byte, 1000)))
	var in, out packet.Info
	packet.Parse(acknowledgment, &in)
	packet.Parse(data, &out)
	if n := testing.AllocsPerRun(100, func() {
		binary.BigEndian.PutUint16(acknowledgment[in.HeaderLength+14:], 0xffff)
		c.queues.pass(filter.Inbound, acknowledgment, &in, &c.counted, c.now)
		c.queues.pass(filter.Outbound, data, &out, &c.counted, c.now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
