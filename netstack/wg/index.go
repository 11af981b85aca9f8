package wg

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// indexLife is how long a receiver index may be in use: a key pair lives
	// for 180 s (RejectAfterTime) after a handshake that may take some
	// seconds.
	indexLife = 200 * time.Second
	// maxIndexes bounds the indexes of one peer: one for each initiation that
	// is repeated every 5 s during indexLife, and as many responses again. A
	// peer that makes us hand out more loses its own old ones only.
	maxIndexes = 80
)

type ownIndex struct {
	index uint32
	at    time.Time
}

// session is what a receiver index of this device stands for.
type session struct {
	peer *Peer
	// window is nil until the first transport message for the index comes.
	window atomic.Pointer[window]
}

// indexTable tells whose packets carry a receiver index of this device.
type indexTable struct {
	mu       sync.RWMutex
	sessions map[uint32]*session // protected by mu
}

// lookup returns the session of an index, nil for none.
func (t *indexTable) lookup(index uint32) *session {
	t.mu.RLock()
	s := t.sessions[index]
	t.mu.RUnlock()
	return s
}

// owner returns whose an index is, nil for nobody's.
func (t *indexTable) owner(index uint32) *Peer {
	if s := t.lookup(index); s != nil {
		return s.peer
	}
	return nil
}

// learn notes that this device gave index to p.
func (t *indexTable) learn(index uint32, p *Peer, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	expired := 0
	for _, own := range p.indexes {
		if len(p.indexes)-expired < maxIndexes && now.Sub(own.at) < indexLife {
			break
		}
		if s := t.sessions[own.index]; s != nil && s.peer == p {
			delete(t.sessions, own.index)
		}
		expired++
	}
	p.indexes = append(p.indexes[expired:], ownIndex{index, now})
	t.sessions[index] = &session{peer: p}
}

// forget drops everything about p, for good.
func (t *indexTable) forget(p *Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, own := range p.indexes {
		if s := t.sessions[own.index]; s != nil && s.peer == p {
			delete(t.sessions, own.index)
		}
	}
	p.handshake.stop()
	p.indexes, p.handshake, p.removed = nil, handshake{}, true
}
