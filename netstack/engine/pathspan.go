package engine

import (
	"slices"
	"sync/atomic"

	"github.com/warren-overlay/warren/netstack/wg"
)

// pathSpan is how packets to a peer go, from one moment to the next. Who keeps one can
// follow to those after it, and nobody else keeps those that are over.
type pathSpan struct {
	path Path
	also Path                     // by which a copy of each packet goes, none for no copy
	next atomic.Pointer[pathSpan] // set once
}

// maxOthers bounds the paths that are told beside the one that was taken: that
// there were others shows by a few.
const maxOthers = 4

// notePath says how packets to the peer go from now on. Only the control goroutine
// calls it.
func (p *peer) notePath(to wg.Path) {
	now := &pathSpan{path: pathFrom(to), also: Path{Kind: PathNone}}
	if to.Both {
		now.also = pathFrom(wg.Path{Relay: to.Relay})
	}
	before := p.span.Load()
	if before != nil {
		if before.path == now.path && before.also == now.also {
			return
		}
		before.next.Store(now)
	}
	p.span.Store(now)
}

// taken returns the path of a packet that was sent during s, and what else
// it may have gone by: the path of its copy, and those that came up since, in order,
// maxOthers at most. A packet waits where there is no path, so it took the first one
// after.
func (s *pathSpan) taken() (path Path, others []Path) {
	path.Kind = PathNone
	other := func(p Path) {
		if p.Kind != PathNone && p != path && len(others) < maxOthers && !slices.Contains(others, p) {
			others = append(others, p)
		}
	}
	for ; s != nil; s = s.next.Load() {
		if path.Kind == PathNone {
			path = s.path
		}
		other(s.path)
		other(s.also)
	}
	return path, others
}

// pathFrom returns a path of WireGuard's as users see it.
func pathFrom(p wg.Path) Path {
	switch {
	case p.Direct.IsValid():
		return Path{Kind: PathDirect, Addr: p.Direct}
	case p.Relay != nil:
		if r, ok := p.Relay.(*relayConn); ok {
			return r.path()
		}
	}
	return Path{Kind: PathNone}
}
