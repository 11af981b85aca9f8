package wg

import (
	"sync"
	"sync/atomic"
)

// maxStrays bounds the addresses that are told apart from which one peer's packets
// come beside its path: a peer has one to send from, and another for as long as it
// moves.
const maxStrays = 8

// Stray is how many transport messages came from an address that is not where the
// path to the peer leads.
type Stray struct {
	From    Origin
	Packets uint64
}

// strays counts them for one peer. Nothing about them is authentic: they carry an
// index that the peer was given, and whoever reads the peer's packets knows that.
type strays struct {
	some atomic.Bool

	mu     sync.Mutex // protects all below
	places [maxStrays]Stray
	known  int // of places
	others uint64
}

func (s *strays) note(from Origin, packets uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.some.Store(true)
	for i := range s.places[:s.known] {
		if s.places[i].From == from {
			s.places[i].Packets += packets
			return
		}
	}
	if s.known == maxStrays {
		s.others += packets
		return
	}
	s.places[s.known] = Stray{from, packets}
	s.known++
}

// TakeStrays returns from where transport messages with the peer's index came since
// the last call, but for those from where its path leads and those over relays, and
// how many more came from further places than the eight that are told apart. Nothing
// about them is authentic: they may be forged, or repetitions.
func (p *Peer) TakeStrays() (places []Stray, others uint64) {
	s := &p.strays
	if !s.some.Load() {
		return nil, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.some.Store(false)
	places, others = append(places, s.places[:s.known]...), s.others
	s.known, s.others = 0, 0
	return places, others
}

// strayed reports whether a direct packet came from elsewhere than where the path
// leads.
func (path *Path) strayed(from *Origin) bool {
	if !from.Addr.IsValid() {
		return false
	}
	socket := uint32(0)
	if path.Socket != nil {
		socket = path.Socket.number
	}
	return from.Addr != path.Direct || from.Socket != socket
}
