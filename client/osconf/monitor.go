package osconf

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/warren-overlay/warren/netstack/alarm"
)

const (
	// settle is how long after the kernel's first notice the network is looked
	// at: one change comes as several notices within milliseconds. It is short,
	// as all that waits for it are users; where there is more to come, that is
	// another change.
	settle = 20 * time.Millisecond
	// minLook is the least distance of two looks: a machine on which containers
	// come and go gives notices without end.
	minLook = 100 * time.Millisecond
	// pollInterval is how often the network is looked at where the kernel gives
	// no notices, or lost one.
	pollInterval = 5 * time.Second
)

// Monitor tells when the machine's network changes in a way that matters to
// connections: other addresses, or another way out; or that it slept.
type Monitor struct {
	// Ignore says which addresses are not the machine's own network, such as
	// those of the overlay; nil ignores none. It is called from Run.
	Ignore func(netip.Addr) bool
	// Control is given the sockets that ask for the way out, as
	// net.Dialer.Control; nil for nothing. It must be set before Run.
	Control func(network, address string, c syscall.RawConn) error
	Logger  *slog.Logger

	// Suspended returns for how long the machine was suspended by now, which
	// never falls; nil for never. It must be set before Run.
	Suspended func() time.Duration

	changes chan struct{}
	// look and notices are replaced in tests.
	look    func() string
	notices func(ctx context.Context, notice chan<- struct{}) error
}

// NewMonitor returns a Monitor that ignores what ignore says.
func NewMonitor(ignore func(netip.Addr) bool, log *slog.Logger) *Monitor {
	m := &Monitor{Ignore: ignore, Logger: log, changes: make(chan struct{}, 1), notices: kernelNotices}
	m.look = m.fingerprint
	return m
}

// Changes gives a value after a change. Changes that come while nobody receives
// are one.
func (m *Monitor) Changes() <-chan struct{} { return m.changes }

// Run watches until ctx ends. It returns nil: where the kernel gives no
// notices, it looks by itself from time to time.
func (m *Monitor) Run(ctx context.Context) error {
	notice := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.notices(ctx, notice); err != nil && ctx.Err() == nil {
			m.Logger.Info("the kernel gives no notice of network changes; looking every now and then", "interval", pollInterval, "error", err)
		}
	}()
	defer func() { <-done }()
	known, looked := m.look(), time.Now()
	timer := alarm.New(pollInterval)
	defer timer.Stop()
	tick := alarm.New(wakeInterval)
	defer tick.Stop()
	var sleeper wake
	start := time.Now()
	asleep := func() bool { return sleeper.look(time.Since(start), m.suspended()) }
	asleep()
	noticed := false // whether a look is due because of a notice
	for {
		slept := false
		select {
		case <-ctx.Done():
			return nil
		case <-notice:
			// The first one counts: others must not put the look off.
			if !noticed {
				noticed = true
				timer.Set(max(settle, minLook-time.Since(looked)))
			}
			continue
		case <-tick.C:
			tick.Set(wakeInterval)
			if slept = asleep(); !slept {
				continue
			}
		case <-timer.C:
		}
		noticed = false
		timer.Set(pollInterval)
		now := m.look()
		looked = time.Now()
		switch {
		case now != known:
			m.Logger.Info("the network changed")
			m.Logger.Debug("the network is now", "addresses", now)
		case slept:
			m.Logger.Info("the machine slept, or the program was stopped")
		default:
			continue
		}
		known = now
		select {
		case m.changes <- struct{}{}:
		default:
		}
	}
}

func (m *Monitor) suspended() time.Duration {
	if m.Suspended == nil {
		return 0
	}
	return m.Suspended()
}

// fingerprint writes down what matters of the network: its interfaces with their
// MTU and addresses, without link-local ones, which come and go with containers, and the
// addresses that connections to the outside would come from. Two networks may
// well give a machine the same address: the interface tells them apart.
func (m *Monitor) fingerprint() string {
	var all []string
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Sprintf("unknown: %v", err)
	}
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			continue // it vanished meanwhile
		}
		for _, a := range addresses {
			prefix, err := netip.ParsePrefix(a.String())
			if err != nil || prefix.Addr().IsLinkLocalUnicast() || prefix.Addr().IsLoopback() || m.ignores(prefix.Addr()) {
				continue
			}
			all = append(all, fmt.Sprintf("%s#%d mtu %d %v", i.Name, i.Index, i.MTU, prefix))
		}
	}
	slices.Sort(all)
	// A UDP socket that is connected sends nothing, but has been routed. The
	// targets are the documentation's (RFC 5737, RFC 3849).
	for _, target := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		conn, err := (&net.Dialer{Control: m.Control}).Dial("udp", target)
		if err != nil {
			all = append(all, "out none")
			continue
		}
		if local, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil && !m.ignores(local.Addr()) {
			all = append(all, "out "+local.Addr().String())
		}
		conn.Close()
	}
	return strings.Join(append(all, defaultRoutes()...), " ")
}

func (m *Monitor) ignores(a netip.Addr) bool { return m.Ignore != nil && m.Ignore(a.Unmap()) }
