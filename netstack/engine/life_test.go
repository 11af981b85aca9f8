package engine

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
)

func TestRunEndsWithItsDevice(t *testing.T) {
	device := simnet.NewTUN(0)
	e, err := New(Config{TUN: device, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- e.Run(t.Context()) }()
	if err := e.Apply(nil); err != nil {
		t.Fatal(err)
	}
	device.Close()
	select {
	case err := <-done:
		if !errors.Is(err, ErrDevice) {
			t.Fatalf("Run: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Run goes on without its device")
	}
	if err := e.Run(t.Context()); !errors.Is(err, ErrStopped) {
		t.Fatalf("second Run: %v", err)
	}
}

func TestRunSaysThatThePortIsTaken(t *testing.T) {
	taken := errors.New("taken")
	device := simnet.NewTUN(0)
	e, err := New(Config{
		TUN: device, Logger: slog.New(slog.DiscardHandler),
		Listen: func(uint16) (sock.Conn, error) { return nil, taken },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); !errors.Is(err, taken) {
		t.Fatalf("Run: %v", err)
	}
	if device.Send([]byte("x")) {
		t.Fatal("the device is still open")
	}
	if err := e.Apply(nil); !errors.Is(err, ErrStopped) {
		t.Fatalf("Apply: %v", err)
	}
}

func TestRunSaysThatThereIsNoRandomness(t *testing.T) {
	e, err := New(Config{
		TUN: simnet.NewTUN(0), Logger: slog.New(slog.DiscardHandler), Rand: io.LimitReader(nil, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); !errors.Is(err, io.EOF) {
		t.Fatalf("Run: %v", err)
	}
}

func TestNewRefusesWhatIsMissing(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no device": {Logger: slog.New(slog.DiscardHandler)},
		"no logger": {TUN: simnet.NewTUN(0)},
	} {
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEverythingAtOnce is for the race detector: all that can be called, from
// many goroutines, while packets pass.
func TestEverythingAtOnce(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	configs := []func() error{
		func() error { return a.engine.Apply(a.Config(now, enginetest.AllowAll(b.Member), b.Member)) },
		func() error { return a.engine.Apply(a.Config(now, nil, b.Member)) },
		func() error { return a.engine.Apply(a.Config(now, enginetest.AllowAll())) },
		func() error { return a.engine.Apply(nil) },
	}
	b.apply(t, b.Config(now, enginetest.AllowAll(a.Member), a.Member))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	again := func(f func()) {
		running.Go(func() {
			for ctx.Err() == nil {
				f()
			}
		})
	}
	ours, theirs := netip.AddrPortFrom(a.Addr4(), 5000), netip.AddrPortFrom(b.Addr4(), 53)
	again(func() { a.tun.Send(enginetest.UDP(ours, theirs, "there")) })
	again(func() { b.tun.Send(enginetest.UDP(theirs, ours, "back")) })
	for _, n := range []*node{a, b} {
		again(func() {
			select {
			case <-n.tun.Received():
			case <-ctx.Done():
			}
		})
		again(func() { n.engine.Status() })
		again(func() {
			select {
			case <-n.engine.Reach():
			case <-ctx.Done():
			}
		})
	}
	again(func() {
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		a.engine.Ping(short, b.Addr6())
	})
	again(a.engine.HandleNetworkChange)
	for i := range 200 {
		if err := configs[i%len(configs)](); err != nil {
			t.Error(err)
			break
		}
	}
	cancel()
	running.Wait()
	// And it still works.
	if err := configs[0](); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for {
		a.tun.Send(enginetest.UDP(ours, theirs, "after"))
		select {
		case <-b.tun.Received():
			return
		case <-time.After(100 * time.Millisecond):
		}
		if time.Since(start) > patience {
			t.Fatalf("nothing passes: %+v", a.engine.Status())
		}
	}
}
