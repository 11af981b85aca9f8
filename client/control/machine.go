package control

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/coordinator/wire"
)

const (
	// dialTimeout bounds fetching the genesis record, and opening the channel:
	// TCP, TLS, HTTP and Noise over a bad mobile network.
	dialTimeout = 20 * time.Second
	// replyTimeout bounds the wait for Welcome and for Registered, which the
	// coordinator sends after a transaction.
	replyTimeout = 15 * time.Second
	// mapTimeout bounds the wait for a full map, the longest message.
	mapTimeout = 60 * time.Second
	// silenceLimit is how long a coordinator may say nothing. It pings a node
	// that is silent for 15 s; three lost pings end the connection.
	silenceLimit = 50 * time.Second
	// slowRetry is for states that only somebody else can change: a newer
	// coordinator, a clock that is set.
	slowRetry = 5 * time.Minute
	// resyncInterval is the least time between two requests for a full map on
	// one connection. A coordinator that needs more is broken.
	resyncInterval = 10 * time.Second
	// updateInterval spreads reports of endpoints that change quickly.
	updateInterval = time.Second
	// saveDelay is how long the hearsay part of the map (endpoints, relay
	// tokens) may be newer than the map on disk.
	saveDelay = time.Minute
	// stableAfter is how long a connection must have lasted for the next
	// failure to count as a first one.
	stableAfter = 10 * time.Second
	// aloneAfter is how long a connection must have lasted to show that no copy
	// of the device takes it away: twice replacedDelay, after which that would
	// have come back.
	aloneAfter = 2 * replacedDelay
	// skewLimit is from when on clocks differ enough to be told.
	skewLimit = 2 * time.Minute
	// leadStep is by how much the network's time must differ from what the device
	// takes it for to be taken anew: half of what the end of a certificate may be
	// off. Less is the way of a message, and no reason to judge all flows again.
	leadStep = time.Second
	// expiryNotice is how long before its end a certificate that was not
	// renewed is spoken of.
	expiryNotice = 24 * time.Hour
)

// Config is what a Machine is made of.
type Config struct {
	// Rand is the only source of randomness. It jitters the back-off.
	Rand io.Reader
	// URL is the coordinator's address, as the user gave it.
	URL string
	// Network is the fingerprint that all trust follows from.
	Network ident.Fingerprint
	// NodeKey is the device's WireGuard key.
	NodeKey ident.NodeKey
	// Host describes the device to people.
	Host wire.HostInfo
	// Saved is the content of the last Persist event.
	Saved Saved
}

// Counters count what happened since New. They never go down.
type Counters struct {
	Frames, Maps, Deltas uint64
	// Resyncs counts full maps asked for because a delta did not fit.
	Resyncs uint64
	// Connections counts channels that reached Streaming.
	Connections uint64
	// Refused counts peers, rules and own certificates that did not verify.
	Refused uint64
	// Malformed counts messages that were not of the protocol.
	Malformed uint64
	// ClockBackwards counts inputs whose time was before that of the last.
	ClockBackwards uint64
}

// Snapshot is a copy of what people may want to know of a Machine.
type Snapshot struct {
	State State
	// Since is when State was entered, Reason the text of StateChanged.
	Since  time.Time
	Reason string
	// Retry is when the next attempt is due; zero for none.
	Retry time.Time
	// Synced reports whether the coordinator confirmed the view on the present
	// connection.
	Synced   bool
	Facts    []health.Fact
	Counters Counters
}

// ErrNotConnected is returned for frames that come when there is no channel.
var ErrNotConnected = errors.New("control: no connection to the coordinator")

// Machine is the client's side of the control protocol; see the package's
// documentation.
type Machine struct {
	cfg       Config
	now       time.Time
	authority *authority.Authority // nil until the genesis record is known
	// remembered is the authority's state until there is an authority.
	remembered authority.State
	// attested is the highest time that a coordinator gave whose map was
	// believed.
	attested time.Time
	// lead is how far the device's clock is ahead of the network's time; known
	// says that it follows from what a coordinator told since New, told that one
	// told something.
	lead        time.Duration
	known, told bool

	state    State
	since    time.Time
	reason   string
	deadline time.Time // of state; zero for none
	backoff  backoff

	registration *Registration
	endpoints    []netip.AddrPort
	homeRelay    string
	routes       []netip.Prefix

	// Of the present connection.
	proof      wire.Proof
	greeted    time.Time     // when Hello was sent
	welcomed   time.Time     // the time that the coordinator gave
	offered    time.Duration // the lead that follows from it
	synced     bool
	streaming  time.Time // since when
	resyncing  bool
	resynced   time.Time // when a full map was last asked for
	sentUpdate time.Time
	updateDue  time.Time // zero for none

	member  *membership // nil for none
	expiry  time.Time   // when the view changes by itself, in the network's time; zero for never
	saveDue time.Time   // zero for nothing to save
	// endedSaved is how many certificates had ended when the map was saved.
	endedSaved int
	revoked    bool

	outputs       []Output
	events        []Event
	facts         health.Set
	healthChanged bool
	counters      Counters
}

// New returns a Machine in state Idle, or Revoked where Saved says so. What of
// Saved verifies becomes a first NetMap event; what does not becomes a health
// fact, and is not used. The error says which part of cfg is missing.
//
// All times that the Machine is given must be of one clock that never goes back
// and counts the time of a suspended machine (package clock): the life of
// certificates is measured by it. A monotonic reading in them is left out. The
// clock need not be right: once a coordinator has told its time, certificates are
// judged by that and what has passed since.
func New(cfg Config, now time.Time) (*Machine, error) {
	switch {
	case cfg.Rand == nil:
		return nil, errors.New("control: no source of randomness")
	case cfg.URL == "" || cfg.Network.IsZero():
		return nil, errors.New("control: no coordinator's address or network fingerprint")
	case cfg.NodeKey.IsZero():
		return nil, errors.New("control: no node key")
	}
	// What ended before the last time that was certain does not hold again
	// because the clock was set back meanwhile.
	if now = now.Round(0); now.Before(cfg.Saved.Time) {
		now = cfg.Saved.Time
	}
	m := &Machine{cfg: cfg, now: now, since: now, revoked: cfg.Saved.Revoked, remembered: cfg.Saved.Authority, attested: cfg.Saved.Time}
	m.cfg.Saved = Saved{}
	if m.revoked {
		m.state = Revoked
		m.put(revokedFact(now))
	}
	if err := m.load(cfg.Saved); err != nil {
		m.put(health.Fact{
			Code: health.CacheUnusable, Severity: health.Warning, Since: now,
			Text: fmt.Sprintf("The saved map is not used: %v. Peers come back when the coordinator answers.", err),
		})
	}
	return m, nil
}

// load takes over what was saved, as far as it verifies.
func (m *Machine) load(saved Saved) error {
	if len(saved.Genesis) == 0 {
		return nil
	}
	genesis, err := authority.DecodeGenesis(saved.Genesis, m.cfg.Network)
	if err != nil {
		m.remembered = authority.State{} // that of another network
		return err
	}
	if m.authority, err = authority.New(genesis, m.cfg.NodeKey, saved.Authority); err != nil {
		return err
	}
	if m.revoked || len(saved.Map) == 0 {
		return nil
	}
	message, err := wire.DecodeServer(saved.Map)
	if err != nil {
		return err
	}
	raw, ok := message.(*wire.Map)
	if !ok {
		return fmt.Errorf("%w: a %T where a map is wanted", wire.ErrMalformed, message)
	}
	member, err := admitMap(m.authority, raw, nil, m.judged())
	if err != nil {
		return err
	}
	member.cached = true
	m.adopt(member)
	return nil
}

// tick clamps now to what was seen before.
func (m *Machine) tick(now time.Time) {
	if now = now.Round(0); now.Before(m.now) {
		m.counters.ClockBackwards++
		return
	}
	m.now = now
}

// enter changes the state; the deadline is that of the new one, zero for none.
func (m *Machine) enter(s State, reason string, deadline time.Time) {
	changed := s != m.state || reason != m.reason
	m.state, m.deadline, m.reason = s, deadline, reason
	if !changed {
		return
	}
	m.since = m.now
	m.events = append(m.events, StateChanged{State: s, Reason: reason})
}

// connect begins an attempt.
func (m *Machine) connect(reason string) {
	m.synced, m.resyncing, m.updateDue = false, false, time.Time{}
	if m.authority == nil {
		m.outputs = append(m.outputs, FetchGenesis{URL: m.cfg.URL, Network: m.cfg.Network})
	} else {
		m.outputs = append(m.outputs, Dial{
			URL: m.cfg.URL, Coordinator: m.authority.Genesis().Channel, Network: m.cfg.Network,
		})
	}
	m.enter(Dialing, reason, m.now.Add(dialTimeout))
}

// disconnect ends the attempt or the connection, if there is one.
func (m *Machine) disconnect() {
	if m.state == Dialing || m.state.connected() {
		m.outputs = append(m.outputs, Close{})
	}
	if m.state == Streaming && m.synced && m.now.Sub(m.streaming) >= stableAfter {
		m.backoff.reset()
	}
	m.synced, m.resyncing, m.updateDue = false, false, time.Time{}
}

// retry waits for the next attempt: by the back-off, and no less than least.
func (m *Machine) retry(reason string, least time.Duration) {
	delay := max(m.backoff.next(m.cfg.Rand), min(least, longestRetryAfter))
	m.enter(Backoff, reason, m.now.Add(delay))
	meanwhile := "Check the address."
	if m.member != nil {
		meanwhile = "Tunnels between known peers go on; changes of the policy do not arrive."
	}
	m.put(health.Fact{
		Code: health.CoordinatorUnreachable, Severity: health.Warning, Since: m.now,
		Text: fmt.Sprintf("No connection to the coordinator at %s: %s. %s It is tried again by itself.", m.cfg.URL, reason, meanwhile),
	})
	if m.member != nil {
		m.expiryFact()
	}
}

// adopt makes member what is believed, and tells of it.
func (m *Machine) adopt(member *membership) {
	m.member = member
	m.refreshView()
	m.rulesFact()
	m.candidateFact()
}

// refreshView builds the view that holds now, and tells of it.
func (m *Machine) refreshView() {
	view, refused, end := m.member.view(m.judged())
	view.Lead = m.lead
	if genesis := m.authority.Genesis(); view.Self != nil {
		view.Overlay = []netip.Prefix{genesis.Prefix4, genesis.Prefix6}
	}
	m.expiry = end
	m.note(m.facts.Replace(health.PeerRefused, refused))
	if view.Self == nil {
		m.put(health.Fact{
			Code: health.CertificateExpired, Severity: health.Error, Since: m.now,
			Text: fmt.Sprintf("The certificate of this device ended at %v, so no peer accepts it. It is renewed when the coordinator at %s answers; check the clock of this device, or ask your administrator.", m.member.self.NotAfter().Format(time.RFC3339), m.cfg.URL),
		})
	} else {
		m.note(m.facts.Clear(health.CertificateExpired, ""))
		m.expiryFact()
	}
	m.events = append(m.events, NetMap{View: view})
}

// expiryFact warns of a certificate that ends soon while there is nobody to
// renew it, and sees to being woken for that.
func (m *Machine) expiryFact() {
	end := m.member.self.NotAfter()
	notice := end.Add(-expiryNotice)
	early := m.judged().Before(notice)
	if early && notice.Before(m.expiry) {
		m.expiry = notice
	}
	if early || m.synced || !m.judged().Before(end) {
		m.note(m.facts.Clear(health.CertificateExpiring, ""))
		return
	}
	m.put(health.Fact{
		Code: health.CertificateExpiring, Severity: health.Warning, Since: m.now,
		Text: fmt.Sprintf("The certificate of this device ends at %v and was not renewed yet. The coordinator renews it when it is reached.", end.Format(time.RFC3339)),
	})
}

// candidateFact tells of a candidate that is not used.
func (m *Machine) candidateFact() {
	if m.member.candidateError == nil {
		m.note(m.facts.Clear(health.CandidateRefused, ""))
		return
	}
	m.put(health.Fact{
		Code: health.CandidateRefused, Severity: health.Alarm, Since: m.now,
		Text: fmt.Sprintf("The candidate policy that the coordinator sent is not used: %v. Nothing is decided by it, but reports about it are incomplete. Tell your administrator.", m.member.candidateError),
	})
}

func (m *Machine) rulesFact() {
	err := m.member.rulesError
	rollback := errors.Is(err, authority.ErrRollback)
	m.note(m.facts.Clear(health.CacheUnusable, ""))
	if !rollback {
		m.note(m.facts.Clear(health.PolicyRollback, ""))
	}
	if err == nil || rollback {
		m.note(m.facts.Clear(health.RulesRefused, ""))
	}
	if err == nil {
		return
	}
	f := health.Fact{Code: health.RulesRefused, Severity: health.Alarm, Since: m.now}
	if rollback {
		f.Code = health.PolicyRollback
	}
	kept := "Those before stay in force."
	if m.member.rules == nil {
		kept = "Everything is denied until there are rules that verify."
	}
	f.Text = fmt.Sprintf("The rules that the coordinator sent are refused: %v. %s Tell your administrator.", err, kept)
	m.put(f)
}

// leave ends the membership: the view is empty from here on.
func (m *Machine) leave() {
	m.member, m.expiry = nil, time.Time{}
	for _, code := range []health.Code{
		health.PeerRefused, health.RulesRefused, health.PolicyRollback, health.SelfRefused,
		health.CertificateExpired, health.CertificateExpiring, health.CandidateRefused,
	} {
		m.note(m.facts.ClearCode(code))
	}
	m.save()
	m.events = append(m.events, NetMap{View: &View{}})
}

// save tells the shell what to keep.
func (m *Machine) save() {
	m.saveDue = time.Time{}
	saved := Saved{Revoked: m.revoked, Time: m.attested}
	if m.authority != nil {
		saved.Genesis = m.authority.Genesis().AppendBinary(nil)
		saved.Authority = m.authority.State()
	} else {
		saved.Authority = m.remembered
	}
	if m.member != nil {
		if verified := m.member.verified(m.judged()); verified != nil {
			saved.Map = wire.EncodeServer(verified)
		}
		m.endedSaved = m.member.ended(m.judged())
	}
	m.events = append(m.events, Persist{Saved: saved})
}

func (m *Machine) put(f health.Fact) { m.note(m.facts.Put(f)) }

func (m *Machine) note(changed bool) { m.healthChanged = m.healthChanged || changed }

// Registration returns whether a registration waits to be sent.
func (m *Machine) Registration() bool { return m.registration != nil }

// NextOutput returns what the shell has to do next, in order, and false when
// there is nothing.
func (m *Machine) NextOutput() (Output, bool) {
	if len(m.outputs) == 0 {
		return nil, false
	}
	o := m.outputs[0]
	m.outputs = slices.Delete(m.outputs, 0, 1)
	return o, true
}

// NextEvent returns the next event, in order, and false when there is none.
func (m *Machine) NextEvent() (Event, bool) {
	if len(m.events) == 0 {
		if m.healthChanged {
			m.healthChanged = false
			return HealthChanged{}, true
		}
		return nil, false
	}
	e := m.events[0]
	m.events = slices.Delete(m.events, 0, 1)
	return e, true
}

// Snapshot returns a copy of the present standing.
func (m *Machine) Snapshot() Snapshot {
	s := Snapshot{
		State: m.state, Since: m.since, Reason: m.reason, Synced: m.synced,
		Facts: m.facts.Facts(), Counters: m.counters,
	}
	if m.state == Backoff || m.state == Expired || m.state == Suspended {
		s.Retry = m.deadline
	}
	return s
}
