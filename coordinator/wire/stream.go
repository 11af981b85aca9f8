package wire

import (
	"bytes"
	"maps"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
)

// Stream is what one node was told so far on one connection. It turns new
// views into the messages that take the node there, and keeps the hash of what
// the node holds, so that a change of one peer costs one peer and not the map.
type Stream struct {
	held Map // Peers is the stream's own
	hash Hash
}

// Begin returns a stream whose node holds m, under the sequence that m has. It
// takes over m but for what maps share.
func Begin(m *Map) *Stream {
	s := &Stream{held: *m, hash: m.Hash()}
	if s.held.Peers == nil {
		s.held.Peers = make(map[ident.NodeID]Peer)
	}
	return s
}

// Map returns what the node holds. It is valid until the next call and must
// not be written to.
func (s *Stream) Map() *Map { return &s.held }

// Hash returns the hash of what the node holds.
func (s *Stream) Hash() Hash { return s.hash }

// Whole returns the delta to m, whose sequence does not matter, and nil where
// there is nothing to tell. It takes over m but for what maps share. A nil
// RelayToken of m keeps the one that the node has.
func (s *Stream) Whole(m *Map) *Delta {
	next := *m
	next.Sequence = s.held.Sequence + 1
	if next.RelayToken == nil {
		next.RelayToken = s.held.RelayToken
	}
	if next.Peers == nil {
		next.Peers = make(map[ident.NodeID]Peer)
	}
	d := next.diff(&s.held, s.hash, Hash{})
	if d.Empty() {
		return nil
	}
	d.Hash = s.hash
	d.rehash(&s.held)
	s.held, s.hash = next, d.Hash
	return d
}

// rehash makes d.Hash, which is that of old, the hash of what d turns old into.
func (d *Delta) rehash(old *Map) {
	if d.Self != nil {
		d.Hash.mix(hashBytes("self", old.Self))
		d.Hash.mix(hashBytes("self", d.Self))
	}
	if d.Rules != nil {
		d.Hash.mix(hashBytes("rules", old.Rules))
		d.Hash.mix(hashBytes("rules", d.Rules))
	}
	if d.Settings != nil {
		d.Hash.mix(old.Settings.hash())
		d.Hash.mix(d.Settings.hash())
	}
	if d.Candidate != nil || d.NoCandidate {
		d.Hash.mix(hashCandidate(old.Candidate))
		d.Hash.mix(hashCandidate(d.Candidate))
	}
	for _, id := range d.Removed {
		d.Hash.mix(hashPeer(id, old.Peers[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(d.Upserts)) {
		if before, ok := old.Peers[id]; ok {
			d.Hash.mix(hashPeer(id, before))
		}
		d.Hash.mix(hashPeer(id, d.Upserts[id]))
	}
	for _, p := range d.Patches {
		peer := old.Peers[p.Node]
		d.Hash.mix(hashPeer(p.Node, peer))
		peer.State = p.State
		d.Hash.mix(hashPeer(p.Node, peer))
	}
}

// Peers returns the delta that tells of the present state of peers that the
// node can see, and of a relay token where it is not nil; nil where there is
// nothing to tell. Peers that the node does not have are left out: whom a node
// may see is decided by whole maps alone.
func (s *Stream) Peers(peers map[ident.NodeID]Peer, token []byte) *Delta {
	d := &Delta{
		BaseSequence: s.held.Sequence, BaseHash: s.hash, Sequence: s.held.Sequence + 1, Hash: s.hash,
		Upserts: make(map[ident.NodeID]Peer),
	}
	if token != nil && !bytes.Equal(token, s.held.RelayToken) {
		d.RelayToken = token
	}
	for _, id := range slices.Sorted(maps.Keys(peers)) {
		before, ok := s.held.Peers[id]
		now := peers[id]
		switch {
		case !ok:
			continue
		case !bytes.Equal(before.Certificate, now.Certificate):
			d.Upserts[id] = now
		case !before.State.equal(now.State):
			d.Patches = append(d.Patches, PeerPatch{Node: id, State: now.State})
		default:
			continue
		}
		d.Hash.mix(hashPeer(id, before))
		d.Hash.mix(hashPeer(id, now))
		s.held.Peers[id] = now
	}
	if d.Empty() {
		return nil
	}
	s.held.Sequence, s.hash = d.Sequence, d.Hash
	if d.RelayToken != nil {
		s.held.RelayToken = d.RelayToken
	}
	return d
}

// Remove returns the delta that takes peers away, nil where the node has none of
// them. What else changes with them is left to Whole.
func (s *Stream) Remove(peers []ident.NodeID) *Delta {
	d := &Delta{BaseSequence: s.held.Sequence, BaseHash: s.hash, Sequence: s.held.Sequence + 1, Hash: s.hash}
	for _, id := range peers {
		if p, ok := s.held.Peers[id]; ok {
			d.Removed = append(d.Removed, id)
			d.Hash.mix(hashPeer(id, p))
			delete(s.held.Peers, id)
		}
	}
	if d.Empty() {
		return nil
	}
	slices.Sort(d.Removed)
	s.held.Sequence, s.hash = d.Sequence, d.Hash
	return d
}
