package compile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Policy is a document compiled for a directory. It is not safe for concurrent
// use, not even for reading: the reading methods keep marks in it. What they
// return may be shared freely.
type Policy struct {
	doc    *policy.Document
	epoch  ruleset.Epoch
	table  *labelTable
	users  map[ident.UserID]*userState
	order  []User // as given, for domains
	groups map[string][]string

	slots []*slot // nil where a device left
	byID  map[ident.NodeID]int32
	// byOwner holds the untagged devices of each user.
	byOwner map[ident.UserID]*members

	index *subjectIndex
	visit uint64                   // counts walks over subjects, to see each once
	rules map[string]*compiledRule // by key and, for repeats, number
	keys  []string                 // in the order of the document
}

type userState struct {
	user   User
	labels []string
}

// slot is a device as the rules see it.
type slot struct {
	node     Node
	identity ident.Identity
	// reach is what the identity's routes cover (ruleset.Covered).
	reach []netip.Prefix
	names []string // of the labels
	// collides says that two names share a label, so that rules could take the
	// device for what it is not.
	collides bool
	// epoch is the policy's when the device's rules last changed.
	epoch ruleset.Epoch
}

// ErrUnknownNode is wrapped by errors about a device that is not in the
// directory.
var ErrUnknownNode = errors.New("compile: no such device")

// Compile makes a policy. A nil document denies everything. The error is a
// policy.ErrorList for what the document may not say in this directory, or
// wraps ErrDirectory or ErrCollision. The document is kept and must not be
// written to.
func Compile(doc *policy.Document, dir Directory, key ident.LabelKey, epoch ruleset.Epoch) (*Policy, error) {
	return compileWith(doc, dir, newLabelTable(key.Label), epoch)
}

func compileWith(doc *policy.Document, dir Directory, table *labelTable, epoch ruleset.Epoch) (*Policy, error) {
	if doc == nil {
		doc = &policy.Document{}
	}
	if err := dir.validate(); err != nil {
		return nil, err
	}
	if err := checkDomains(doc, dir.Users); err != nil {
		return nil, err
	}
	p := &Policy{
		doc: doc, epoch: epoch, table: table, users: map[ident.UserID]*userState{}, order: slices.Clone(dir.Users),
		groups: groupIndex(doc), byID: make(map[ident.NodeID]int32, len(dir.Nodes)), byOwner: map[ident.UserID]*members{},
		index: newSubjectIndex(), rules: map[string]*compiledRule{},
	}
	for _, u := range dir.Users {
		p.users[u.ID] = &userState{u, userLabels(&u)}
	}
	b := newBuilder(doc, p.table, p.index)
	for i := range doc.Rules {
		key := b.key(&doc.Rules[i])
		p.keys = append(p.keys, key)
		p.rules[key] = b.build(&doc.Rules[i], key)
		attach(p.rules[key])
	}
	if b.collision != nil {
		return nil, b.collision
	}
	nodes := slices.Clone(dir.Nodes)
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	for _, n := range nodes {
		s := p.describe(n.clone())
		if s.collides {
			return nil, fmt.Errorf("%w: one is of the device %q", ErrCollision, n.Name)
		}
		p.insert(s)
	}
	return p, nil
}

// attach makes a compiled rule known to its subjects.
func attach(c *compiledRule) {
	for _, in := range c.in {
		in.subject.in = append(in.subject.in, in.template)
	}
	for _, out := range c.out {
		out.subject.out = append(out.subject.out, out.template)
	}
	for _, l := range c.links {
		for _, s := range l.sources {
			s.links = append(s.links, linkSide{l, true})
		}
		for _, s := range l.targets {
			s.links = append(s.links, linkSide{l, false})
		}
	}
	for _, s := range c.uses {
		s.refs++
	}
}

// detach undoes attach for several rules and returns the subjects that nothing
// uses any more, which are still in the index.
func detach(rules []*compiledRule) (unused []*subject) {
	gone, links := map[*template]bool{}, map[*link]bool{}
	seen := map[*subject]bool{}
	var subjects []*subject
	for _, c := range rules {
		for _, list := range [2][]placement{c.in, c.out} {
			for _, placed := range list {
				gone[placed.template] = true
			}
		}
		for _, l := range c.links {
			links[l] = true
		}
		for _, s := range c.uses {
			if s.refs--; !seen[s] {
				seen[s] = true
				subjects = append(subjects, s)
			}
		}
	}
	isGone := func(t *template) bool { return gone[t] }
	for _, s := range subjects {
		s.in = slices.DeleteFunc(s.in, isGone)
		s.out = slices.DeleteFunc(s.out, isGone)
		s.links = slices.DeleteFunc(s.links, func(side linkSide) bool { return links[side.link] })
		if s.refs == 0 {
			unused = append(unused, s)
		}
	}
	return unused
}

// describe works out what a device is under the present document and users.
func (p *Policy) describe(n Node) *slot {
	s := &slot{node: n, names: p.labelNames(&n), epoch: p.epoch, reach: ruleset.Covered(n.Routes)}
	labels := make([]ident.Label, len(s.names))
	for i, name := range s.names {
		labels[i] = p.table.label(name)
		s.collides = s.collides || labels[i] == 0
	}
	s.identity = ident.Identity{
		Node: n.ID, Labels: ident.NewLabelSet(labels...), Addresses: n.Addresses, Routes: n.Routes,
	}
	if len(n.Tags) == 0 {
		s.identity.Owner = n.Owner
	}
	return s
}

// insert gives a new device a place and makes it a member of its subjects.
func (p *Policy) insert(s *slot) int32 {
	at := int32(len(p.slots))
	p.slots = append(p.slots, s)
	p.byID[s.node.ID] = at
	p.join(at)
	return at
}

func (p *Policy) join(at int32) {
	s := p.slots[at]
	for _, subject := range p.index.find(s) {
		subject.members.add(at)
	}
	if owner := s.identity.Owner; owner != 0 {
		if p.byOwner[owner] == nil {
			p.byOwner[owner] = &members{}
		}
		p.byOwner[owner].add(at)
	}
}

func (p *Policy) leave(at int32) {
	s := p.slots[at]
	for _, subject := range p.index.find(s) {
		subject.members.remove(at)
	}
	if owner := s.identity.Owner; owner != 0 {
		if p.byOwner[owner].remove(at); p.byOwner[owner].n == 0 {
			delete(p.byOwner, owner)
		}
	}
}

// Labels returns the labels that the device's certificate must carry; the
// empty set where Identity has none.
func (p *Policy) Labels(id ident.NodeID) ident.LabelSet {
	identity, _ := p.Identity(id)
	return identity.Labels
}

// Identity returns what rules know of the device, as its certificate must say
// it. The second result is false where there is no such device, or where a
// label of it collides (ErrCollision): it must have no certificate then.
func (p *Policy) Identity(id ident.NodeID) (ident.Identity, bool) {
	at, ok := p.byID[id]
	if !ok || p.slots[at].collides {
		return ident.Identity{}, false
	}
	return p.slots[at].identity, true
}

// LabelNames returns the names of the device's labels, sorted, for
// explanations to administrators.
func (p *Policy) LabelNames(id ident.NodeID) []string {
	if at, ok := p.byID[id]; ok {
		return slices.Clone(p.slots[at].names)
	}
	return nil
}

// Epoch returns the epoch of the present document.
func (p *Policy) Epoch() ruleset.Epoch { return p.epoch }

// Document returns the present document, which must not be written to.
func (p *Policy) Document() *policy.Document { return p.doc }

// RuleSet returns the rules that the device must get, nil where Identity has
// none. Its epoch is that of the document with which these rules last
// changed, so that a device whose rules stay the same is left alone. The order
// depends on the rules alone and not on the history.
func (p *Policy) RuleSet(id ident.NodeID) *ruleset.RuleSet {
	at, ok := p.byID[id]
	if !ok || p.slots[at].collides {
		return nil
	}
	s := p.slots[at]
	in, out := templatesOf(p.index.find(s), s)
	owner := p.ownerOf(s)
	return &ruleset.RuleSet{Epoch: s.epoch, In: instances(in, s, owner), Out: instances(out, s, owner)}
}

func instances(templates []*template, s *slot, owner ident.Label) []ruleset.Rule {
	if len(templates) == 0 {
		return nil
	}
	rules := make([]ruleset.Rule, len(templates))
	for i, t := range templates {
		rules[i] = t.instance(s, owner)
	}
	return rules
}

func (p *Policy) ownerOf(s *slot) ident.Label {
	if s.identity.Owner == 0 {
		return 0
	}
	return p.table.label(ownerLabel(s.identity.Owner))
}

// templatesOf returns the templates that a device of the subjects gets, each
// once, in the order of sets.
func templatesOf(subjects []*subject, n *slot) (in, out []*template) {
	for _, s := range subjects {
		in, out = append(in, s.in...), append(out, s.out...)
	}
	tidy := func(list []*template) []*template {
		if n.identity.Owner == 0 {
			list = slices.DeleteFunc(list, func(t *template) bool { return t.self })
		}
		slices.SortFunc(list, compareTemplates)
		return slices.Compact(list)
	}
	return tidy(in), tidy(out)
}

func compareTemplates(a, b *template) int {
	if a == b {
		return 0
	}
	if order := strings.Compare(string(a.rule.ID), string(b.rule.ID)); order != 0 {
		return order
	}
	return cmp.Or(cmp.Compare(a.ordinal, b.ordinal), bytes.Compare(a.content[:], b.content[:]))
}

// Peers returns the devices that the device may see, ascending: those that a
// rule in force links it with, in either direction.
func (p *Policy) Peers(id ident.NodeID) []ident.NodeID {
	at, ok := p.byID[id]
	if !ok {
		return nil
	}
	return p.ids(p.peers(at, p.index.find(p.slots[at])))
}

// peers returns the slots that a device of the subjects is linked with.
func (p *Policy) peers(at int32, subjects []*subject) bitmap {
	b := p.commonPeers(subjects)
	for i, word := range p.ownPeers(at, subjects) {
		b[i] |= word
	}
	b.clear(at)
	return b
}

// commonPeers returns what all devices of exactly these subjects are linked
// with, whoever their users are.
func (p *Policy) commonPeers(subjects []*subject) bitmap {
	b := newBitmap(len(p.slots))
	p.visit++
	for _, s := range subjects {
		for _, side := range s.links {
			if side.link.self {
				continue
			}
			for _, other := range side.others() {
				if other.visited != p.visit {
					other.visited = p.visit
					other.members.orInto(b)
				}
			}
		}
	}
	return b
}

// ownPeers returns the devices of the same user that autogroup:self links, nil
// for none.
func (p *Policy) ownPeers(at int32, subjects []*subject) bitmap {
	owner := p.slots[at].identity.Owner
	if owner == 0 {
		return nil
	}
	var b bitmap
	for _, s := range subjects {
		for _, side := range s.links {
			if !side.link.self {
				continue
			}
			if b == nil {
				b = newBitmap(len(p.slots))
			}
			for _, other := range side.others() {
				p.byOwner[owner].each(func(peer int32) {
					if other.members.has(peer) {
						b.set(peer)
					}
				})
			}
		}
	}
	return b
}

func (p *Policy) ids(b bitmap) []ident.NodeID {
	n := b.count()
	if n == 0 {
		return nil
	}
	out := make([]ident.NodeID, 0, n)
	b.each(func(at int32) { out = append(out, p.slots[at].node.ID) })
	slices.Sort(out)
	return out
}

// NodeByName returns the id of the device of that name.
func (p *Policy) NodeByName(name string) (ident.NodeID, error) {
	for _, s := range p.slots {
		if s != nil && strings.EqualFold(s.node.Name, name) {
			return s.node.ID, nil
		}
	}
	return 0, fmt.Errorf("%w: %q", ErrUnknownNode, name)
}

// Nodes returns the ids of all devices, ascending.
func (p *Policy) Nodes() []ident.NodeID {
	var out []ident.NodeID
	for _, s := range p.slots {
		if s != nil {
			out = append(out, s.node.ID)
		}
	}
	slices.Sort(out)
	return out
}
