package stunserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/stun"
)

// maxRequest is the longest datagram that is looked at: a request has 20 bytes
// and some attributes, and fits into what every path carries (RFC 8489, section
// 6.1).
const maxRequest = 576

// Server answers on one port.
type Server struct {
	conn                     sock.Conn
	received, answered, lost atomic.Uint64
}

// New returns a server on a port, which it owns from now on.
func New(conn sock.Conn) *Server { return &Server{conn: conn} }

// Port returns the UDP port.
func (s *Server) Port() uint16 { return s.conn.LocalPort() }

// Counters is what a server counted since it was made.
type Counters struct {
	Received uint64 // datagrams
	Answered uint64 // of these, requests that were answered
	Lost     uint64 // of these, answers that the system refused to send
}

// Counters returns what the server counted.
func (s *Server) Counters() Counters {
	return Counters{s.received.Load(), s.answered.Load(), s.lost.Load()}
}

// Run answers until the context ends, and then closes the port. It returns the
// error of closing it.
func (s *Server) Run(ctx context.Context) error {
	var readers sync.WaitGroup
	for _, r := range s.conn.Readers() {
		readers.Go(func() { s.answer(r) })
	}
	<-ctx.Done()
	err := s.conn.Close()
	readers.Wait()
	return err
}

func (s *Server) answer(r sock.Reader) {
	n := s.conn.BatchSize()
	bufs, sizes, from := make([][]byte, n), make([]int, n), make([]netip.AddrPort, n)
	slab := make([]byte, n*maxRequest)
	for i := range bufs {
		bufs[i] = slab[i*maxRequest : (i+1)*maxRequest]
	}
	var response [1][]byte
	for {
		got, err := r.ReadBatch(bufs, sizes, from)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		s.received.Add(uint64(got))
		for i := range got {
			var ok bool
			response[0], ok = stun.Respond(response[0][:0], bufs[i][:sizes[i]], from[i])
			if !ok {
				continue
			}
			s.answered.Add(1)
			if s.conn.WriteBatch(response[:], from[i]) != nil {
				s.lost.Add(1) // the asker asks again
			}
		}
	}
}
