package compile

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// This file answers, when rules change, whose list of peers changes. To work
// out every list before and after would cost the more the more rules there are;
// instead the links that only one side has are looked at, and of a device on
// such a link it is asked whether something else links it with the other side
// anyway. One device that it is not linked with settles that, and
// because links are symmetric one such witness settles it for many devices at
// once.

// linkDifference returns the links that only the removed rules have, and those
// that only the added ones have. A link whose pairs other links of the other
// side have may be among them.
func linkDifference(removed, added []*compiledRule) (lost, gained []*link) {
	return linksBeyond(removed, added), linksBeyond(added, removed)
}

// linkKey is equal for equal links; not only for them.
type linkKey struct {
	source, target   *subject
	sources, targets int
	self             bool
}

func (l *link) key() linkKey {
	k := linkKey{sources: len(l.sources), targets: len(l.targets), self: l.self}
	if k.sources > 0 {
		k.source = l.sources[0]
	}
	if k.targets > 0 {
		k.target = l.targets[0]
	}
	return k
}

func (l *link) equal(m *link) bool {
	return l.self == m.self && slices.Equal(l.sources, m.sources) && slices.Equal(l.targets, m.targets)
}

// linksBeyond returns the links of the rules without those that equal one of
// the other rules.
func linksBeyond(rules, others []*compiledRule) []*link {
	theirs := map[linkKey][]*link{}
	for _, c := range others {
		for _, l := range c.links {
			theirs[l.key()] = append(theirs[l.key()], l)
		}
	}
	var out []*link
	for _, c := range rules {
		for _, l := range c.links {
			if !slices.ContainsFunc(theirs[l.key()], l.equal) {
				out = append(out, l)
			}
		}
	}
	return out
}

// farSide is what a subject is linked with.
type farSide struct {
	number    uint32
	any, self []bitmap
}

// strangers finds the devices that would have a peer by some links which they
// do not have by the rules in place.
type strangers struct {
	p     *Policy
	pairs map[*subject]*farSide
	// subjects, key and left are space to work in.
	subjects []*subject
	key      []byte
	left     bitmap
	// seen has what the links join a device with, for each combination of
	// subjects, because many devices are of the same.
	seen map[string]*crowd
}

// crowd is devices that some others may see.
type crowd struct {
	members bitmap
	// witnesses are some of the members, with the peers that they have.
	witnesses []witness
}

type witness struct {
	at    int32
	peers bitmap // nil until it is asked for
}

// maxWitnesses bounds the witnesses of a crowd.
const maxWitnesses = 8

// addStrangers names the devices that the links give a peer which they do not
// have by the rules in place.
func (p *Policy) addStrangers(links []*link, changed *changes) {
	if len(links) == 0 {
		return
	}
	f := &strangers{p: p, pairs: map[*subject]*farSide{}, left: newBitmap(len(p.slots)), seen: map[string]*crowd{}}
	affected := newBitmap(len(p.slots))
	for _, l := range links {
		sources, targets := f.union(l.sources), f.union(l.targets)
		if sources.count() == 0 || targets.count() == 0 {
			continue
		}
		f.add(l.sources, targets, l.self)
		f.add(l.targets, sources, l.self)
		for i := range affected {
			affected[i] |= sources[i] | targets[i]
		}
	}
	affected.each(func(at int32) {
		if f.stranger(at) {
			changed.add(p.slots[at].node.ID)
		}
	})
}

// union returns the devices of all the subjects.
func (f *strangers) union(subjects []*subject) bitmap {
	b := newBitmap(len(f.p.slots))
	for _, s := range subjects {
		s.members.orInto(b)
	}
	return b
}

// add says that the near subjects are linked with the far devices.
func (f *strangers) add(near []*subject, far bitmap, self bool) {
	for _, s := range near {
		side := f.pairs[s]
		if side == nil {
			side = &farSide{number: uint32(len(f.pairs))}
			f.pairs[s] = side
		}
		list := &side.any
		if self {
			list = &side.self
		}
		*list = append(*list, far)
	}
}

// stranger reports whether the links give the device a new peer.
func (f *strangers) stranger(at int32) bool {
	f.subjects = f.p.index.findInto(f.subjects, f.p.slots[at])
	subjects, key := f.subjects, f.key[:0]
	var own bitmap
	for _, s := range subjects {
		side := f.pairs[s]
		if side == nil {
			continue
		}
		if len(side.any) > 0 {
			key = binary.LittleEndian.AppendUint32(key, side.number)
		}
		own = f.ownPeers(own, at, side.self)
	}
	f.key = key
	if len(key) > 0 {
		c := f.seen[string(key)]
		if c == nil {
			c = f.crowd(subjects)
			f.seen[string(key)] = c
		}
		if c.settled(f.p, at) {
			return true
		}
		if w := f.firstStranger(at, subjects, c.members); w >= 0 {
			if len(c.witnesses) < maxWitnesses {
				c.witnesses = append(c.witnesses, witness{at: w})
			}
			return true
		}
	}
	return own != nil && f.firstStranger(at, subjects, own) >= 0
}

// ownPeers adds the devices of the device's user that are among the others.
func (f *strangers) ownPeers(b bitmap, at int32, of []bitmap) bitmap {
	owner := f.p.slots[at].identity.Owner
	if owner == 0 || len(of) == 0 {
		return b
	}
	if b == nil {
		b = newBitmap(len(f.p.slots))
	}
	f.p.byOwner[owner].each(func(peer int32) {
		if slices.ContainsFunc(of, func(far bitmap) bool { return far.has(peer) }) {
			b.set(peer)
		}
	})
	return b
}

// crowd unites what the links join devices of the subjects with.
func (f *strangers) crowd(subjects []*subject) *crowd {
	c := &crowd{members: newBitmap(len(f.p.slots))}
	for _, s := range subjects {
		if side := f.pairs[s]; side != nil {
			for _, far := range side.any {
				for i := range far {
					c.members[i] |= far[i]
				}
			}
		}
	}
	return c
}

// settled reports whether a witness shows that the device has a stranger among
// the members: one who has not the device for a peer.
func (c *crowd) settled(p *Policy, at int32) bool {
	for i := range c.witnesses {
		w := &c.witnesses[i]
		if w.at == at {
			continue
		}
		if w.peers == nil {
			w.peers = p.peers(w.at, p.index.find(p.slots[w.at]))
		}
		if !w.peers.has(at) {
			return true
		}
	}
	return false
}

// firstStranger returns one of the devices that the device of the subjects is
// not linked with, other than itself, or -1.
func (f *strangers) firstStranger(at int32, subjects []*subject, among bitmap) int32 {
	p, left := f.p, f.left
	copy(left, among)
	left.clear(at)
	count := left.count()
	owner := p.slots[at].identity.Owner
	p.visit++
	for _, s := range subjects {
		for _, side := range s.links {
			if side.link.self && owner == 0 {
				continue
			}
			for _, other := range side.others() {
				switch {
				case count == 0:
					return -1
				case side.link.self:
					p.byOwner[owner].each(func(peer int32) {
						if left.has(peer) && other.members.has(peer) {
							left.clear(peer)
							count--
						}
					})
				case other.visited != p.visit:
					other.visited = p.visit
					count -= other.members.clearIn(left)
				}
			}
		}
	}
	for i, word := range left {
		if word != 0 {
			return int32(i*64 + bits.TrailingZeros64(word))
		}
	}
	return -1
}
