package relayserver

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
)

// maxStrangers bounds the TCP connections of one address that are no WebSocket
// yet, TLS handshakes and slow requests among them: as many again as may then
// wait for their admission there (relay.ServerConfig.HelloPerSource), since a
// node needs one of each. What is over is closed at once.
const maxStrangers = 128

// strangers counts the connections that are no WebSocket yet, by address.
type strangers struct {
	off     bool
	refused atomic.Uint64

	mu      sync.Mutex // protects all below
	sources map[netip.Addr]int
	conns   map[net.Conn]netip.Addr
}

func newStrangers(off bool) *strangers {
	return &strangers{off: off, sources: make(map[netip.Addr]int), conns: make(map[net.Conn]netip.Addr)}
}

// follow is an http.Server's ConnState.
func (s *strangers) follow(c net.Conn, state http.ConnState) {
	if s.off {
		return
	}
	switch state {
	case http.StateNew:
		if !s.enter(c) {
			s.refused.Add(1)
			c.Close()
		}
	case http.StateHijacked, http.StateClosed:
		s.leave(c)
	case http.StateActive, http.StateIdle:
	}
}

func (s *strangers) enter(c net.Conn) bool {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return true
	}
	source := tcp.AddrPort().Addr().Unmap()
	if source.Is6() {
		source = netip.PrefixFrom(source.WithZone(""), 64).Masked().Addr()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sources[source] >= maxStrangers {
		return false
	}
	s.sources[source]++
	s.conns[c] = source
	return true
}

func (s *strangers) leave(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	source, known := s.conns[c]
	if !known {
		return
	}
	delete(s.conns, c)
	if s.sources[source]--; s.sources[source] == 0 {
		delete(s.sources, source)
	}
}
