//go:build linux

package netns

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// mesh is a flow of datagrams from each of some nodes to each of others.
type mesh struct {
	pulses map[string]*lab.Pulse
	counts map[string]int // of what had arrived by mark
}

// meshPort is the first of the ports on which a mesh's receivers listen.
const meshPort = 6000

// startMesh opens the flows, and waits until datagrams of all of them arrive.
func startMesh(t *testing.T, from, to []*lab.Node) *mesh {
	t.Helper()
	m := &mesh{pulses: make(map[string]*lab.Pulse)}
	for _, b := range to {
		for i, a := range from {
			m.pulses[a.Host.Name+" to "+b.Host.Name] = lab.StartLossyPulse(t, a.Host, b.Host, address(b, "-4", meshPort+i))
		}
	}
	m.mark()
	lab.Eventually(t, time.Minute, func() error { return m.arrived(50) })
	return m
}

// mark begins to count anew.
func (m *mesh) mark() {
	m.counts = make(map[string]int)
	for name, p := range m.pulses {
		m.counts[name] = p.Count()
	}
}

// arrived says of which flows less than n datagrams have arrived since mark.
func (m *mesh) arrived(n int) error {
	var errs []error
	for name, p := range m.pulses {
		if got := p.Count() - m.counts[name]; got < n {
			errs = append(errs, fmt.Errorf("%s: %d datagrams arrived", name, got))
		}
	}
	return errors.Join(errs...)
}

// gap returns the longest gap of the flows since a moment, and requires that none is
// over the limit.
func (m *mesh) gap(t *testing.T, since time.Time, limit time.Duration, after string) (longest time.Duration) {
	t.Helper()
	for name, p := range m.pulses {
		gap := p.Gap(since)
		if longest = max(longest, gap); gap > limit {
			t.Errorf("%s: a gap of %v after %s", name, gap, after)
		}
	}
	return longest
}
