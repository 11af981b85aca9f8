package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// View is what a device may believe of its network. It is immutable.
type View struct {
	// Self is the device's own certificate; nil means that the device is no
	// member, and then everything else is empty.
	Self *authority.Peer
	// Rules are what is allowed; nil denies everything.
	Rules *authority.Rules
	// Candidate is what a candidate document would have; nil for none. Nothing
	// is allowed or denied by it.
	Candidate *authority.Candidate
	// Peers are the verified peers, in ascending order of their ids.
	Peers []Peer
	// Overlay are the network's own ranges.
	Overlay []netip.Prefix
	// Settings and RelayToken are as the coordinator sent them. They are not
	// signed.
	Settings   wire.Settings
	RelayToken []byte
	// Lead is how far the device's clock is ahead of the network's time, by
	// which all of this holds; negative where it is behind.
	Lead time.Duration
	// Sequence is that of the map; zero for none.
	Sequence uint64
	// Cached says that the view is from disk and that the coordinator has not
	// confirmed it since the start.
	Cached bool
}

// Peer is a verified member, and what the coordinator says of it.
type Peer struct {
	Member *authority.Peer
	// State is hearsay.
	State wire.PeerState
}

// errConflict means that two valid certificates claim one key or address; the
// newer one stands.
var errConflict = errors.New("its key or an address now belongs to another device")

// errOtherNode means that a certificate was put under the name of another
// device.
var errOtherNode = errors.New("the certificate is that of another device")

// membership is a map and what of it was verified. It is never written to once
// made.
type membership struct {
	raw *wire.Map
	// self is never nil.
	self  *authority.Peer
	rules *authority.Rules
	// signedRules is what rules was read from: the map's own, or those of an
	// earlier map where the map's own were refused.
	signedRules []byte
	admitted    map[ident.NodeID]*authority.Peer
	refused     map[ident.NodeID]error
	// rulesError says why the map's own rules were refused; nil where not.
	rulesError error
	// candidate is nil where the map has none, or where it was refused, for the
	// reason candidateError.
	candidate      *authority.Candidate
	candidateError error
	cached         bool
}

// admitMap verifies every part of raw. before may be nil; of it only the rules
// are kept, and only where those of raw are refused. The error, of AdmitSelf,
// means that there is no membership without a certificate of one's own.
func admitMap(a *authority.Authority, raw *wire.Map, before *membership, now time.Time) (*membership, error) {
	self, err := a.AdmitSelf(raw.Self, now)
	if err != nil {
		return nil, err
	}
	m := &membership{
		raw: raw, self: self,
		admitted: make(map[ident.NodeID]*authority.Peer, len(raw.Peers)),
		refused:  make(map[ident.NodeID]error),
	}
	m.admitRules(a, raw.Rules, before)
	m.admitCandidate(a, raw.Candidate)
	for _, id := range slices.Sorted(maps.Keys(raw.Peers)) {
		m.admitPeer(a, id, raw.Peers[id].Certificate, now)
	}
	return m, nil
}

// admitDelta verifies every part of the map that d changes. The error is
// wire.ErrGap, or that of AdmitSelf.
func admitDelta(a *authority.Authority, before *membership, d *wire.Delta, now time.Time) (*membership, error) {
	if d.Sequence <= d.BaseSequence {
		return nil, fmt.Errorf("%w: it leads from %d back to %d", wire.ErrGap, d.BaseSequence, d.Sequence)
	}
	raw, err := before.raw.Apply(d)
	if err != nil {
		return nil, err
	}
	m := *before
	m.raw = raw
	m.cached = false
	m.admitted = maps.Clone(before.admitted)
	m.refused = maps.Clone(before.refused)
	if d.Self != nil {
		if m.self, err = a.AdmitSelf(d.Self, now); err != nil {
			return nil, err
		}
	}
	if d.Rules != nil || m.rules != nil && m.rules.Node() != m.self.Node() {
		m.admitRules(a, raw.Rules, before)
	}
	if d.Candidate != nil || d.NoCandidate || m.candidate != nil && m.candidate.Node() != m.self.Node() {
		m.admitCandidate(a, raw.Candidate)
	}
	for _, id := range d.Removed {
		delete(m.admitted, id)
		delete(m.refused, id)
	}
	for _, id := range slices.Sorted(maps.Keys(d.Upserts)) {
		m.admitPeer(a, id, d.Upserts[id].Certificate, now)
	}
	return &m, nil
}

// admitRules takes the rules, or those of before where they are refused and
// were made for this device. Newer ones that cannot be read may take away what
// those of before give, so that there are none then.
func (m *membership) admitRules(a *authority.Authority, signed []byte, before *membership) {
	m.rules, m.rulesError = a.AdmitRules(signed, m.self.Node())
	m.signedRules = signed
	if m.rulesError == nil {
		return
	}
	m.rules, m.signedRules = nil, nil
	if errors.Is(m.rulesError, authority.ErrUnreadable) {
		return
	}
	if before != nil && before.rules != nil && before.rules.Node() == m.self.Node() {
		m.rules, m.signedRules = before.rules, before.signedRules
	}
}

// admitCandidate takes the candidate. One that is refused is absent: an older one
// would tell of a document that nobody looks at any more.
func (m *membership) admitCandidate(a *authority.Authority, signed []byte) {
	m.candidate, m.candidateError = nil, nil
	if len(signed) > 0 {
		m.candidate, m.candidateError = a.AdmitCandidate(signed, m.self.Node())
	}
}

// admitPeer replaces what was known of id. A peer that is refused is absent,
// even where an older certificate of it was admitted before.
func (m *membership) admitPeer(a *authority.Authority, id ident.NodeID, signed []byte, now time.Time) {
	delete(m.admitted, id)
	delete(m.refused, id)
	peer, err := a.Admit(signed, now)
	if err == nil && peer.Node() != id {
		err = fmt.Errorf("%w: %v", errOtherNode, peer.Node())
	}
	if err != nil {
		m.refused[id] = err
		return
	}
	m.admitted[id] = peer
}

// complete reports whether all that the map says is believed at now.
func (m *membership) complete(now time.Time) bool {
	return len(m.refused) == 0 && m.rulesError == nil && now.Before(m.self.NotAfter())
}

// ended counts the certificates that were admitted and hold no longer.
func (m *membership) ended(now time.Time) int {
	n := 0
	if !now.Before(m.self.NotAfter()) {
		n++
	}
	for _, id := range slices.Sorted(maps.Keys(m.admitted)) {
		if !now.Before(m.admitted[id].NotAfter()) {
			n++
		}
	}
	return n
}

// begin returns when the certificate begins for which err refuses a peer, and
// whether err is that it has not begun.
func begin(err error, now time.Time) (time.Time, bool) {
	var v *authority.ValidityError
	if !errors.As(err, &v) || !now.Before(v.End) {
		return time.Time{}, false
	}
	return v.Begin, true
}

// readmit verifies those again whose certificates had not begun, and returns
// the membership with those that hold by now; the same where there are none.
func (m *membership) readmit(a *authority.Authority, now time.Time) *membership {
	again := m
	for _, id := range slices.Sorted(maps.Keys(m.refused)) {
		if at, ok := begin(m.refused[id], now); !ok || now.Before(at) {
			continue
		}
		if again == m {
			next := *m
			next.admitted, next.refused = maps.Clone(m.admitted), maps.Clone(m.refused)
			again = &next
		}
		again.admitPeer(a, id, m.raw.Peers[id].Certificate, now)
	}
	return again
}

// view returns what holds at now, the facts about what was left out, and when
// the next certificate ends, or begins. Without a valid certificate of one's own the view
// is empty.
func (m *membership) view(now time.Time) (*View, []health.Fact, time.Time) {
	if !now.Before(m.self.NotAfter()) {
		return &View{}, nil, time.Time{}
	}
	refused := maps.Clone(m.refused)
	end := m.self.NotAfter()
	v := &View{
		Self: m.self, Rules: m.rules, Candidate: m.candidate, Settings: m.raw.Settings, RelayToken: m.raw.RelayToken,
		Sequence: m.raw.Sequence, Cached: m.cached,
	}
	for _, id := range slices.Sorted(maps.Keys(m.refused)) {
		if at, ok := begin(m.refused[id], now); ok && at.Before(end) {
			end = at
		}
	}
	claims := newClaims(m.self)
	for _, peer := range m.newestFirst() {
		switch {
		case !now.Before(peer.NotAfter()):
			refused[peer.Node()] = fmt.Errorf("%w: its certificate ended at %v", authority.ErrExpired, peer.NotAfter().Format(time.RFC3339))
		case !claims.take(peer):
			refused[peer.Node()] = errConflict
		default:
			v.Peers = append(v.Peers, Peer{Member: peer, State: m.raw.Peers[peer.Node()].State})
			if peer.NotAfter().Before(end) {
				end = peer.NotAfter()
			}
		}
	}
	slices.SortFunc(v.Peers, func(a, b Peer) int { return cmp.Compare(a.Member.Node(), b.Member.Node()) })
	var facts []health.Fact
	for _, id := range slices.Sorted(maps.Keys(refused)) {
		facts = append(facts, refusedFact(id, m.admitted[id], refused[id], now))
	}
	return v, facts, end
}

// newestFirst returns the admitted peers by descending serial, so that of two
// that claim one address the one that was certified later gets it.
func (m *membership) newestFirst() []*authority.Peer {
	peers := make([]*authority.Peer, 0, len(m.admitted))
	for _, id := range slices.Sorted(maps.Keys(m.admitted)) {
		peers = append(peers, m.admitted[id])
	}
	slices.SortStableFunc(peers, func(a, b *authority.Peer) int { return cmp.Compare(b.Serial(), a.Serial()) })
	return peers
}

// verified returns the map without what is refused at now, to keep on disk:
// what a coordinator once made up is not kept, and what has ended does not come
// back when the clock is set back. It is nil where the device's own certificate
// has ended.
func (m *membership) verified(now time.Time) *wire.Map {
	if !now.Before(m.self.NotAfter()) {
		return nil
	}
	out := *m.raw
	out.Rules = m.signedRules
	if m.candidate == nil {
		out.Candidate = nil
	}
	if len(m.refused) == 0 && m.ended(now) == 0 {
		return &out
	}
	out.Peers = maps.Clone(m.raw.Peers)
	for _, id := range slices.Sorted(maps.Keys(m.raw.Peers)) {
		if peer := m.admitted[id]; peer == nil || !now.Before(peer.NotAfter()) {
			delete(out.Peers, id)
		}
	}
	return &out
}

// claims are the keys and addresses that a view has given out.
type claims struct {
	keys      map[ident.NodeKey]bool
	addresses map[netip.Addr]bool
}

func newClaims(self *authority.Peer) *claims {
	c := &claims{keys: make(map[ident.NodeKey]bool), addresses: make(map[netip.Addr]bool)}
	c.take(self)
	return c
}

// take reports whether all that p claims was free, and claims it then.
func (c *claims) take(p *authority.Peer) bool {
	addresses := p.Identity().Addresses
	if c.keys[p.NodeKey()] || slices.ContainsFunc(addresses, func(a netip.Addr) bool { return c.addresses[a] }) {
		return false
	}
	c.keys[p.NodeKey()] = true
	for _, a := range addresses {
		c.addresses[a] = true
	}
	return true
}

// refusedFact tells of a peer that was left out. The name is given only where
// a certificate vouches for it.
func refusedFact(id ident.NodeID, peer *authority.Peer, err error, now time.Time) health.Fact {
	name := id.String()
	if peer != nil {
		name = fmt.Sprintf("%s (%v)", peer.Name(), id)
	}
	f := health.Fact{Code: health.PeerRefused, Severity: health.Alarm, Subject: id.String(), Since: now}
	switch {
	case errors.Is(err, authority.ErrExpired):
		f.Severity = health.Warning
		f.Text = fmt.Sprintf("Peer %s is left out: %v. Check the clocks of this device and of the coordinator.", name, err)
	case errors.Is(err, errConflict):
		f.Severity = health.Warning
		f.Text = fmt.Sprintf("Peer %s is left out: %v.", name, err)
	default:
		f.Text = fmt.Sprintf("Peer %s is left out: %v. The coordinator or what lies between may have been tampered with; tell your administrator.", name, err)
	}
	return f
}
