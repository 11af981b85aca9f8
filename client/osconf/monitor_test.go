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
		m.look = func() string { return network.Load().(string) }
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
		for range 5 {
			notice <- struct{}{}
			time.Sleep(settle / 10)
			synctest.Wait()
		}
		if change() {
			t.Error("told before it has settled")
		}
		time.Sleep(settle)
		synctest.Wait()
		if !change() || change() {
			t.Error("a burst is not one change")
		}
		notice <- struct{}{}
		time.Sleep(2 * settle)
		synctest.Wait()
		if change() {
			t.Error("told of a change that is none")
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
