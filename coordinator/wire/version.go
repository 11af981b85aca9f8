package wire

import (
	"maps"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
)

// Version counts the versions of the protocol. A node sends the newest that it
// speaks; the coordinator answers with the lower of that and its own.
type Version uint32

const (
	// Version1 (2026-11-22) is the first: registration by join key, signed
	// certificates and rules, one stream of a map and deltas.
	Version1 Version = 1
	// Version2 (2026-11-26) knows several relays: a relay has a region and the
	// addresses of its UDP side and of its STUN server, and a node has a home
	// relay.
	Version2 Version = 2

	// Version3 (2026-11-26) knows candidates: the rules of a document that is
	// computed beside the enforced one.
	Version3 Version = 3

	// Version4 (2026-11-26) knows features that the administrator turned off for
	// all nodes. A node of an older version is not told, and goes on.
	Version4 Version = 4

	// Newest is the newest version that this program speaks.
	Newest = Version4
	// Oldest is the oldest version that this program still speaks.
	Oldest = Version1
)

// Agree returns the version that a coordinator speaks with a node whose newest
// is theirs, and whether there is one.
func Agree(theirs Version) (Version, bool) {
	agreed := min(theirs, Newest)
	return agreed, agreed >= Oldest
}

// For returns what of the peer a node of version v is told. An older one would
// find another hash of what it does not know.
func (p Peer) For(v Version) Peer {
	if v < Version2 {
		p.State.HomeRelay = ""
	}
	return p
}

// For returns what of the map a node of version v is told; m itself stays as it
// is.
func (m *Map) For(v Version) *Map {
	if v >= Version4 || v >= Version3 && len(m.Settings.Off) == 0 || v >= Version2 && len(m.Settings.Off) == 0 && m.Candidate == nil {
		return m
	}
	out := *m
	out.Settings.Off = nil
	if v >= Version3 {
		return &out
	}
	out.Candidate = nil
	if v >= Version2 {
		return &out
	}
	out.Settings.Relays = nil
	for _, r := range m.Settings.Relays {
		out.Settings.Relays = append(out.Settings.Relays, Relay{Name: r.Name, URL: r.URL})
	}
	out.Peers = make(map[ident.NodeID]Peer, len(m.Peers))
	for _, id := range slices.Sorted(maps.Keys(m.Peers)) {
		out.Peers[id] = m.Peers[id].For(v)
	}
	return &out
}
