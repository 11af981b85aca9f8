package compile

import (
	"crypto/sha256"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// SetNode adds a device or replaces what is known of it. It returns the
// devices whose labels, rules or list of peers changed, ascending. A device
// without an id is left out.
func (p *Policy) SetNode(n Node) []ident.NodeID {
	if n.ID == 0 {
		return nil
	}
	changed := p.newChanges()
	p.setNode(n.clone(), changed)
	return changed.sorted()
}

// RemoveNode takes a device out. It returns the devices whose list of peers
// changed and the device itself, ascending; nothing where there is no such
// device.
func (p *Policy) RemoveNode(id ident.NodeID) []ident.NodeID {
	at, ok := p.byID[id]
	if !ok {
		return nil
	}
	changed := p.newChanges()
	changed.add(id)
	p.peers(at, p.index.find(p.slots[at])).each(func(peer int32) { changed.add(p.slots[peer].node.ID) })
	p.leave(at)
	p.slots[at] = nil
	delete(p.byID, id)
	p.compact()
	return changed.sorted()
}

// changes collects ids.
type changes struct{ ids []ident.NodeID }

func (p *Policy) newChanges() *changes { return &changes{} }

func (c *changes) add(id ident.NodeID) { c.ids = append(c.ids, id) }

func (c *changes) sorted() []ident.NodeID {
	slices.Sort(c.ids)
	return slices.Compact(c.ids)
}

func (p *Policy) setNode(n Node, changed *changes) {
	fresh := p.describe(n)
	at, known := p.byID[n.ID]
	if !known {
		at = p.insert(fresh)
		changed.add(n.ID)
		p.peers(at, p.index.find(fresh)).each(func(peer int32) { changed.add(p.slots[peer].node.ID) })
		return
	}
	old := p.slots[at]
	before := p.index.find(old)
	peersBefore := p.peers(at, before)
	p.leave(at)
	p.slots[at] = fresh
	p.join(at)
	after := p.index.find(fresh)
	peersAfter := p.peers(at, after)
	peers := false
	difference(peersBefore, peersAfter, func(peer int32) {
		peers = true
		changed.add(p.slots[peer].node.ID)
	})
	rules := !sameRules(before, after, old, fresh)
	if !rules {
		fresh.epoch = old.epoch
	}
	if rules || peers || !old.identity.Labels.Equal(fresh.identity.Labels) {
		changed.add(n.ID)
	}
}

// sameRules reports whether a device gets the same rules as before.
func sameRules(before, after []*subject, old, fresh *slot) bool {
	in1, out1 := templatesOf(before, old)
	in2, out2 := templatesOf(after, fresh)
	if !slices.Equal(in1, in2) || !slices.Equal(out1, out2) {
		return false
	}
	sameOwner := old.identity.Owner == fresh.identity.Owner
	sameSubnets := slices.Equal(old.subnets(), fresh.subnets()) &&
		(len(fresh.subnets()) == 0 || slices.Equal(old.identity.Addresses, fresh.identity.Addresses))
	if sameOwner && sameSubnets {
		return true
	}
	return !slices.ContainsFunc(slices.Concat(in2, out2), func(t *template) bool {
		return t.self && !sameOwner || t.ownSubnets && !sameSubnets
	})
}

// compact closes the gaps that devices left, once they are more than half.
func (p *Policy) compact() {
	if len(p.slots) < 1024 || len(p.byID) > len(p.slots)/2 {
		return
	}
	kept := slices.DeleteFunc(p.slots, func(s *slot) bool { return s == nil })
	slices.SortFunc(kept, func(a, b *slot) int {
		if a.node.ID < b.node.ID {
			return -1
		}
		return 1
	})
	p.slots = nil
	p.byOwner = map[ident.UserID]*members{}
	for _, key := range p.keys {
		for _, s := range p.rules[key].uses {
			s.members = members{}
		}
	}
	for _, s := range kept {
		p.insert(s)
	}
}

// SetUsers replaces the users. It returns the devices whose labels, rules or
// list of peers changed, ascending. Users with the id zero, or with one that
// an earlier user of the list has, are left out.
func (p *Policy) SetUsers(users []User) []ident.NodeID {
	fresh := map[ident.UserID]*userState{}
	var order []User
	for _, u := range users {
		if u.ID != 0 && fresh[u.ID] == nil {
			fresh[u.ID] = &userState{u, userLabels(&u)}
			order = append(order, u)
		}
	}
	old := p.users
	p.users, p.order = fresh, order
	changed := p.newChanges()
	for at := range p.slots {
		s := p.slots[at]
		if s == nil || s.node.Owner == 0 {
			continue
		}
		before, after := old[s.node.Owner], fresh[s.node.Owner]
		if (before == nil) != (after == nil) || before != nil && before.user != after.user {
			p.setNode(s.node, changed)
		}
	}
	return changed.sorted()
}

// SetDocument replaces the document. It returns the devices whose labels,
// rules or list of peers changed, ascending, and gives those whose rules
// changed the epoch. Where a change of groups or postures and one of rules
// meet, a device may be named though the two cancel out. The error is as
// Compile's; then nothing changes. A nil document denies everything.
func (p *Policy) SetDocument(doc *policy.Document, epoch ruleset.Epoch) ([]ident.NodeID, error) {
	if doc == nil {
		doc = &policy.Document{}
	}
	if err := checkDomains(doc, p.order); err != nil {
		return nil, err
	}
	b := newBuilder(doc, p.table, p.index)
	rules := make(map[string]*compiledRule, len(doc.Rules))
	keys := make([]string, len(doc.Rules))
	var added []*compiledRule
	for i := range doc.Rules {
		r := &doc.Rules[i]
		key := b.key(r)
		keys[i] = key
		if c := p.rules[key]; c != nil {
			rules[key] = c
			continue
		}
		rules[key] = b.build(r, key)
		added = append(added, rules[key])
	}
	if b.collision != nil {
		for _, s := range b.created {
			p.index.drop(s)
		}
		return nil, b.collision
	}
	var removed []*compiledRule
	for _, key := range p.keys {
		if rules[key] == nil {
			removed = append(removed, p.rules[key])
		}
	}
	p.admit(b.created)
	changed := p.newChanges()
	p.epoch = epoch
	p.replaceRules(removed, added, changed)
	for i := range doc.Rules {
		rules[keys[i]].rule = &doc.Rules[i]
	}
	relabel := definitionsDiffer(p.doc, doc)
	p.doc, p.rules, p.keys = doc, rules, keys
	if relabel {
		p.groups = groupIndex(doc)
		for _, s := range p.slots {
			if s == nil {
				continue
			}
			if fresh := p.labelNames(&s.node); !slices.Equal(fresh, s.names) {
				p.setNode(s.node, changed)
			}
		}
	}
	return changed.sorted(), nil
}

// admit fills new subjects with their members.
func (p *Policy) admit(created []*subject) {
	for _, s := range created {
		for at, n := range p.slots {
			if n != nil && s.picks(n) {
				s.members.add(int32(at))
			}
		}
	}
}

// replaceRules takes rules out and puts others in.
func (p *Policy) replaceRules(removed, added []*compiledRule, changed *changes) {
	p.compareTemplates(removed, added, changed)
	lost, gained := linkDifference(removed, added)
	p.addStrangers(gained, changed)
	for _, c := range added {
		attach(c)
	}
	unused := detach(removed)
	p.addStrangers(lost, changed)
	for _, s := range unused {
		p.index.drop(s)
	}
}

// compareTemplates names the devices for which the removed rules do not come
// to the same as the added ones: those that have a template of one content by
// one side only.
func (p *Policy) compareTemplates(removed, added []*compiledRule, changed *changes) {
	touched := newBitmap(len(p.slots))
	was, is := p.holdersOf(removed), p.holdersOf(added)
	for direction := range was {
		for _, c := range was[direction].order {
			touched.addDifference(was[direction].devices[c], is[direction].devices[c])
		}
		for _, c := range is[direction].order {
			touched.addDifference(was[direction].devices[c], is[direction].devices[c])
		}
	}
	touched.each(func(at int32) {
		p.slots[at].epoch = p.epoch
		changed.add(p.slots[at].node.ID)
	})
}

// contentHolders has the devices that get a template of each content.
type contentHolders struct {
	order   [][sha256.Size]byte
	devices map[[sha256.Size]byte]bitmap
}

// holdersOf returns, by direction, who gets the templates of the rules.
func (p *Policy) holdersOf(rules []*compiledRule) (out [2]contentHolders) {
	owned := newBitmap(len(p.slots))
	for at, s := range p.slots {
		if s != nil && s.identity.Owner != 0 {
			owned.set(int32(at))
		}
	}
	for direction := range out {
		h := &out[direction]
		h.devices = map[[sha256.Size]byte]bitmap{}
		for _, c := range rules {
			for _, placed := range [2][]placement{c.in, c.out}[direction] {
				t := placed.template
				b := h.devices[t.content]
				if b == nil {
					b = newBitmap(len(p.slots))
					h.devices[t.content] = b
					h.order = append(h.order, t.content)
				}
				if !t.self {
					placed.subject.members.orInto(b)
					continue
				}
				placed.subject.members.each(func(at int32) {
					if owned.has(at) {
						b.set(at)
					}
				})
			}
		}
	}
	return out
}

// definitionsDiffer reports whether the documents may give devices different
// labels.
func definitionsDiffer(a, b *policy.Document) bool {
	same := slices.EqualFunc(a.Groups, b.Groups, func(x, y policy.Group) bool {
		return x.Name == y.Name && slices.EqualFunc(x.Members, y.Members, func(m, n policy.Selector) bool { return m.Name == n.Name })
	}) && slices.EqualFunc(a.Postures, b.Postures, func(x, y policy.Posture) bool {
		return x.Name == y.Name && slices.EqualFunc(x.Conditions, y.Conditions, func(c, d policy.Condition) bool { return c.String() == d.String() })
	}) && slices.EqualFunc(a.Levels, b.Levels, sameLevel)
	return !same
}

func sameLevel(x, y policy.Level) bool {
	risk := (x.MaxRisk == nil) == (y.MaxRisk == nil) && (x.MaxRisk == nil || *x.MaxRisk == *y.MaxRisk)
	return x.Name == y.Name && x.MFAMaxAge == y.MFAMaxAge && risk && slices.Equal(x.Country, y.Country) &&
		slices.EqualFunc(x.Posture, y.Posture, func(m, n policy.Name) bool { return m.Name == n.Name })
}
