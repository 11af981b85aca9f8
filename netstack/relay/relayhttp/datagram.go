package relayhttp

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/stun"
)

// maxDatagram is the longest datagram that is looked at where the system does not
// coalesce; clients send nothing that an Ethernet does not carry whole.
const maxDatagram = 1536

// views reads datagrams without copying them where the system can; they may be
// written to, and hold until the next call.
type views struct {
	reader sock.Reader
	direct sock.ViewReader // nil where the system cannot
	bufs   [][]byte        // of maxDatagram bytes each, where it cannot
	sizes  []int

	datagrams [][]byte
	from      []netip.AddrPort
}

func newViews(r sock.Reader, batch int) *views {
	v := &views{reader: r}
	if direct, ok := r.(sock.ViewReader); ok {
		v.direct, batch = direct, sock.MaxViews
	} else {
		slab := make([]byte, batch*maxDatagram)
		for i := range batch {
			v.bufs = append(v.bufs, slab[i*maxDatagram:(i+1)*maxDatagram:(i+1)*maxDatagram])
		}
		v.sizes = make([]int, batch)
	}
	v.datagrams, v.from = make([][]byte, batch), make([]netip.AddrPort, batch)
	return v
}

// read returns the datagrams that came and their sources, and whether as many
// came as one call takes: then there may be more.
func (v *views) read() (datagrams [][]byte, from []netip.AddrPort, full bool, err error) {
	var n int
	if v.direct != nil {
		n, err = v.direct.ReadViews(v.datagrams, v.from)
	} else if n, err = v.reader.ReadBatch(v.bufs, v.sizes, v.from); err == nil {
		for i := range n {
			v.datagrams[i] = v.bufs[i][:v.sizes[i]]
		}
	}
	return v.datagrams[:n], v.from[:n], n >= len(v.datagrams)/2, err
}

// serveDatagrams forwards what comes to the port until it is closed.
func (s *Server) serveDatagrams(readers *sync.WaitGroup) {
	for _, r := range s.port.Readers() {
		readers.Go(func() { s.forward(r) })
	}
}

// forward is the goroutine of one socket: it takes a batch, has the core rewrite
// it in place, and sends it on in one run for each destination.
func (s *Server) forward(r sock.Reader) {
	in := newViews(r, s.port.BatchSize())
	var out batch
	for {
		datagrams, from, full, err := in.read()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.receiveErrors.Add(1)
			continue
		}
		s.mu.Lock()
		now := s.now()
		for i := 0; i < len(datagrams); {
			if stun.Is(datagrams[i]) {
				out.questions = append(out.questions, i)
				i++
				continue
			}
			end := i + 1
			for end < len(datagrams) && from[end] == from[i] && !stun.Is(datagrams[end]) {
				end++
			}
			for source := from[i]; i < end; {
				to, packets, handled := s.core.HandleDatagrams(source, datagrams[i:end], now)
				if to.IsValid() {
					out.add(to, packets)
				}
				i += handled
			}
		}
		s.core.HandleBacklog(full, now)
		s.commands()
		s.mu.Unlock()
		for _, i := range out.questions {
			s.questions.Add(1)
			if answer, ok := stun.Respond(nil, datagrams[i], from[i]); ok {
				out.add(from[i], [][]byte{answer})
			}
		}
		for i := range out.runs[:out.used] {
			if err := s.port.WriteBatch(out.runs[i].packets, out.runs[i].to); err != nil {
				s.sendErrors.Add(1)
			}
		}
		out.reset()
	}
}

// batch is what one batch of datagrams is sent on as.
type batch struct {
	runs      []run
	used      int
	last      int   // the run of the datagram before
	questions []int // indexes of STUN requests
}

type run struct {
	to      netip.AddrPort
	packets [][]byte
}

// add appends datagrams to the run of their destination, so that the order
// towards each stays.
func (b *batch) add(to netip.AddrPort, packets [][]byte) {
	if b.last >= b.used || b.runs[b.last].to != to {
		b.last = b.find(to)
	}
	r := &b.runs[b.last]
	r.packets = append(r.packets, packets...)
}

func (b *batch) find(to netip.AddrPort) int {
	for i := range b.runs[:b.used] {
		if b.runs[i].to == to {
			return i
		}
	}
	if b.used == len(b.runs) {
		b.runs = append(b.runs, run{})
	}
	b.runs[b.used].to = to
	b.used++
	return b.used - 1
}

func (b *batch) reset() {
	for i := range b.runs[:b.used] {
		clear(b.runs[i].packets)
		b.runs[i].packets = b.runs[i].packets[:0]
	}
	b.used, b.last, b.questions = 0, 0, b.questions[:0]
}

// DatagramErrors counts what the operating system refused.
type DatagramErrors struct{ Receive, Send uint64 }

// DatagramErrors returns what the operating system refused, and how many STUN
// requests came.
func (s *Server) DatagramErrors() (errs DatagramErrors, questions uint64) {
	return DatagramErrors{s.receiveErrors.Load(), s.sendErrors.Load()}, s.questions.Load()
}
