package engine

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-overlay/warren/netstack/nat"
)

// PortMapper asks the gateway of the moment to forward ports to this machine.
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
	id    uint64
	grant nat.Grant
	err   error
}

// mapping carries out what a nat.Mapper wants. It belongs to the control
// goroutine.
type mapping struct {
	mapper  *nat.Mapper
	asks    PortMapper // nil for none
	answers chan mapped
	cancel  context.CancelFunc // of the request under way, nil for none
}

// setMapping says whether the port is to be mapped, and the addresses outside
// that are forwarded to it.
func (c *control) setMapping() {
	on := c.cfg != nil && c.cfg.PortMapping && c.mapping.asks != nil
	if !on && c.mapping.cancel != nil {
		time.AfterFunc(offGrace, c.mapping.cancel)
	}
	c.mapping.mapper.Set(on, c.device.Port(), c.now())
	c.setForwarded()
}

// setForwarded tells the discoverer of the addresses outside that lead here:
// those that the user named, and the mapping's.
func (c *control) setForwarded() {
	var forwarded []netip.AddrPort
	if c.cfg != nil {
		forwarded = slices.Clone(c.cfg.Endpoints)
	}
	if external := c.mapping.mapper.Mapping().External; external.IsValid() {
		forwarded = append(forwarded, external)
	}
	c.nat.SetForwarded(forwarded, c.now())
}

// handleMapped takes the answer to a request.
func (c *control) handleMapped(m mapped) {
	if m.err != nil {
		c.e.log.Debug("no port mapping", "error", m.err)
	}
	if err := c.mapping.mapper.HandleGrant(m.id, m.grant, m.err, c.now()); err != nil {
		c.e.log.Debug("port mapping refused", "protocol", m.grant.Protocol.String(), "error", err)
	}
}

// drainMapping asks the gateway what the mapper wants to be asked, in goroutines
// of their own, and tells of mappings that came or went.
func (c *control) drainMapping(ctx context.Context, running *sync.WaitGroup) {
	m := &c.mapping
	if g, ok := m.mapper.NextRelease(); ok {
		running.Go(func() { c.release(ctx, g) })
	}
	if r, ok := m.mapper.NextRequest(); ok {
		if m.cancel != nil {
			m.cancel() // it is of another network, or another port
		}
		var asking context.Context
		asking, m.cancel = context.WithTimeout(ctx, mapTimeout)
		running.Go(func() {
			grant, err := m.asks.Map(asking, r)
			select {
			case m.answers <- mapped{r.ID, grant, err}:
			case <-ctx.Done():
			}
		})
	}
	if event, ok := m.mapper.NextEvent(); ok {
		c.e.log.Debug("port mapping", "state", event.State.String(), "protocol", event.Protocol.String(), "external", event.External)
		c.setForwarded()
	}
}

func (c *control) release(ctx context.Context, g nat.Grant) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := c.mapping.asks.Release(ctx, g); err != nil {
		c.e.log.Debug("deleting a port mapping; it ends by itself", "error", err)
	}
}

// endMapping deletes the mapping before the engine stops.
func (c *control) endMapping() {
	if c.mapping.cancel != nil {
		c.mapping.cancel()
	}
	c.mapping.mapper.Set(false, 0, c.now())
	if g, ok := c.mapping.mapper.NextRelease(); ok {
		c.release(context.Background(), g)
	}
}
