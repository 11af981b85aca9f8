package engine

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// resolveTimeout bounds one lookup of STUN servers' names.
const resolveTimeout = 5 * time.Second

// resolver finds the addresses of STUN servers. Names are looked up in a
// goroutine of their own, one set of names at a time.
type resolver struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	found  chan []netip.AddrPort

	wanted, asked []string
	failed        atomic.Bool   // the last lookup found less than it should
	busy          chan struct{} // holds a value while a lookup is going on
}

func newResolver(e *Engine) *resolver {
	lookup := e.cfg.LookupHost
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return &resolver{lookup: lookup, found: make(chan []netip.AddrPort), busy: make(chan struct{}, 1)}
}

// set says which servers are wanted, as host:port.
func (r *resolver) set(servers []string) { r.wanted = slices.Clone(servers) }

// retry has names looked up again of which some were not found.
func (r *resolver) retry() {
	if r.failed.Swap(false) {
		r.asked = nil
	}
}

// start begins a lookup where another set is wanted than was asked for.
func (r *resolver) start(ctx context.Context, running *sync.WaitGroup) {
	if slices.Equal(r.wanted, r.asked) {
		return
	}
	select {
	case r.busy <- struct{}{}:
	default:
		return // the answer that comes will start the next
	}
	r.asked = r.wanted
	servers := r.wanted
	running.Go(func() {
		addrs := r.resolve(ctx, servers)
		<-r.busy
		select {
		case r.found <- addrs:
		case <-ctx.Done():
		}
	})
}

func (r *resolver) resolve(ctx context.Context, servers []string) []netip.AddrPort {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var out []netip.AddrPort
	for _, s := range servers {
		if a, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, a)
			continue
		}
		host, service, err := net.SplitHostPort(s)
		if err != nil {
			continue
		}
		port, err := strconv.ParseUint(service, 10, 16)
		if err != nil {
			continue
		}
		addrs, err := r.lookup(ctx, host)
		if err != nil {
			r.failed.Store(true)
			continue
		}
		for _, a := range addrs {
			out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(port)))
		}
	}
	return out
}
