package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/enginetest"
)

// expectInStream reads a capture until it contains each of the texts in order.
func expectInStream(t *testing.T, r io.Reader, texts ...string) []byte {
	t.Helper()
	var got []byte
	buffer := make([]byte, 4096)
	rest := 0
	for len(texts) > 0 {
		n, err := r.Read(buffer)
		got = append(got, buffer[:n]...)
		for len(texts) > 0 {
			at := bytes.Index(got[rest:], []byte(texts[0]))
			if at < 0 {
				break
			}
			rest += at + len(texts[0])
			texts = texts[1:]
		}
		if err != nil && len(texts) > 0 {
			t.Fatalf("%q did not come: %v\n%q", texts, err, got)
		}
	}
	return got
}

func TestCapture(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	audit := enginetest.Allow("watch", b.Member, packet.UDP, 53)
	audit.Mode, audit.Action = ruleset.Audit, ruleset.Deny
	a.apply(t, a.Config(now, &ruleset.RuleSet{Out: []ruleset.Rule{enginetest.Allow("dns", b.Member, packet.UDP, 53), audit}}, b.Member))
	b.apply(t, b.Config(now, enginetest.AllowAll(a.Member), a.Member))

	all, err := a.engine.Capture(CaptureConfig{})
	if err != nil {
		t.Fatal(err)
	}
	denied, err := a.engine.Capture(CaptureConfig{Denied: true, Peer: b.Node, Packets: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- all.Write(ctx, writer)
		writer.Close()
	}()
	a.send(t, b, 53, "the question")
	a.tun.Send(enginetest.UDP(netip.AddrPortFrom(a.Addr4(), 5000), netip.AddrPortFrom(b.Addr4(), 54), "no question"))
	a.tun.Send([]byte{0x45, 0, 0})
	expectInStream(t, reader,
		"the question", "allowed direction=out peer=db node=n2 rule=dns epoch=", "flow=new audit=would_deny audit_rule=watch",
		"no question", "denied (drop_no_rule) direction=out peer=db node=n2 epoch=",
		"denied (drop_truncated) direction=out")

	// The other one ends by itself, at its bound.
	var file bytes.Buffer
	if err := denied.Write(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	if text := file.String(); strings.Contains(text, "the question") || strings.Contains(text, "truncated") || strings.Count(text, "denied (") != 1 {
		t.Errorf("%q", text)
	}

	cancel()
	expectInStream(t, reader, "\x05\x00\x00\x00") // statistics
	if err := <-done; err != nil {
		t.Error(err)
	}
	if a.engine.captures.running.Load() != nil {
		t.Error("something is still captured")
	}
}

// TestDeniedLeavesOutWhatIsTaken: what engines say to each other in the tunnel is
// handed on to nobody, and was not denied for that.
func TestDeniedLeavesOutWhatIsTaken(t *testing.T) {
	_, a, b := two(t)
	a.apply(t, a.Config(time.Now(), enginetest.AllowAll(b.Member), b.Member))
	denied, err := a.engine.Capture(CaptureConfig{Denied: true})
	if err != nil {
		t.Fatal(err)
	}
	for verdict, want := range map[filter.Verdict]int{filter.Control: 0, filter.Pass: 0, filter.Drop: 1, filter.Reject: 1} {
		capture([]*Capture{denied}, &captured{data: []byte{1}, verdict: verdict})
		if n := len(denied.queue); n != want {
			t.Errorf("%v: %d packets captured, want %d", verdict, n, want)
		}
		for len(denied.queue) > 0 {
			<-denied.queue
		}
	}
}

func TestCapturesAreBounded(t *testing.T) {
	_, a, b := two(t)
	a.apply(t, a.Config(time.Now(), enginetest.AllowAll(b.Member), b.Member))
	var running []*Capture
	for range MaxCaptures {
		c, err := a.engine.Capture(CaptureConfig{})
		if err != nil {
			t.Fatal(err)
		}
		running = append(running, c)
	}
	if _, err := a.engine.Capture(CaptureConfig{}); !errors.Is(err, ErrTooManyCaptures) {
		t.Errorf("one more: %v", err)
	}
	// Nobody reads: the queue has a bound.
	data := make([]byte, 1400)
	for range 2 * maxCaptureQueue / len(data) {
		capture(running[:1], &captured{data: data})
	}
	c := running[0]
	if w := c.waiting.Load(); w > maxCaptureQueue || c.dropped.Load() == 0 || uint64(len(c.queue))+c.dropped.Load() != c.received.Load() {
		t.Errorf("%d bytes and %d packets wait, %d of %d dropped", w, len(c.queue), c.dropped.Load(), c.received.Load())
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range running {
		if err := c.Write(ended, io.Discard); err != nil {
			t.Error(err)
		}
	}
	broken, err := a.engine.Capture(CaptureConfig{})
	if err != nil {
		t.Fatal(err)
	}
	reader, writer := io.Pipe()
	reader.Close()
	if err := broken.Write(t.Context(), writer); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a reader that is gone: %v", err)
	}
	if a.engine.captures.running.Load() != nil {
		t.Error("something is still captured")
	}
}
