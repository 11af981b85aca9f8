package engine

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-overlay/warren/netstack/nat"
)

// PortMapper asks the gateways of the moment to forward ports to this machine, and
// to let in what comes to them over IPv6.
// *portmap.Client is one. Methods may be called concurrently.
type PortMapper interface {
	// Map asks for a mapping; the error says why there is none.
	Map(ctx context.Context, r nat.MapRequest) (nat.Grant, error)
	// Release deletes what was granted.
	Release(ctx context.Context, g nat.Grant) error
}

const (
	// mapTimeout bounds one request to the gateway, in all protocols after each
	// other: two and a half seconds for those over UDP, and for UPnP a search and
	// a handful of HTTP requests.
	mapTimeout = 20 * time.Second
	// releaseTimeout bounds the deletion of a mapping: it ends by itself, and the
	// end of the program waits for it.
	releaseTimeout = 2 * time.Second
	// offGrace is how long a request that is under way may go on after port mapping
	// was switched off: what is granted meanwhile is known, and is deleted. A
	// gateway answers within milliseconds, and deleting what there was before waits
	// for the request to end.
	offGrace = time.Second
)

// mapped is the answer to a request for a mapping.
type mapped struct {
	of    *asking
	id    uint64
	grant nat.Grant
	err   error
}

// asks is what is common to a nat.Mapper and a nat.Pinholes: what to ask a gateway,
// and what it answered.
type asks interface {
	NextRequest() (nat.MapRequest, bool)
	NextRelease() (nat.Grant, bool)
	HandleGrant(id uint64, g nat.Grant, failure error, now time.Time) error
}

// asking is the conversation with the gateway of one address family.
type asking struct {
	machine asks
	cancel  context.CancelFunc // of the request under way, nil for none
}

// mapping carries out what a nat.Mapper and a nat.Pinholes want. It belongs to the
// control goroutine.
type mapping struct {
	mapper     *nat.Mapper   // of IPv4
	pinholes   *nat.Pinholes // of IPv6
	ipv4, ipv6 asking
	gateway    PortMapper // nil for none
	answers    chan mapped
}

func newMapping(gateway PortMapper, refuse func(netip.Addr) bool, now time.Time) mapping {
	m := mapping{
		mapper: nat.NewMapper(refuse, now), pinholes: nat.NewPinholes(refuse, now),
		gateway: gateway, answers: make(chan mapped),
	}
	m.ipv4.machine, m.ipv6.machine = m.mapper, m.pinholes
	return m
}

// both are the conversations.
func (m *mapping) both() [2]*asking { return [2]*asking{&m.ipv4, &m.ipv6} }

// setMapping says whether the port is to be mapped, at which addresses of IPv6 it
// is to be open, and the addresses outside that are forwarded to it.
func (c *control) setMapping() {
	m := &c.mapping
	on := c.cfg != nil && c.cfg.PortMapping && m.gateway != nil
	for _, a := range m.both() {
		if !on && a.cancel != nil {
			time.AfterFunc(offGrace, a.cancel)
		}
	}
	m.mapper.Set(on, c.device.Port(), c.now())
	m.pinholes.Set(on, c.device.Port(), c.localAddrs(), c.now())
	c.setForwarded()
}

// localAddrs are this machine's addresses as they were listed last.
func (c *control) localAddrs() (out []netip.Addr) {
	for _, a := range c.local {
		out = append(out, a.Addr())
	}
	return out
}

// setForwarded tells the discoverer of the addresses outside that lead here:
// those that the user named, the mapping's, and those of pinholes where the
// gateway translates addresses of IPv6. Other pinholes are at addresses of this
// machine, of which peers are told anyway.
func (c *control) setForwarded() {
	var forwarded []netip.AddrPort
	if c.cfg != nil {
		forwarded = slices.Clone(c.cfg.Endpoints)
	}
	if external := c.mapping.mapper.Mapping().External; external.IsValid() {
		forwarded = append(forwarded, external)
	}
	for _, m := range c.mapping.pinholes.Mappings() {
		if m.External.IsValid() && m.External != netip.AddrPortFrom(m.Internal, c.device.Port()) {
			forwarded = append(forwarded, m.External)
		}
	}
	c.nat.SetForwarded(forwarded, c.now())
}

// handleMapped takes the answer to a request.
func (c *control) handleMapped(m mapped) {
	if m.err != nil {
		c.e.log.Debug("no port mapping", "error", m.err)
	}
	if err := m.of.machine.HandleGrant(m.id, m.grant, m.err, c.now()); err != nil {
		c.e.log.Debug("port mapping refused", "protocol", m.grant.Protocol.String(), "error", err)
	}
}

// drainMapping asks the gateways what is to be asked, in goroutines of their own,
// and tells of mappings that came or went.
func (c *control) drainMapping(ctx context.Context, running *sync.WaitGroup) {
	for _, a := range c.mapping.both() {
		if g, ok := a.machine.NextRelease(); ok {
			running.Go(func() { c.release(ctx, g) })
		}
		if r, ok := a.machine.NextRequest(); ok {
			c.request(ctx, running, a, r)
		}
	}
	changed := c.mapping.pinholes.NextEvent()
	if changed {
		for _, m := range c.mapping.pinholes.Mappings() {
			c.e.log.Debug("pinhole", "state", m.State.String(), "protocol", m.Protocol.String(), "external", m.External)
		}
	}
	if event, ok := c.mapping.mapper.NextEvent(); ok {
		c.e.log.Debug("port mapping", "state", event.State.String(), "protocol", event.Protocol.String(), "external", event.External)
		changed = true
	}
	if changed {
		c.setForwarded()
	}
}

// request asks a gateway, in a goroutine of its own.
func (c *control) request(ctx context.Context, running *sync.WaitGroup, a *asking, r nat.MapRequest) {
	if a.cancel != nil {
		a.cancel() // it is of another network, or another port
	}
	var bounded context.Context
	bounded, a.cancel = context.WithTimeout(ctx, mapTimeout)
	running.Go(func() {
		grant, err := c.mapping.gateway.Map(bounded, r)
		select {
		case c.mapping.answers <- mapped{a, r.ID, grant, err}:
		case <-ctx.Done():
		}
	})
}

func (c *control) release(ctx context.Context, g nat.Grant) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := c.mapping.gateway.Release(ctx, g); err != nil {
		c.e.log.Debug("deleting a port mapping; it ends by itself", "error", err)
	}
}

// endMapping deletes all mappings before the engine stops, beside each other: a
// gateway that does not answer keeps it up once.
func (c *control) endMapping() {
	c.mapping.mapper.Set(false, 0, c.now())
	c.mapping.pinholes.Set(false, 0, c.localAddrs(), c.now())
	var releases sync.WaitGroup
	for _, a := range c.mapping.both() {
		if a.cancel != nil {
			a.cancel()
		}
		for {
			g, ok := a.machine.NextRelease()
			if !ok {
				break
			}
			releases.Go(func() { c.release(context.Background(), g) })
		}
	}
	releases.Wait()
}
