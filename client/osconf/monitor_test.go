package osconf

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestMonitor: a burst of notices is one change, told once it has settled; a
// notice of nothing that matters is none; without notices, changes are found
// all the same.
func TestMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network atomic.Value
		network.Store("")
		notice := make(chan struct{})
		m := NewMonitor(nil, slog.New(slog.DiscardHandler))
		var looks atomic.Int32
		m.look = func() string { looks.Add(1); return network.Load().(string) }
		m.notices = func(ctx context.Context, out chan<- struct{}) error {
			for {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-notice:
					select {
					case out <- struct{}{}:
					default:
					}
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()

		change := func() bool {
			select {
			case <-m.Changes():
				return true
			default:
				return false
			}
		}
		network.Store("wifi")
		time.Sleep(minLook)
		for range 5 {
			notice <- struct{}{}
			time.Sleep(settle / 10)
			synctest.Wait()
		}
		if change() {
			t.Error("told before it has settled")
		}
		time.Sleep(settle / 2)
		synctest.Wait()
		if !change() || change() {
			t.Error("a burst is not one change")
		}
		notice <- struct{}{}
		time.Sleep(2 * minLook)
		synctest.Wait()
		if change() {
			t.Error("told of a change that is none")
		}
		// Notices without end put nothing off, and cost no more than a look each
		// tenth of a second.
		before := looks.Load()
		network.Store("cable")
		var told []int
		for i := range 1000 {
			notice <- struct{}{}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if change() {
				told = append(told, i+1)
			}
		}
		if len(told) != 1 || told[0] > int(minLook/time.Millisecond) {
			t.Errorf("told %v ms after the first of many notices", told)
		}
		if n := looks.Load() - before; n < 5 || n > 11 {
			t.Errorf("%d looks in a second", n)
		}
		network.Store("mobile")
		time.Sleep(pollInterval)
		synctest.Wait()
		if !change() {
			t.Error("not found without a notice")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestSleep: a machine that slept is told of, whether its network is another or
// not, once and at once.
func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var suspended atomic.Int64
		m := NewMonitor(nil, slog.New(slog.DiscardHandler))
		m.look = func() string { return "wifi" }
		m.notices = func(ctx context.Context, _ chan<- struct{}) error { <-ctx.Done(); return ctx.Err() }
		m.Suspended = func() time.Duration { return time.Duration(suspended.Load()) }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(m.changes) != 0 {
			t.Error("told of a sleep though it was awake")
		}
		suspended.Store(int64(time.Hour))
		time.Sleep(wakeInterval)
		synctest.Wait()
		if len(m.changes) != 1 {
			t.Error("not told of an hour's sleep within a second")
		}
		<-m.Changes()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(m.changes) != 0 {
			t.Error("told again")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestWake: what cannot be accounted for is sleep, whichever clock stood still.
func TestWake(t *testing.T) {
	second := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
	for _, c := range []struct {
		name               string
		running, suspended time.Duration
		want               bool
	}{
		{"a second", second(1), 0, false},
		{"a busy machine", second(4), 0, false},
		{"a nap that paths survive", second(1), second(4), false},
		{"both together", second(4), second(3), true},
		{"suspended", second(0.2), second(6), true},
		{"suspended between two looks", second(0), second(5.5), true},
		{"the program was stopped for 30 s", second(31), 0, true},
		{"the program's clock ran on while the machine slept", second(3600), 0, true},
		{"early", second(0.1), 0, false},
	} {
		w := wake{running: time.Hour, suspended: time.Minute}
		if got := w.look(time.Hour+c.running, time.Minute+c.suspended); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		if w.look(time.Hour+c.running+wakeInterval, time.Minute+c.suspended) {
			t.Errorf("%s: told twice", c.name)
		}
	}
}

// TestRealNetwork: the system can be asked, and Run ends.
func TestRealNetwork(t *testing.T) {
	m := NewMonitor(func(a netip.Addr) bool { return a == netip.MustParseAddr("100.64.0.1") }, slog.New(slog.DiscardHandler))
	if text := m.fingerprint(); strings.HasPrefix(text, "unknown") || strings.Contains(text, "127.0.0.1") {
		t.Errorf("network %q", text)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	notices := m.notices
	m.notices = func(ctx context.Context, out chan<- struct{}) error {
		close(started)
		err := notices(ctx, out)
		if runtime.GOOS == "linux" && ctx.Err() == nil {
			t.Errorf("the kernel's notices: %v", err)
		}
		return err
	}
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	<-started
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
