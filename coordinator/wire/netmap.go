package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
)

// Hash identifies the content of a map: the exclusive or of the hashes of its
// parts, so that a change costs only the part that changed. It finds gaps and
// mistakes; against lies there are signatures.
type Hash [sha256.Size]byte

// PeerState is what the coordinator knows of a peer and cannot vouch for.
type PeerState struct {
	Endpoints []netip.AddrPort
	Online    bool
	OS        string
	// HomeRelay is the name of the relay at which the peer listens, empty where
	// it is not known.
	HomeRelay string
}

func (s PeerState) equal(t PeerState) bool {
	return s.Online == t.Online && s.OS == t.OS && s.HomeRelay == t.HomeRelay && slices.Equal(s.Endpoints, t.Endpoints)
}

// Peer is a device that a node may see. Certificate is signed and opaque here.
type Peer struct {
	Certificate []byte
	State       PeerState
}

// User is an owner of a device that a node may see.
type User struct {
	ID    ident.UserID
	Login string
}

// Settings is everything in a map that is not about one peer.
type Settings struct {
	Relays []Relay
	// STUN lists host:port; an empty host stands for the coordinator's own
	// address as the node reached it.
	STUN  []string
	Users []User
	// Off lists what the administrator turned off for all nodes, in ascending
	// order. A node ignores what it does not know of it.
	Off []Feature
}

// Feature is what nodes do by themselves and the coordinator can turn off for all
// of them: where a fault is found in it, nodes need no new program. It can only
// be turned off; whether it is on otherwise is each node's own setting. Numbers
// are those of the protocol and never used twice.
type Feature uint32

// FeaturePortMapping is asking gateways to forward ports.
const FeaturePortMapping Feature = 1

// MaxFeatures is how many features a map may turn off: many times those that
// there are.
const MaxFeatures = 64

// IsOff reports whether the administrator turned the feature off.
func (s *Settings) IsOff(f Feature) bool { return slices.Contains(s.Off, f) }

// STUNServers returns the servers that nodes are told of, each once: those listed and
// those beside relays. The slice is the caller's.
func (s *Settings) STUNServers() []string {
	servers := slices.Clone(s.STUN)
	for _, r := range s.Relays {
		if r.STUN != "" {
			servers = append(servers, r.STUN)
		}
	}
	slices.Sort(servers)
	return slices.Compact(servers)
}

func (s *Settings) equal(t *Settings) bool {
	return slices.Equal(s.Relays, t.Relays) && slices.Equal(s.STUN, t.STUN) && slices.Equal(s.Users, t.Users) && slices.Equal(s.Off, t.Off)
}

// Map is all that a node is told. Its byte slices and Settings are never
// written to once set: maps share them.
type Map struct {
	Sequence uint64
	// Self is the node's own signed certificate, Rules its signed rules.
	Self, Rules []byte
	Peers       map[ident.NodeID]Peer
	Settings    Settings
	// Candidate is the node's signed candidate rules, nil for none.
	Candidate []byte
	// RelayToken is fresh each time and not part of the hash.
	RelayToken []byte
}

// PeerPatch replaces the state of a peer whose certificate stays.
type PeerPatch struct {
	Node  ident.NodeID
	State PeerState
}

// Delta changes a map that has exactly the base's sequence and hash.
type Delta struct {
	BaseSequence uint64
	BaseHash     Hash
	Sequence     uint64
	Hash         Hash
	// Self and Rules are nil for no change.
	Self, Rules []byte
	// Upserts holds peers that are new or have another certificate.
	Upserts map[ident.NodeID]Peer
	// Removed is in ascending order.
	Removed []ident.NodeID
	// Patches is in ascending order of Node.
	Patches []PeerPatch
	// Settings is nil for no change.
	Settings *Settings
	// Candidate is nil for no change; NoCandidate says that there is none any
	// more.
	Candidate   []byte
	NoCandidate bool
	// RelayToken is nil for no change.
	RelayToken []byte
}

// ErrGap means that a delta was made for another map than the one at hand. The
// way on is a new full map.
var ErrGap = errors.New("wire: delta for another map")

// Hash computes the map's hash from all its parts.
func (m *Map) Hash() Hash {
	h := hashBytes("self", m.Self)
	h.mix(hashBytes("rules", m.Rules))
	h.mix(m.Settings.hash())
	h.mix(hashCandidate(m.Candidate))
	for _, id := range slices.Sorted(maps.Keys(m.Peers)) {
		h.mix(hashPeer(id, m.Peers[id]))
	}
	return h
}

// diff returns the delta that turns old into m, whose sequence must be the
// higher, where their hashes are known. Equal content gives an empty delta,
// which Empty reports.
func (m *Map) diff(old *Map, oldHash, hash Hash) *Delta {
	d := &Delta{
		BaseSequence: old.Sequence, BaseHash: oldHash, Sequence: m.Sequence, Hash: hash,
		Upserts: make(map[ident.NodeID]Peer),
	}
	if !bytes.Equal(old.Self, m.Self) {
		d.Self = m.Self
	}
	if !bytes.Equal(old.Rules, m.Rules) {
		d.Rules = m.Rules
	}
	if !old.Settings.equal(&m.Settings) {
		settings := m.Settings
		d.Settings = &settings
	}
	if !bytes.Equal(old.Candidate, m.Candidate) {
		d.Candidate, d.NoCandidate = m.Candidate, len(m.Candidate) == 0
	}
	if !bytes.Equal(old.RelayToken, m.RelayToken) {
		d.RelayToken = m.RelayToken
	}
	for _, id := range slices.Sorted(maps.Keys(m.Peers)) {
		now := m.Peers[id]
		before, ok := old.Peers[id]
		switch {
		case !ok || !bytes.Equal(before.Certificate, now.Certificate):
			d.Upserts[id] = now
		case !before.State.equal(now.State):
			d.Patches = append(d.Patches, PeerPatch{Node: id, State: now.State})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(old.Peers)) {
		if _, ok := m.Peers[id]; !ok {
			d.Removed = append(d.Removed, id)
		}
	}
	return d
}

// Empty reports whether the delta changes nothing.
func (d *Delta) Empty() bool {
	return d.Self == nil && d.Rules == nil && d.Settings == nil && d.RelayToken == nil &&
		d.Candidate == nil && !d.NoCandidate &&
		len(d.Upserts) == 0 && len(d.Removed) == 0 && len(d.Patches) == 0
}

// Apply returns the map that d turns m into; m itself stays as it is. It
// returns ErrGap, and no map, where m is not d's base, where d names a peer
// that m does not have, or where the outcome does not have d's hash.
func (m *Map) Apply(d *Delta) (*Map, error) {
	if m.Sequence != d.BaseSequence || m.Hash() != d.BaseHash {
		return nil, fmt.Errorf("%w: have %d, delta from %d to %d", ErrGap, m.Sequence, d.BaseSequence, d.Sequence)
	}
	next := *m
	next.Sequence = d.Sequence
	next.Peers = maps.Clone(m.Peers)
	if next.Peers == nil {
		next.Peers = make(map[ident.NodeID]Peer)
	}
	if d.Self != nil {
		next.Self = d.Self
	}
	if d.Rules != nil {
		next.Rules = d.Rules
	}
	if d.Settings != nil {
		next.Settings = *d.Settings
	}
	switch {
	case d.NoCandidate:
		next.Candidate = nil
	case d.Candidate != nil:
		next.Candidate = d.Candidate
	}
	if d.RelayToken != nil {
		next.RelayToken = d.RelayToken
	}
	for _, id := range d.Removed {
		if _, ok := next.Peers[id]; !ok {
			return nil, fmt.Errorf("%w: it removes %v, which is not there", ErrGap, id)
		}
		delete(next.Peers, id)
	}
	for _, id := range slices.Sorted(maps.Keys(d.Upserts)) {
		next.Peers[id] = d.Upserts[id]
	}
	for _, p := range d.Patches {
		peer, ok := next.Peers[p.Node]
		if !ok {
			return nil, fmt.Errorf("%w: it changes %v, which is not there", ErrGap, p.Node)
		}
		peer.State = p.State
		next.Peers[p.Node] = peer
	}
	if next.Hash() != d.Hash {
		return nil, fmt.Errorf("%w: the outcome has another hash", ErrGap)
	}
	return &next, nil
}

func (h *Hash) mix(other Hash) {
	for i := range h {
		h[i] ^= other[i]
	}
}

func hashBytes(part string, b []byte) Hash {
	return sha256.Sum256(canonical.AppendBytes(canonical.AppendText(nil, part), b))
}

// hashCandidate is nothing without a candidate: then a map has the hash that it
// had before there were any.
func hashCandidate(b []byte) Hash {
	if len(b) == 0 {
		return Hash{}
	}
	return hashBytes("candidate", b)
}

func hashPeer(id ident.NodeID, p Peer) Hash {
	b := canonical.AppendUint(canonical.AppendText(nil, "peer"), uint64(id))
	b = canonical.AppendBytes(b, p.Certificate)
	b = canonical.AppendArray(b, len(p.State.Endpoints))
	for _, e := range p.State.Endpoints {
		b = canonical.AppendText(b, e.String())
	}
	online := uint64(0)
	if p.State.Online {
		online = 1
	}
	b = canonical.AppendText(canonical.AppendUint(b, online), p.State.OS)
	if p.State.HomeRelay != "" { // without one it is the hash of Version1
		b = canonical.AppendText(b, p.State.HomeRelay)
	}
	return sha256.Sum256(b)
}

func (s *Settings) hash() Hash {
	b := canonical.AppendArray(canonical.AppendText(nil, "settings"), len(s.Relays))
	for _, r := range s.Relays {
		b = canonical.AppendText(canonical.AppendText(b, r.Name), r.URL)
	}
	b = canonical.AppendArray(b, len(s.STUN))
	for _, server := range s.STUN {
		b = canonical.AppendText(b, server)
	}
	b = canonical.AppendArray(b, len(s.Users))
	for _, u := range s.Users {
		b = canonical.AppendText(canonical.AppendUint(b, uint64(u.ID)), u.Login)
	}
	if slices.ContainsFunc(s.Relays, Relay.described) { // else it is the hash of Version1
		for _, r := range s.Relays {
			b = canonical.AppendText(canonical.AppendText(canonical.AppendText(b, r.Region), r.UDP), r.STUN)
		}
	}
	if len(s.Off) > 0 { // else it is the hash of Version3
		b = canonical.AppendArray(canonical.AppendText(b, "off"), len(s.Off))
		for _, f := range s.Off {
			b = canonical.AppendUint(b, uint64(f))
		}
	}
	return sha256.Sum256(b)
}
