package compile

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// This file answers, when rules change, whose list of peers changes. To work
// out every list before and after would cost the more the more rules there are;
// instead the pairs of subjects that only one side links are looked at, and of
// a device on such a pair it is asked whether something else links it with the
// other side anyway. One device that it is not linked with settles that, and
// because links are symmetric one such witness settles it for many devices at
// once.

// sight is a pair of subjects whose devices see each other.
type sight struct {
	source, target *subject
	self           bool // between devices of one user only
}

// linkDifference returns the pairs that only the removed rules link, and those
// that only the added ones do.
func linkDifference(removed, added []*compiledRule) (lost, gained []sight) {
	was, is := map[sight]bool{}, map[sight]bool{}
	before, after := sights(removed, was), sights(added, is)
	lost = slices.DeleteFunc(before, func(s sight) bool { return is[s] })
	gained = slices.DeleteFunc(after, func(s sight) bool { return was[s] })
	return lost, gained
}

// sights lists the pairs that the rules link, each once, and adds them to the
// set.
func sights(rules []*compiledRule, set map[sight]bool) []sight {
	var list []sight
	for _, c := range rules {
		for _, l := range c.links {
			for _, s := range l.sources {
				for _, t := range l.targets {
					if k := (sight{s, t, l.self}); !set[k] {
						set[k] = true
						list = append(list, k)
					}
				}
			}
		}
	}
	return list
}

// farSide is what a subject is paired with.
type farSide struct {
	number    uint32
	any, self []*subject
}

// strangers finds the devices that would have a peer by some pairs which they
// do not have by the rules in place.
type strangers struct {
	p     *Policy
	pairs map[*subject]*farSide
	// subjects, key and left are space to work in.
	subjects []*subject
	key      []byte
	left     bitmap
	// seen has what the pairs link a device with, for each combination of
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

// addStrangers names the devices that the pairs give a peer which they do not
// have by the rules in place.
func (p *Policy) addStrangers(pairs []sight, changed *changes) {
	if len(pairs) == 0 {
		return
	}
	f := &strangers{p: p, pairs: map[*subject]*farSide{}, left: newBitmap(len(p.slots)), seen: map[string]*crowd{}}
	affected := newBitmap(len(p.slots))
	for _, k := range pairs {
		f.add(k.source, k.target, k.self)
		f.add(k.target, k.source, k.self)
		k.source.members.orInto(affected)
		k.target.members.orInto(affected)
	}
	affected.each(func(at int32) {
		if f.stranger(at) {
			changed.add(p.slots[at].node.ID)
		}
	})
}

func (f *strangers) add(near, far *subject, self bool) {
	side := f.pairs[near]
	if side == nil {
		side = &farSide{number: uint32(len(f.pairs))}
		f.pairs[near] = side
	}
	list := &side.any
	if self {
		list = &side.self
	}
	if !slices.Contains((*list)[max(0, len(*list)-1):], far) {
		*list = append(*list, far)
	}
}

// stranger reports whether the pairs give the device a new peer.
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

// ownPeers adds the devices of the device's user that are of the subjects.
func (f *strangers) ownPeers(b bitmap, at int32, of []*subject) bitmap {
	owner := f.p.slots[at].identity.Owner
	if owner == 0 || len(of) == 0 {
		return b
	}
	if b == nil {
		b = newBitmap(len(f.p.slots))
	}
	f.p.byOwner[owner].each(func(peer int32) {
		if slices.ContainsFunc(of, func(s *subject) bool { return s.members.has(peer) }) {
			b.set(peer)
		}
	})
	return b
}

// crowd unites what the pairs link devices of the subjects with.
func (f *strangers) crowd(subjects []*subject) *crowd {
	c := &crowd{members: newBitmap(len(f.p.slots))}
	for _, s := range subjects {
		if side := f.pairs[s]; side != nil {
			for _, far := range side.any {
				far.members.orInto(c.members)
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
