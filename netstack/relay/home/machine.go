package home

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/disco"
)

// Config is what a Machine needs.
type Config struct {
	// Rand is the only source of randomness: of challenges and of jitter.
	Rand io.Reader
}

// Relay is a relay of the configuration.
type Relay struct {
	Name string
	// STUN says that there is a STUN server beside the relay to measure it by.
	// Others are measured by connecting to them now and again.
	STUN bool
}

// Peer is a peer and the name of the relay at which it is said to listen, empty
// where that is not known.
type Peer struct {
	Key  ident.NodeKey
	Home string
}

// Kind says what an Output is.
type Kind uint8

const (
	// Connect asks for a connection to Relay. The answer is HandleReady or
	// HandleClosed, in that order where it is both.
	Connect Kind = iota + 1
	// Disconnect says that the connection to Relay, or the attempt, is not wanted
	// any more. No answer is due; one that comes all the same does no harm.
	Disconnect
	// Probe asks for a STUN request to the server beside Relay. The answer is
	// HandleProbe.
	Probe
	// Check asks for a disco.Ping with TxID to Peer over Relay. The answer is
	// HandlePong.
	Check
	// HomeChanged says that Relay is the home from now on, "" that there is none.
	HomeChanged
	// RouteChanged says that packets to Peer go over Relay from now on, "" for no
	// relay.
	RouteChanged
	// OnlineChanged says that Online has another value.
	OnlineChanged
	// AskInTunnel asks for a question with Nonce to Peer inside the tunnel, over
	// Relay, and as long as data that goes there: Draw says as long as which. The
	// answer is HandleTunnelAnswer.
	AskInTunnel
	// RouteBarred says that Relay is barred for Peer from now on (Barred).
	RouteBarred
	// Handshake asks for a new session with Peer: the present one may be known to
	// this node only. No answer is due.
	Handshake
	// Measure asks for the round trip of the connection to Relay. The answer is
	// HandleRTT.
	Measure
)

// Output is one thing that the Machine wants or tells.
type Output struct {
	Kind  Kind
	Relay string
	Peer  ident.NodeKey
	TxID  disco.TxID // of a Check
	Nonce uint64     // of AskInTunnel
	// Draw is one number for all questions inside the tunnel of one check, drawn at
	// random: a relay that carries short packets only is not to answer for long ones.
	Draw byte
}

// ErrUnsolicited means that a pong, or an answer inside the tunnel, answers no
// question that is outstanding for the peer and the relay.
var ErrUnsolicited = errors.New("home: answer to no question over this relay")

// Stats counts what happened in a Machine.
type Stats struct {
	ClockBack        uint64 // calls with a time before the last one's
	HomeChanges      uint64
	RouteChanges     uint64
	ConnectionLosses uint64 // connections that were admitted and ended
	ConnectFailures  uint64 // attempts that did not come to an admission
	OverCap          uint64 // connections that were wanted and had no room
	ChecksSent       uint64
	RoutesLost       uint64 // routes on which answers stayed out
	PeersGone        uint64 // notices of relays that a peer is not there
	PongsUnsolicited uint64
	PingsOverBudget  uint64 // pings of peers that were not answered
	OutputOverCap    uint64 // outputs dropped because nobody drained them
	RandFailed       uint64 // checks not sent because Rand gave an error

	TunnelAsked       uint64 // questions inside the tunnel
	TunnelUnsolicited uint64 // answers there to none of them, or too late
	RoutesBarred      uint64 // relays that carried questions and no tunnel
}

// maxOutput bounds the outputs, for a driver that does not drain: what one
// change of the configuration makes of a thousand peers, and more. The oldest
// are dropped.
const maxOutput = 1 << 16

// Machine is the relays of one node.
type Machine struct {
	cfg     Config
	now     time.Time
	session uint64
	seq     uint64

	relays []*relay // in the order of the configuration
	home   *relay   // nil for none
	told   string   // the home that was told last
	began  time.Time
	online bool

	peers map[ident.NodeKey]*peer
	// active are the peers with relayed traffic lately, in order of their first
	// use.
	active []*peer
	used   time.Time // last use of any peer over a relay

	next      time.Time // cached NextTimeout, zero for none
	nextKnown bool

	out   []Output
	stats Stats
}

// New returns a Machine without relays. The error is Rand's.
func New(cfg Config, now time.Time) (*Machine, error) {
	var raw [8]byte
	if _, err := io.ReadFull(cfg.Rand, raw[:]); err != nil {
		return nil, fmt.Errorf("home: drawing a session: %w", err)
	}
	return &Machine{
		cfg: cfg, now: now, session: binary.BigEndian.Uint64(raw[:]), peers: make(map[ident.NodeKey]*peer),
	}, nil
}

// SetRelays says which relays there are, in the order that all nodes know them
// in. Those that stay keep their state. The slice is not kept.
func (m *Machine) SetRelays(relays []Relay, now time.Time) {
	m.begin(now)
	before := m.relays
	m.relays = nil
	added := false
	for _, want := range relays {
		i := slices.IndexFunc(before, func(r *relay) bool { return r.name == want.Name })
		if i < 0 {
			m.relays = append(m.relays, &relay{name: want.Name, stun: want.STUN, probeAt: m.now, connectAt: m.now})
			added = true
			continue
		}
		before[i].stun = want.STUN
		m.relays = append(m.relays, before[i])
	}
	for _, r := range before {
		if !slices.Contains(m.relays, r) {
			m.drop(r)
		}
	}
	if added {
		m.began = m.now
	}
	m.settle()
	for _, p := range m.ordered() {
		m.route(p)
	}
	m.settle()
}

// SetPeers says which peers there are, and at which relay each of them is said to
// listen. Those that stay keep their state. The slice is not kept.
func (m *Machine) SetPeers(peers []Peer, now time.Time) {
	m.begin(now)
	wanted := make(map[ident.NodeKey]bool, len(peers))
	for _, want := range peers {
		wanted[want.Key] = true
		p := m.peers[want.Key]
		if p == nil {
			p = &peer{key: want.Key, home: want.Home, answers: answerBurst, answered: m.now}
			m.peers[want.Key] = p
		} else if p.home == want.Home {
			continue
		}
		p.home = want.Home
		m.handleHome(p)
	}
	for _, p := range m.ordered() {
		if !wanted[p.key] {
			delete(m.peers, p.key)
		}
	}
	m.active = slices.DeleteFunc(m.active, func(p *peer) bool { return !wanted[p.key] })
	m.settle()
}

// ordered returns the peers by their keys.
func (m *Machine) ordered() []*peer {
	out := make([]*peer, 0, len(m.peers))
	for _, key := range slices.SortedFunc(maps.Keys(m.peers), func(a, b ident.NodeKey) int { return slices.Compare(a[:], b[:]) }) {
		out = append(out, m.peers[key])
	}
	return out
}

// HandleUse says that packets are exchanged with a peer, or want to be, and that
// they do not go directly. Once a second is enough.
func (m *Machine) HandleUse(key ident.NodeKey, now time.Time) {
	m.clock(now)
	p := m.peers[key]
	if p == nil || len(m.relays) == 0 {
		return
	}
	fresh := m.now.Sub(p.used) < restart
	p.used, m.used = m.now, m.now
	if p.active && p.via != nil && p.via.state != idle {
		return // nothing changes but what is looked at later
	}
	m.begin(now)
	m.use(p, fresh)
	m.settle()
}

// HandleReady says that the relay admitted this node on the connection that was
// asked for.
func (m *Machine) HandleReady(name string, now time.Time) {
	m.begin(now)
	if r := m.find(name); r != nil && r.state == connecting {
		r.state, r.since, r.leaving = ready, m.now, false
	}
	m.settle()
}

// HandleClosed says that a connection ended or that an attempt failed.
func (m *Machine) HandleClosed(name string, now time.Time) {
	m.begin(now)
	if r := m.find(name); r != nil && r.state != idle {
		m.closed(r)
	}
	m.settle()
}

// HandleLeaving says that a relay which admitted this node is about to stop. It
// goes on to carry packets until others do.
func (m *Machine) HandleLeaving(name string, now time.Time) {
	m.begin(now)
	if r := m.find(name); r != nil && r.state == ready {
		r.leaving = true
	}
	m.settle()
}

// HandleRTT says how long a round trip to the relay takes by the connection's own
// ping.
func (m *Machine) HandleRTT(name string, rtt time.Duration, now time.Time) {
	m.handleRTT(name, rtt, false, now)
}

// HandleProbe says how long a Probe of the relay took to be answered.
func (m *Machine) HandleProbe(name string, rtt time.Duration, now time.Time) {
	m.handleRTT(name, rtt, true, now)
}

func (m *Machine) handleRTT(name string, rtt time.Duration, probe bool, now time.Time) {
	m.begin(now)
	if r := m.find(name); r != nil && rtt > 0 {
		m.measure(r, rtt, probe)
	}
	m.settle()
}

// RTT returns the least of the recent round trips to the relay, zero where none is
// known.
func (m *Machine) RTT(name string) time.Duration {
	if r := m.find(name); r != nil {
		return r.rtt()
	}
	return 0
}

// HandlePing says that an authentic disco.Ping of a peer came over a relay, and
// returns whether to answer it there. The peer may be about to send: this node
// listens at its standby meanwhile, in case that the relay carries nothing else.
func (m *Machine) HandlePing(name string, key ident.NodeKey, now time.Time) bool {
	m.begin(now)
	defer m.settle()
	p, r := m.peers[key], m.find(name)
	if p == nil || r == nil {
		return false
	}
	m.used = m.now
	m.hint(p, r)
	if !p.mayAnswer(m.now) {
		m.stats.PingsOverBudget++
		return false
	}
	return true
}

// HandlePong says that an authentic disco.Pong of a peer came over a relay. The
// error is ErrUnsolicited.
func (m *Machine) HandlePong(name string, key ident.NodeKey, pong disco.Pong, now time.Time) error {
	m.begin(now)
	defer m.settle()
	p, r := m.peers[key], m.find(name)
	if p == nil || r == nil {
		m.stats.PongsUnsolicited++
		return ErrUnsolicited
	}
	asked, ok := p.takeAnswer(r, pong.TxID)
	if !ok {
		m.stats.PongsUnsolicited++
		return ErrUnsolicited
	}
	p.inTunnel = pong.InTunnel
	m.proved(p, r, asked)
	return nil
}

// HandleInbound says that a packet came over a relay that says it is of the peer.
// It is a hint: the peer may be reached there.
func (m *Machine) HandleInbound(name string, key ident.NodeKey, now time.Time) {
	m.begin(now)
	if p, r := m.peers[key], m.find(name); p != nil && r != nil {
		m.hint(p, r)
	}
	m.settle()
}

// HandlePeerGone says that the relay does not have the peer. It is a hint: the
// peer may be reached elsewhere.
func (m *Machine) HandlePeerGone(name string, key ident.NodeKey, now time.Time) {
	m.begin(now)
	if p, r := m.peers[key], m.find(name); p != nil && r != nil {
		m.stats.PeersGone++
		m.gone(p, r)
	}
	m.settle()
}

// HandleNetworkChange says that this machine's addresses or routes changed, or
// that it woke up: connections are made anew and everything is measured again.
func (m *Machine) HandleNetworkChange(now time.Time) {
	m.begin(now)
	m.began = m.now
	for _, r := range m.relays {
		r.samples, r.lost, r.silent, r.probeAt, r.connectAt = nil, 0, false, m.now, m.now
		r.measured, r.asked = time.Time{}, time.Time{}
		r.failures, r.next = 0, time.Time{}
		if r.state != idle {
			m.emit(Output{Kind: Disconnect, Relay: r.name})
			r.state, r.since = idle, m.now
		}
	}
	for _, p := range m.active {
		p.lost, p.bars, p.tunnel = nil, nil, tunnelCheck{}
		p.settleAnew(m.now)
	}
	m.settle()
}

// HandleRetry says that what kept relays from admitting this node may be over: it
// has another token. Attempts that wait are made at once.
func (m *Machine) HandleRetry(now time.Time) {
	m.begin(now)
	for _, r := range m.relays {
		r.next = time.Time{}
	}
	m.settle()
}

// NextTimeout returns when HandleTimeout wants to be called: the last time given
// where outputs are pending.
func (m *Machine) NextTimeout() (time.Time, bool) {
	if len(m.out) > 0 {
		return m.now, true
	}
	if !m.nextKnown {
		m.next, m.nextKnown = m.deadline(), true
	}
	if m.next.IsZero() {
		return time.Time{}, false
	}
	if m.next.Before(m.now) {
		return m.now, true
	}
	return m.next, true
}

// HandleTimeout does what is due at now. A call that comes late does it once.
func (m *Machine) HandleTimeout(now time.Time) {
	m.begin(now)
	m.settle()
}

// NextOutput returns the next output, in order, and false where there is none.
func (m *Machine) NextOutput() (Output, bool) {
	if len(m.out) == 0 {
		return Output{}, false
	}
	o := m.out[0]
	m.out = m.out[1:]
	if len(m.out) == 0 {
		m.out = nil
	}
	return o, true
}

// Online reports whether some relay has admitted this node.
func (m *Machine) Online() bool { return m.online }

// Home returns the name of the home, "" for none.
func (m *Machine) Home() string {
	if m.home == nil {
		return ""
	}
	return m.home.name
}

// Route returns the name of the relay over which packets to the peer go, "" for
// none.
func (m *Machine) Route(key ident.NodeKey) string {
	if p := m.peers[key]; p != nil && p.via != nil {
		return p.via.name
	}
	return ""
}

// Ping returns the message of a Check.
func (m *Machine) Ping(o Output) disco.Ping {
	m.seq++
	return disco.Ping{TxID: o.TxID, Session: m.session, Seq: m.seq}
}

func (m *Machine) find(name string) *relay {
	for _, r := range m.relays {
		if r.name == name {
			return r
		}
	}
	return nil
}

func (m *Machine) emit(o Output) {
	if len(m.out) == maxOutput {
		m.out = m.out[1:]
		m.stats.OutputOverCap++
	}
	m.out = append(m.out, o)
}

func (m *Machine) clock(now time.Time) {
	if now.Before(m.now) {
		m.stats.ClockBack++
		return
	}
	m.now = now
}

// begin is how every input begins, settle how it ends.
func (m *Machine) begin(now time.Time) {
	m.clock(now)
	m.nextKnown = false
}

// settle does everything that is due and brings connections, home and routes
// into line.
func (m *Machine) settle() {
	m.nextKnown = false
	m.probeDue()
	m.chooseHome()
	m.rest()
	for _, p := range m.active {
		m.checkTunnel(p) // which may change the route
		m.check(p)
	}
	m.connect()
	if home := m.Home(); home != m.told {
		m.told = home
		m.stats.HomeChanges++
		m.emit(Output{Kind: HomeChanged, Relay: home})
	}
	online := slices.ContainsFunc(m.relays, func(r *relay) bool { return r.state == ready })
	if online != m.online {
		m.online = online
		m.emit(Output{Kind: OnlineChanged})
	}
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
