package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/pcapng"
)

// Bounds of captures. A capture holds packets as they are inside the tunnel, so
// none goes on for ever because somebody forgot it.
const (
	// MaxCaptures bounds the captures at one time.
	MaxCaptures = 4
	// MaxCaptureTime and MaxCaptureBytes end a capture.
	MaxCaptureTime  = time.Hour
	MaxCaptureBytes = 256 << 20
	// maxCaptureQueue bounds the bytes of one capture that wait to be written.
	// What a slow reader does not take is counted as dropped.
	maxCaptureQueue = 4 << 20
	// maxCaptureWaiting bounds the packets that wait.
	maxCaptureWaiting = 4096
)

// ErrTooManyCaptures is returned by Capture while MaxCaptures others run.
var ErrTooManyCaptures = errors.New("engine: too many captures at a time")

// CaptureConfig says what to capture. The zero value is everything.
type CaptureConfig struct {
	// Peer is the one device whose packets are wanted, zero for all.
	Peer ident.NodeID
	// Denied leaves out what passed.
	Denied bool
	// Packets and Duration end the capture; zero stands for no bound of their
	// own.
	Packets  uint64
	Duration time.Duration
}

// Capture is a running capture. Its Write must be called.
type Capture struct {
	e   *Engine
	cfg CaptureConfig

	// Of the data path.
	queue             chan []byte
	waiting           atomic.Int64 // bytes in queue
	received, dropped atomic.Uint64
}

// captures are the captures that run. The data path loads them once for each
// batch of packets; while there are none that is all that they cost.
type captures struct {
	running atomic.Pointer[[]*Capture] // nil for none

	mu sync.Mutex // protects changes of running
}

func (c *captures) change(f func([]*Capture) []*Capture) {
	var all []*Capture
	if old := c.running.Load(); old != nil {
		all = slices.Clone(*old)
	}
	if all = f(all); len(all) == 0 {
		c.running.Store(nil)
		return
	}
	c.running.Store(&all)
}

// Capture begins to capture the packets that the filters decide on, in both
// directions and before they are sealed or after they were opened, with the
// decision and its rule as their comments. The error is ErrTooManyCaptures.
func (e *Engine) Capture(cfg CaptureConfig) (*Capture, error) {
	if cfg.Duration <= 0 || cfg.Duration > MaxCaptureTime {
		cfg.Duration = MaxCaptureTime
	}
	c := &Capture{e: e, cfg: cfg, queue: make(chan []byte, maxCaptureWaiting)}
	e.captures.mu.Lock()
	defer e.captures.mu.Unlock()
	full := false
	e.captures.change(func(all []*Capture) []*Capture {
		if full = len(all) >= MaxCaptures; full {
			return all
		}
		return append(all, c)
	})
	if full {
		return nil, ErrTooManyCaptures
	}
	e.log.Info("capture begins", "peer", cfg.Peer, "denied", cfg.Denied)
	return c, nil
}

// Write writes the capture to w as pcapng, as it goes, until the context or the
// engine ends or a bound is reached, and ends it. The error is w's. It is called
// once.
func (c *Capture) Write(ctx context.Context, w io.Writer) error {
	defer c.stop()
	name, err := c.e.cfg.TUN.Name()
	if err != nil {
		name = ""
	}
	file := pcapng.AppendHeader(nil, "warren", name)
	written, packets := 0, uint64(0)
	timer := alarm.New(c.cfg.Duration)
	defer timer.Stop()
	for {
		if _, err := w.Write(file); err != nil {
			return fmt.Errorf("engine: writing a capture: %w", err)
		}
		if written += len(file); written >= MaxCaptureBytes || c.cfg.Packets > 0 && packets >= c.cfg.Packets {
			break
		}
		select {
		case file = <-c.queue:
			c.waiting.Add(-int64(len(file)))
			packets++
			continue
		case <-ctx.Done():
		case <-c.e.stopped:
		case <-timer.C:
		}
		break
	}
	end := pcapng.AppendStatistics(nil, c.e.cfg.Now(), c.received.Load(), c.dropped.Load())
	if _, err := w.Write(end); err != nil {
		return fmt.Errorf("engine: ending a capture: %w", err)
	}
	return nil
}

func (c *Capture) stop() {
	c.e.captures.mu.Lock()
	defer c.e.captures.mu.Unlock()
	c.e.captures.change(func(all []*Capture) []*Capture {
		return slices.DeleteFunc(all, func(other *Capture) bool { return other == c })
	})
	c.e.log.Info("capture ends", "received", c.received.Load(), "dropped", c.dropped.Load())
}

// captured is a packet and what became of it.
type captured struct {
	direction filter.Direction
	data      []byte // not kept
	at        time.Time
	// reason is filter.Passed's name or that of another one.
	verdict filter.Verdict
	reason  string
	// peer is nil where no device has the address. Its mutex is held.
	peer     *peer
	decision filter.Decision
}

// capture hands a packet to the captures that want it.
func capture(running []*Capture, p *captured) {
	comment := ""
	for _, c := range running {
		if c.cfg.Denied && p.allowed() || c.cfg.Peer != 0 && (p.peer == nil || p.peer.node != c.cfg.Peer) {
			continue
		}
		if comment == "" {
			comment = p.comment()
		}
		c.received.Add(1)
		block := pcapng.AppendPacket(nil, &pcapng.Packet{
			Time: p.at, Inbound: p.direction == filter.Inbound, Data: p.data, Comment: comment,
		})
		if c.waiting.Add(int64(len(block))) <= maxCaptureQueue {
			select {
			case c.queue <- block:
				continue
			default:
			}
		}
		c.waiting.Add(-int64(len(block)))
		c.dropped.Add(1)
	}
}

// allowed reports whether the packet was handed on, or taken by the engine itself.
func (p *captured) allowed() bool {
	return p.verdict == filter.Pass || p.verdict == filter.Control
}

// comment says what became of the packet and why, as words of the form
// key=value after the verdict.
func (p *captured) comment() string {
	var b strings.Builder
	if p.allowed() {
		b.WriteString("allowed")
	} else {
		fmt.Fprintf(&b, "denied (%s)", p.reason)
	}
	fmt.Fprintf(&b, " direction=%v", p.direction)
	if p.peer != nil {
		fmt.Fprintf(&b, " peer=%s node=%v", p.peer.name, p.peer.node)
	}
	if p.decision.Rule != "" {
		fmt.Fprintf(&b, " rule=%s", p.decision.Rule)
	}
	if p.peer != nil {
		fmt.Fprintf(&b, " epoch=%d", p.peer.filter.Epoch())
	}
	if p.decision.NewFlow {
		b.WriteString(" flow=new")
	}
	if p.decision.Would != ruleset.WouldChangeNothing {
		fmt.Fprintf(&b, " audit=%v audit_rule=%s", p.decision.Would, p.decision.WouldRule)
	}
	if o := p.decision.Candidate; o.Would != ruleset.WouldChangeNothing {
		fmt.Fprintf(&b, " candidate=%v candidate_epoch=%d candidate_rule=%s", o.Would, o.Epoch, o.Rule)
	}
	return b.String()
}

// captureFault captures a packet that reached no filter.
func captureFault(running *[]*Capture, d filter.Direction, b []byte, reason string, at time.Time) {
	if running != nil {
		capture(*running, &captured{direction: d, data: b, at: at, reason: reason})
	}
}

// captureDecided captures a packet that p's filter decided on.
func captureDecided(running []*Capture, d filter.Direction, b []byte, p *peer, decision filter.Decision, info *packet.Info, at time.Time) {
	if int(info.Length) <= len(b) {
		b = b[:info.Length]
	}
	capture(running, &captured{
		direction: d, data: b, at: at, verdict: decision.Verdict, reason: decision.Reason.String(), peer: p, decision: decision,
	})
}
