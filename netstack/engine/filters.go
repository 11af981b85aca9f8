package engine

import (
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
)

// quota bounds what all filters hold together.
type quota struct{ flows, fragments atomic.Int64 }

var _ filter.Quota = (*quota)(nil)

// TakeFlow implements filter.Quota.
func (q *quota) TakeFlow() bool { return take(&q.flows, filter.DeviceFlows) }

// ReturnFlow implements filter.Quota.
func (q *quota) ReturnFlow() { q.flows.Add(-1) }

// TakeFragment implements filter.Quota.
func (q *quota) TakeFragment() bool { return take(&q.fragments, filter.DeviceFragments) }

// ReturnFragment implements filter.Quota.
func (q *quota) ReturnFragment() { q.fragments.Add(-1) }

func take(n *atomic.Int64, limit int64) bool {
	if n.Add(1) <= limit {
		return true
	}
	n.Add(-1)
	return false
}

func (c *control) newFilterDevice() *filter.Device {
	mtu, err := c.e.cfg.TUN.MTU()
	if err != nil || mtu < 0 || mtu > 1<<16-1 {
		mtu = 0 // the filter's default
	}
	return filter.NewDevice(filter.Config{
		Seed: c.seed, Quota: c.quota, Started: c.began, MTU: uint16(mtu),
		Lead: c.lead(), Overlay: c.overlay(), Protected: c.protected(), Connected: c.connected, ControlProtocol: inbandProtocol, Events: true,
	})
}

// setFilterDevice tells all filters of this machine's own addresses.
func (c *control) setFilterDevice(now time.Time) {
	c.filter = c.newFilterDevice()
	for _, p := range c.peers {
		p.mu.Lock()
		p.filter.SetDevice(c.filter, now)
		c.setEnd(p, now)
		p.mu.Unlock()
		c.sweep(p, now)
		c.schedule(p)
	}
}

// sweep takes out of p's filter what has ended, and tells both sides of flows
// that were cut.
func (c *control) sweep(p *peer, now time.Time) {
	p.sweep = time.Time{}
	for {
		p.mu.Lock()
		next, ok := p.filter.NextTimeout()
		due := ok && !now.Before(next)
		if due {
			p.filter.HandleTimeout(now)
		}
		p.mu.Unlock()
		if !due {
			if ok {
				p.sweep = next
			}
			break
		}
		p.yield()
	}
	c.drainCuts(p)
	c.collect(p, now)
}

func (c *control) drainCuts(p *peer) {
	for {
		p.mu.Lock()
		cut, ok := p.filter.NextCut()
		p.mu.Unlock()
		if !ok {
			return
		}
		c.e.host.deliver(cut.AppendLocal)
		if packet := cut.AppendPeer(nil); len(packet) > 0 {
			c.e.host.reader.inject(packet)
		}
		c.e.log.Debug("flow cut", "peer", p.member.Name(), "protocol", cut.Flow.Protocol, "why", cut.End)
	}
}
