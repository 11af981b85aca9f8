package filter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
)

// MaxSnapshotAge is how long after it was made a Snapshot may be taken over
// (P9): a restart or an upgrade takes seconds.
const MaxSnapshotAge = 60 * time.Second

// ErrSnapshot is wrapped by errors about bytes that are no Snapshot.
var ErrSnapshot = errors.New("filter: not a snapshot of flows")

// Snapshot is what the filters of one run of the program leave to the next
// (P9): their flows, but neither fragments nor verdicts. It is no authority:
// whoever takes it over asks the rules about every flow again.
type Snapshot struct {
	// Self is the key of the device that made it.
	Self ident.NodeKey
	// At is when it was made, by the wall clock, to the nanosecond.
	At time.Time
	// Peers are in ascending order of their keys.
	Peers []PeerFlows
}

// PeerFlows are the flows with one peer, the oldest first; MaxFlows at most.
type PeerFlows struct {
	Peer  ident.NodeKey
	Flows []SavedFlow
}

// SavedFlow is one flow of a Snapshot. It is made by Peer.HandOver and
// ParseSnapshot only, so that what it says is possible.
type SavedFlow struct {
	key     key
	state   state
	flags   entryFlags
	left    time.Duration // until it ends without another packet, when it was saved
	age     time.Duration // since it was opened
	end     [2]uint32
	packets [2]uint32
	bytes   [2]uint64
}

// The form of a snapshot: integers are big-endian.
//
//	magic, version; key of the device; time in nanoseconds since 1970
//	number of peers, and for each: key, number of flows, flows
const (
	snapshotMagic   = "warren flows"
	snapshotVersion = 1
	snapshotHead    = len(snapshotMagic) + 1 + ident.KeySize + 8 + 4
	snapshotPeer    = ident.KeySize + 4
	savedFlowSize   = 4*8 + 2*2 + 4 + 2*8 + 2*4 + 2*4 + 2*8
	// maxSnapshotPeers is more than have flows on a device that keeps to
	// DeviceFlows.
	maxSnapshotPeers = DeviceFlows

	savedFlags = openedByPeer | simultaneous | finOpener | finResponder | finOpenerFirst | spokeIn | spokeOut
	// maxAge keeps sums of times within their range: a hundred years.
	maxAge = 100 * 365 * 24 * time.Hour
)

// HandOver ends all flows as Remove does, but tells neither side, and returns
// what a later Peer needs to go on with them; nil where there is none. No packet
// passes afterwards.
func (p *Peer) HandOver(now time.Time) []SavedFlow {
	tick := p.tick(now)
	var saved []SavedFlow
	for n := p.flows.order.oldest; n != 0; n = p.flows.at(n).links[linkOrder].next {
		e := p.flows.at(n)
		if e.deadline <= tick {
			continue
		}
		saved = append(saved, SavedFlow{
			key: e.key, state: e.state, flags: e.flags & savedFlags,
			left: time.Duration(e.deadline - tick), age: min(time.Duration(max(0, tick-e.opened)), maxAge),
			end: e.end, packets: e.packets, bytes: e.bytes,
		})
	}
	p.removed = true
	p.forgetFragments()
	for p.flows.order.oldest != 0 {
		p.end(p.flows.order.oldest, EndHandedOver)
	}
	p.flows = newTable()
	p.sweeping = false
	return saved
}

// TakeOver goes on with flows of a Snapshot that was made at a time, and returns
// with how many. Each is matched in the direction in which it was opened; one
// that the rules do not admit now ends at once, and comes out of NextCut. Flows
// that ended meanwhile, or are there already, are passed over, and so is
// everything where the snapshot is from the future or older than
// MaxSnapshotAge.
//
// Each flow is an event; a caller that wants them all hands over MaxEvents/2 at
// a time.
func (p *Peer) TakeOver(flows []SavedFlow, at, now time.Time) int {
	elapsed := now.Round(0).Sub(at)
	if p.removed || elapsed < 0 || elapsed > MaxSnapshotAge {
		return 0
	}
	tick, taken := p.tick(now), 0
	for i := range flows {
		f := &flows[i]
		if f.left <= elapsed || f.key.protocol() == p.shared.ControlProtocol && p.shared.ControlProtocol != 0 {
			continue
		}
		h := hash(p.shared.Seed, &f.key)
		if p.flows.find(&f.key, h) != 0 {
			continue
		}
		n := p.insert(&f.key, h, f.state)
		if n == 0 {
			continue
		}
		e := p.flows.at(n)
		e.flags |= f.flags
		e.deadline, e.opened = tick+int64(f.left-elapsed), tick-int64(f.age+elapsed)
		e.end, e.packets, e.bytes = f.end, f.packets, f.bytes
		p.due = min(p.due, e.deadline)
		if p.rematch(n, now) {
			taken++
			p.noteOpened(e, &Decision{Rule: e.rule})
		}
	}
	return taken
}

// Flows returns how many flows the snapshot holds.
func (s *Snapshot) Flows() int {
	n := 0
	for i := range s.Peers {
		n += len(s.Peers[i].Flows)
	}
	return n
}

// Append appends the snapshot's bytes to b.
func (s *Snapshot) Append(b []byte) []byte {
	b = append(b, snapshotMagic...)
	b = append(b, snapshotVersion)
	b = append(b, s.Self[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(s.At.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.Peers)))
	for i := range s.Peers {
		b = append(b, s.Peers[i].Peer[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.Peers[i].Flows)))
		for j := range s.Peers[i].Flows {
			b = s.Peers[i].Flows[j].append(b)
		}
	}
	return b
}

func (f *SavedFlow) append(b []byte) []byte {
	for _, word := range []uint64{f.key.local.Hi, f.key.local.Lo, f.key.remote.Hi, f.key.remote.Lo} {
		b = binary.BigEndian.AppendUint64(b, word)
	}
	b = binary.BigEndian.AppendUint16(b, f.key.localPort())
	b = binary.BigEndian.AppendUint16(b, f.key.remotePort())
	b = append(b, f.key.protocol(), byte(f.key.asked()), byte(f.state), byte(f.flags>>1))
	b = binary.BigEndian.AppendUint64(b, uint64(f.left))
	b = binary.BigEndian.AppendUint64(b, uint64(f.age))
	for d := range f.end {
		b = binary.BigEndian.AppendUint32(b, f.end[d])
		b = binary.BigEndian.AppendUint32(b, f.packets[d])
		b = binary.BigEndian.AppendUint64(b, f.bytes[d])
	}
	return b
}

// ParseSnapshot reads what Append wrote, and nothing else. The error wraps
// ErrSnapshot.
func ParseSnapshot(b []byte) (*Snapshot, error) {
	if len(b) < snapshotHead || string(b[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("%w: no such head", ErrSnapshot)
	}
	b = b[len(snapshotMagic):]
	if b[0] != snapshotVersion {
		return nil, fmt.Errorf("%w: version %d", ErrSnapshot, b[0])
	}
	s := &Snapshot{Self: ident.NodeKey(b[1 : 1+ident.KeySize])}
	b = b[1+ident.KeySize:]
	s.At = time.Unix(0, int64(binary.BigEndian.Uint64(b)))
	peers := binary.BigEndian.Uint32(b[8:])
	if peers > maxSnapshotPeers {
		return nil, fmt.Errorf("%w: %d peers", ErrSnapshot, peers)
	}
	b = b[12:]
	for range peers {
		if len(b) < snapshotPeer {
			return nil, fmt.Errorf("%w: it ends early", ErrSnapshot)
		}
		p := PeerFlows{Peer: ident.NodeKey(b[:ident.KeySize])}
		if n := len(s.Peers); n > 0 && bytes.Compare(s.Peers[n-1].Peer[:], p.Peer[:]) >= 0 {
			return nil, fmt.Errorf("%w: peers are not in order", ErrSnapshot)
		}
		count := int(binary.BigEndian.Uint32(b[ident.KeySize:]))
		b = b[snapshotPeer:]
		if count > MaxFlows || len(b) < count*savedFlowSize {
			return nil, fmt.Errorf("%w: %d flows", ErrSnapshot, count)
		}
		p.Flows = make([]SavedFlow, count)
		for i := range p.Flows {
			if !p.Flows[i].parse(b[:savedFlowSize]) {
				return nil, fmt.Errorf("%w: an impossible flow", ErrSnapshot)
			}
			b = b[savedFlowSize:]
		}
		s.Peers = append(s.Peers, p)
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w: more after the end", ErrSnapshot)
	}
	return s, nil
}

// parse reads one flow, and reports whether it is a possible one.
func (f *SavedFlow) parse(b []byte) bool {
	f.key.local = packet.Address{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])}
	f.key.remote = packet.Address{Hi: binary.BigEndian.Uint64(b[16:]), Lo: binary.BigEndian.Uint64(b[24:])}
	f.key.tail = tailOf(binary.BigEndian.Uint16(b[32:]), binary.BigEndian.Uint16(b[34:]), b[36], asked(b[37]))
	f.state, f.flags = state(b[38]), entryFlags(b[39])<<1
	f.left, f.age = time.Duration(binary.BigEndian.Uint64(b[40:])), time.Duration(binary.BigEndian.Uint64(b[48:]))
	b = b[56:]
	for d := range f.end {
		f.end[d], f.packets[d] = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		f.bytes[d] = binary.BigEndian.Uint64(b[8:])
		b = b[16:]
	}
	return f.possible()
}

// possible reports whether a filter can have had the flow: its addresses are of
// one family, its state one of its protocol, and it ends no later than that
// state lets it.
func (f *SavedFlow) possible() bool {
	protocol, is4 := f.key.protocol(), f.key.local.Is4()
	icmp := protocol == packet.ICMP || protocol == packet.ICMPv6
	if is4 != f.key.remote.Is4() || f.flags&^savedFlags != 0 || f.age < 0 || f.age > maxAge || f.left <= 0 {
		return false
	}
	life := otherLife
	switch by := f.key.asked(); {
	case by > askedByPeer || icmp != (by != notEcho):
		return false
	case by != notEcho:
		// The side that asked has the identifier as its port.
		byPeer := by == askedByPeer
		if is4 != (protocol == packet.ICMP) || f.state != opening || byPeer != (f.flags&openedByPeer != 0) ||
			byPeer && f.key.localPort() != 0 || !byPeer && f.key.remotePort() != 0 {
			return false
		}
		life = echoLife
	case protocol == packet.TCP:
		if int(f.state) >= len(tcpLife) {
			return false
		}
		life = tcpLife[f.state]
	case f.state != opening && f.state != established:
		return false
	case protocol == packet.UDP:
		life = udpRepliedLife
	case protocol == packet.SCTP:
		life = sctpRepliedLife
	case f.key.localPort() != 0 || f.key.remotePort() != 0:
		return false
	}
	return f.left <= life
}
