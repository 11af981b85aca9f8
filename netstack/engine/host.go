package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/netstack/wg"
)

// hostDevice is the TUN device as WireGuard sees it: with the filter in both
// directions.
type hostDevice struct {
	e      *Engine
	tun    tun.Device
	now    func() time.Time
	reader *hostReader
	pings  pings
	device atomic.Pointer[wg.Device]
	// serving says that all routes of this device are served.
	serving atomic.Bool

	// sender says whose session a packet came in by (wg.Device.Sender).
	sender func(buf []byte, offset int) (ident.NodeKey, bool)

	// underway is held from before packets are let out until WireGuard has found
	// their peers: it asks for the next ones only then. held, which belongs to
	// the caller of Read, says that it is.
	underway sync.Mutex
	held     bool

	// tooBig counts packets that were too long for the path to their peer.
	tooBig atomic.Uint64
	// shed counts what was done to keep queues short, by filter.Direction.
	shed [2]shedding

	// forwarding is replaced by the control goroutine.
	forwarding atomic.Pointer[forwarding]

	mu       sync.Mutex      // protects counters, which only dropped packets reach
	counters filter.Counters // of packets that belong to no peer
	noPeer   [2]uint64       // by filter.Direction
}

var _ wg.TUN = (*hostDevice)(nil)

func newHostDevice(e *Engine) *hostDevice {
	d := &hostDevice{e: e, tun: e.cfg.TUN, now: e.cfg.Now}
	d.pings.waiting = make(map[pingKey]chan<- packet.Echo)
	d.sender = func(buf []byte, offset int) (ident.NodeKey, bool) {
		device := d.device.Load()
		if device == nil {
			return ident.NodeKey{}, false
		}
		return device.Sender(buf, offset)
	}
	d.reader = newHostReader(e.cfg.TUN, func(err error) {
		select {
		case e.failed <- fmt.Errorf("%w: %w", ErrDevice, err):
		default:
		}
	})
	return d
}

// MTU implements wg.TUN.
func (d *hostDevice) MTU() (int, error) { return d.tun.MTU() }

// Name implements wg.TUN.
func (d *hostDevice) Name() (string, error) { return d.tun.Name() }

// BatchSize implements wg.TUN.
func (d *hostDevice) BatchSize() int { return d.reader.batchSize() }

// Close implements wg.TUN.
func (d *hostDevice) Close() error {
	err := d.tun.Close()
	d.reader.close()
	return err
}

// Read implements wg.TUN: it returns the packets that may leave.
func (d *hostDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if d.held {
		d.held = false
		d.underway.Unlock()
	}
	n, own, err := d.reader.read(bufs, sizes, offset)
	if err != nil && !errors.Is(err, tun.ErrTooManySegments) {
		return 0, err // nobody calls again
	}
	d.underway.Lock()
	d.held = true
	if own != nil {
		to := d.destination(bufs[n-1][offset : offset+sizes[n-1]])
		if to == nil {
			sizes[n-1] = 0
		} else if own.over != nil {
			if device := d.device.Load(); device == nil || !device.Divert(bufs[n-1], to.key, own.over) {
				sizes[n-1] = 0 // one that went by another way would prove nothing
			}
		}
	} else if n > 0 {
		d.filterOutbound(bufs[:n], sizes, offset)
	}
	return n, err
}

// destination returns whom a packet of our own is for, nil for nobody: a filter has let
// it out, but the table may be another by now.
func (d *hostDevice) destination(b []byte) *peer {
	var info packet.Info
	if packet.Parse(b, &info) != packet.None {
		return nil
	}
	return d.forwarding.Load().lookup(info.Destination.Addr())
}

// settle returns when every packet that was let out by a table that is not in
// force any more has been given to the peer that WireGuard found for it.
func (d *hostDevice) settle() {
	d.underway.Lock()
	defer d.underway.Unlock()
}

// holder is the peer whose mutex is held for a run of packets.
type holder struct {
	e      *Engine
	p      *peer
	passed bool // whether one of its packets did
	// left is the length of its last packet that may leave, 0 for none, and longest
	// that of the longest.
	left, longest int
	now           time.Time
}

// hold makes p the peer whose mutex is held; nil is none. It reports whether another
// one was.
func (h *holder) hold(p *peer) bool {
	if h.p == p {
		return false
	}
	if h.p != nil {
		decided := h.p.filter.Waiting() > 0
		if h.left > 0 {
			h.p.lengths.note(h.left, h.longest, h.now)
		}
		h.p.mu.Unlock()
		if decided {
			h.e.note(h.p)
		}
		if h.passed {
			h.e.touch(h.p)
		}
	}
	h.passed, h.left, h.longest = false, 0, 0
	if h.p = p; p != nil {
		p.lockForPackets()
	}
	return true
}

// filterOutbound sets the size of every packet that may not leave to zero, which
// WireGuard skips.
func (d *hostDevice) filterOutbound(bufs [][]byte, sizes []int, offset int) {
	var info packet.Info
	var last packet.Address
	var p *peer
	var rejects [][]byte
	f, now, captures := d.forwarding.Load(), d.now(), d.e.captures.running.Load()
	h := holder{e: d.e, now: now}
	if unfiltered {
		f.touchAll(d.e)
		return
	}
	for i := range bufs {
		b := bufs[i][offset : offset+sizes[i]]
		sizes[i] = 0
		if fault := packet.Parse(b, &info); fault != packet.None {
			d.count(filter.Outbound, &info, filter.FaultReason(fault))
			captureFault(captures, filter.Outbound, b, filter.FaultReason(fault).String(), now)
			continue
		}
		if p == nil || info.Destination != last {
			p, last = f.lookup(info.Destination.Addr()), info.Destination
		}
		if p == nil {
			d.countNoPeer(filter.Outbound, &info, last.Addr())
			captureFault(captures, filter.Outbound, b, "no_peer", now)
			continue
		}
		if h.hold(p) {
			if tunnel := p.sealing.Load(); tunnel != nil {
				p.queues.outbound(tunnel.Waiting(), p.way(), now)
			}
		}
		decision := p.filter.CheckOutbound(&info, now)
		if captures != nil {
			captureDecided(*captures, filter.Outbound, b, p, decision, &info, now)
		}
		switch decision.Verdict {
		case filter.Pass:
			if decision.MTU != 0 {
				packet.SetMTU(b, decision.MTU)
			}
			if info.Length > largePacket || info.Flags&packet.SYN != 0 {
				fits, answer := p.fit(b, &info, now)
				if !fits {
					d.tooBig.Add(1)
					if len(answer) > tun.Headroom {
						rejects = append(rejects, answer)
					}
					continue
				}
			}
			h.passed = true
			if !p.queues.pass(filter.Outbound, b, &info, &d.shed, now) {
				continue
			}
			sizes[i] = int(info.Length)
			h.left, h.longest = sizes[i], max(h.longest, sizes[i])
		case filter.Reject:
			reject := make([]byte, tun.Headroom, tun.Headroom+rejectRoom)
			if reject = packet.AppendReject(reject, b); len(reject) > tun.Headroom {
				rejects = append(rejects, reject)
			}
		case filter.Drop, filter.Control:
		}
	}
	h.hold(nil)
	if len(rejects) > 0 {
		d.write(rejects, tun.Headroom)
	}
}

// rejectRoom is what a reject packet needs at most in front of its quote.
const rejectRoom = 128

// Write implements wg.TUN: it delivers the packets that may come in.
func (d *hostDevice) Write(bufs [][]byte, offset int) (int, error) {
	kept := d.filterInbound(bufs, offset)
	if kept == 0 {
		return 0, nil
	}
	return d.tun.Write(bufs[:kept], offset)
}

// filterInbound moves the packets that may come in to the front and returns
// their number. All of them come from one peer, the one whose session they came
// by, and the table must say that their source is its own: WireGuard has checked
// that already, but with a table that changes at another time.
func (d *hostDevice) filterInbound(bufs [][]byte, offset int) int {
	var info packet.Info
	var last packet.Address
	var p *peer
	kept := 0
	f, now, captures := d.forwarding.Load(), d.now(), d.e.captures.running.Load()
	h := holder{e: d.e, now: now}
	if unfiltered {
		f.touchAll(d.e)
		return len(bufs)
	}
	var sender ident.NodeKey
	known := false
	var latest []byte
	var waited time.Duration
	stamped, size := false, 0
	if len(bufs) > 0 {
		if device := d.device.Load(); device != nil {
			waited, stamped = device.Waited(bufs[len(bufs)-1], offset)
		}
		for _, buf := range bufs {
			size += len(buf)
		}
		sender, known = d.sender(bufs[0], offset)
		latest = bufs[len(bufs)-1]
	}
	for _, buf := range bufs {
		b := buf[offset:]
		if fault := packet.Parse(b, &info); fault != packet.None {
			d.count(filter.Inbound, &info, filter.FaultReason(fault))
			captureFault(captures, filter.Inbound, b, filter.FaultReason(fault).String(), now)
			continue
		}
		if p == nil || info.Source != last {
			p, last = f.lookup(info.Source.Addr()), info.Source
		}
		if p == nil {
			d.countNoPeer(filter.Inbound, &info, last.Addr())
			captureFault(captures, filter.Inbound, b, "no_peer", now)
			continue
		}
		if !known || p.key != sender {
			d.count(filter.Inbound, &info, filter.DropSpoof)
			captureFault(captures, filter.Inbound, b, filter.DropSpoof.String(), now)
			continue
		}
		if h.hold(p) && stamped {
			p.queues.left(filter.Inbound, size, waited, p.way(), now)
		}
		decision := p.filter.CheckInbound(&info, now)
		if captures != nil {
			captureDecided(*captures, filter.Inbound, b, p, decision, &info, now)
		}
		if decision.Verdict == filter.Control {
			d.handleInband(p, buf, offset, &info)
		}
		if decision.Verdict != filter.Pass {
			continue
		}
		h.passed = true
		if !p.queues.pass(filter.Inbound, b, &info, &d.shed, now) {
			continue
		}
		if decision.MTU != 0 {
			packet.SetMTU(b, decision.MTU)
		}
		if info.Flags&packet.SYN != 0 {
			if mtu := p.mtu.Load(); mtu > 0 {
				packet.ClampMSS(b, &info, int(mtu))
			}
		}
		if info.Kind == packet.EchoReply && d.pings.take(b[:info.Length]) {
			continue
		}
		bufs[kept] = buf[:offset+int(info.Length)]
		kept++
	}
	if kept > 0 && h.passed {
		// Before the peer is touched, which hold does.
		d.arrives(h.p, latest, offset, now)
	}
	h.hold(nil)
	return kept
}

// deliver writes a packet of our own to the host.
func (d *hostDevice) deliver(appendTo func([]byte) []byte) {
	b := appendTo(make([]byte, tun.Headroom, tun.Headroom+rejectRoom))
	if len(b) > tun.Headroom {
		d.write([][]byte{b}, tun.Headroom)
	}
}

// write writes packets of our own to the host. That one is lost changes nothing
// but how soon a program notices.
func (d *hostDevice) write(bufs [][]byte, offset int) {
	if _, err := d.tun.Write(bufs, offset); err != nil {
		d.e.log.Debug("answering the host", "error", err)
	}
}

func (d *hostDevice) count(dir filter.Direction, info *packet.Info, why filter.Reason) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counters.Count(dir, info.Version, why)
}

// limitedBroadcast is 255.255.255.255 (RFC 919).
var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (d *hostDevice) countNoPeer(dir filter.Direction, info *packet.Info, a netip.Addr) {
	if a.IsMulticast() || a.IsLinkLocalUnicast() || a == limitedBroadcast {
		d.count(dir, info, filter.DropMulticast)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noPeer[dir]++
}
