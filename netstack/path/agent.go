package path

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// Config is what an Agent needs.
type Config struct {
	// Rand is the only source of randomness: of challenges and of the session.
	Rand io.Reader
	// Loopback allows candidates on the loopback interface, for nodes that share
	// one machine. Otherwise a peer could make this node knock at its own ports.
	Loopback bool
	// Refuse, where not nil, says which addresses must not be probed: the
	// overlay's own, above all. It must be a pure function.
	Refuse func(netip.Addr) bool
	// MTU is that of the tunnel's own device, in bytes: what a direct path is
	// asked for. It must be what the tunnel pads packets up to. Zero means that
	// nobody can tell what a path carries, because what is sent may be
	// fragmented: MTU then returns zero.
	MTU int
	// RelayMTU is the MTU inside the tunnel over the relay; zero means that the
	// relay carries whatever MTU makes.
	RelayMTU int
	// Birthday, where not nil, lets ports be guessed within a budget that all
	// agents of the node share; see SetLocalMapping. The driver must then open
	// the sockets that Sockets lists.
	Birthday *BirthdayBudget
}

// Transmit is a message to seal for the peer and to send.
type Transmit struct {
	// To is Direct, or Relay for a CallMe and a Mapping.
	To      Path
	Message disco.Message
}

// Reason says why the primary changed.
type Reason uint8

const (
	// ReasonProved means that a better path was proved.
	ReasonProved Reason = iota + 1
	// ReasonRelay means that the relay came or went.
	ReasonRelay
	// ReasonLost means that the primary stopped answering. It may be our own NAT
	// that forgot us: nat.Discoverer.HandleDistress finds that out.
	ReasonLost
	// ReasonIdle means that nobody used the path and its proof is too old.
	ReasonIdle
	// ReasonNetwork means that this machine's network changed.
	ReasonNetwork
)

// String returns the reason as a metric label.
func (r Reason) String() string {
	switch r {
	case ReasonProved:
		return "proved"
	case ReasonRelay:
		return "relay"
	case ReasonLost:
		return "lost"
	case ReasonIdle:
		return "idle"
	case ReasonNetwork:
		return "network"
	}
	return "unknown"
}

// Event says that the primary path changed, or Both did. Packets go by Primary
// from now on; with None there is no way.
type Event struct {
	Primary Path
	Why     Reason // of the Primary
	// Both means that Primary, a direct path, does not answer at the moment:
	// packets are to go over the relay as well until that is over, one way or the
	// other. The tunnel drops what comes twice.
	Both bool
	// FlapsBegin means that this change is one too many in a minute: the path
	// changes more often than networks make it. It comes once for a time of that.
	FlapsBegin bool
	// Restarted means that nothing of this changed, but that the peer has started
	// again: it knows no session of the tunnel that is older.
	Restarted bool
}

// Traffic says what came in.
type Traffic uint8

const (
	// Handshake is a message of the tunnel's handshake.
	Handshake Traffic = iota + 1
	// Keepalive is an empty packet of the tunnel: it shows life, but not use.
	Keepalive
	// Data is a packet with contents.
	Data
)

var (
	// ErrReplay means that a ping was answered before.
	ErrReplay = errors.New("path: ping was seen before")
	// ErrUnsolicited means that a pong answers no challenge that is outstanding
	// for the address that it came from.
	ErrUnsolicited = errors.New("path: pong answers no challenge to this address")
	// ErrBudget means that the peer asks for more than its share.
	ErrBudget = errors.New("path: over the budget")
	// ErrAddress means that an address can not be the peer's.
	ErrAddress = errors.New("path: address can not be used")
	// ErrSocket means that a ping came to a further socket that is not in use any
	// more, or while another one has the say.
	ErrSocket = errors.New("path: ping to a socket that is not listened to")
)

// Stats counts what happened in an Agent.
type Stats struct {
	ClockBack         uint64 // calls with a time before the last one's
	PingsSent         uint64
	PongsSent         uint64
	CallsSent         uint64
	PongsAccepted     uint64
	PongsUnsolicited  uint64
	PingsReplayed     uint64
	PingsOverBudget   uint64 // pings of the peer without an answer for lack of budget
	CallsOverBudget   uint64 // calls of the peer, likewise
	ProbesOverBudget  uint64 // probes of ours that were not sent for lack of budget
	ProbesSkipped     uint64 // probes that fell due while the machine slept
	RefusedCandidates uint64
	CandidatesOverCap uint64
	PrimaryChanges    uint64
	Flaps             uint64 // times in which the primary changed too often
	Losses            uint64 // primaries that stopped answering
	Barred            uint64 // primaries that answered but carried no tunnel
	OutputOverCap     uint64 // transmits dropped because nobody drained them
	RandFailed        uint64 // probes not sent because Rand gave an error
	SizesSent         uint64 // padded pings; PingsSent does not count them
	BlackHoles        uint64 // paths that stopped carrying long packets only
	Strays            uint64 // packets of the tunnel from addresses that were not proved
	StrayAlarms       uint64 // times in which they were too many

	MappingsSent       uint64
	MappingsOverBudget uint64 // what the peer said of its mapping, unheard for lack of budget
	BirthdaysBegun     uint64 // attempts to guess a port, in either role
	BirthdaysWon       uint64
	BirthdaysFailed    uint64 // attempts that were used up; others ended otherwise
	OpeningsSent       uint64 // probes from further sockets; PingsSent does not count them
	GuessesSent        uint64 // probes to ports at random; PingsSent does not count them
	SocketsIgnored     uint64 // pings to further sockets that were not listened to
}

// Agent chooses the path to one peer.
type Agent struct {
	cfg Config
	now time.Time

	session uint64
	seq     uint64

	local      []netip.AddrPort
	candidates []*candidate // in order of arrival
	relay      bool
	primary    Path
	why        Reason    // of the primary, zero where there never was one
	since      time.Time // when it became primary

	active bool
	used   time.Time // last use while active
	// stirred is when a ping of the peer first made an Agent that is not active
	// send challenges.
	stirred time.Time

	// checking is when the check of the primary began, zero for none; checks is
	// how many of its pings were due, and checkNext when it goes on.
	checking  time.Time
	checks    int
	checkNext time.Time
	unheard   bool     // the peer seems not to hear us by the primary
	both      bool     // as the last event said
	distress  distress // about the primary

	callStep int
	callNext time.Time // when to send a CallMe; zero for not scheduled
	callDue  bool
	called   time.Time // when the last CallMe fell due

	probes  budget // challenges of ours, but for those to the primary
	strays  budget // as many of them may go to addresses that nobody lists
	watches budget // challenges to the primary, which nothing else may use up

	answers  budget // pongs to addresses that are not proved
	calls    budget // calls of the peer
	answered sessions
	// liveAnswers are pongs to paths that work, so that a flood of pings from
	// elsewhere, captured or not, leaves those of the peer alone.
	liveAnswers budget
	sizeProbes  budget // padded pings of ours

	birthday birthday

	out    []Transmit
	events []Event
	stats  Stats
	flaps  recurrence // changes of the primary

	strayed strayWatch
}

// maxOutput bounds both output queues, for a driver that does not drain. The
// newest transmit is dropped; of events the oldest, since the last one is the
// truth.
const maxOutput = 128

// New returns an Agent that knows no way to its peer. The error is Rand's.
func New(cfg Config, now time.Time) (*Agent, error) {
	var raw [8]byte
	if _, err := io.ReadFull(cfg.Rand, raw[:]); err != nil {
		return nil, fmt.Errorf("path: drawing a session: %w", err)
	}
	return &Agent{
		cfg: cfg, now: now,
		session:     binary.BigEndian.Uint64(raw[:]),
		probes:      newBudget(probeBurst, probeInterval, now),
		strays:      newBudget(strayBurst, strayInterval, now),
		watches:     newBudget(probeBurst, probeInterval, now),
		answers:     newBudget(answerBurst, answerInterval, now),
		liveAnswers: newBudget(answerBurst, answerInterval, now),
		calls:       newBudget(callBurst, callInterval, now),
		sizeProbes:  newBudget(sizeBurst, sizeInterval, now),
		flaps:       newRecurrence(flapLimit, flapWindow),
		strayed:     strayWatch{strange: newRecurrence(strayLimit, strayWindow)},
		birthday: birthday{
			attempts: newBudget(attemptBurst, attemptInterval, now),
			heard:    newBudget(mappingBurst, mappingInterval, now),
		},
	}, nil
}

// SetRemoteCandidates says at which addresses the peer may be, best known from
// the coordinator. It replaces what an earlier call said; a path that works
// stays. The slice is not kept. It never refuses: addresses that can not be
// used, and those beyond the first 16 usable ones, are left out and counted.
func (a *Agent) SetRemoteCandidates(addrs []netip.AddrPort, now time.Time) {
	a.advance(now)
	added := a.replace(addrs, SourceListed)
	if a.active {
		a.schedule(added)
	}
	a.choose(ReasonProved)
	a.flush()
}

// SetLocalCandidates says at which addresses this node may be reached: what a
// CallMe tells the peer. The slice is not kept; the first 16 usable ones count.
func (a *Agent) SetLocalCandidates(addrs []netip.AddrPort, now time.Time) {
	a.advance(now)
	local := make([]netip.AddrPort, 0, disco.MaxEndpoints)
	for _, addr := range addrs {
		if addr = unmap(addr); a.usable(addr) && len(local) < disco.MaxEndpoints && !slices.Contains(local, addr) {
			local = append(local, addr)
		}
	}
	if !slices.Equal(local, a.local) {
		a.local = local
		if a.active && a.primary.Kind != Direct {
			a.scheduleCall()
		}
	}
	a.flush()
}

// HandleNetworkChange says that this machine's addresses or routes changed, or
// that it woke up: what was proved is no longer. An active Agent checks its
// primary and probes everything again at once.
func (a *Agent) HandleNetworkChange(now time.Time) {
	a.advance(now)
	for _, c := range a.candidates {
		c.samples, c.outstanding = nil, nil
		c.barred, c.bars = time.Time{}, 0
		if a.active && c.path() == a.primary && c.sizes.proved > 0 {
			// Most changes leave the path as it was.
			c.sizes.asked, c.sizes.outstanding, c.sizes.confirmed = nil, nil, time.Time{}
			a.reconfirm(c)
		} else {
			c.sizes = sizes{}
		}
		if !a.active || c.path() != a.primary {
			c.proved = time.Time{}
			c.sources &^= SourceProved
			if c.sources == 0 {
				c.sources = SourceObserved
			}
		}
	}
	a.endBirthday()
	a.birthday.renew()
	a.birthday.needed = time.Time{}
	a.forgetStep()
	a.choose(ReasonNetwork)
	if a.active {
		a.check()
		a.schedule(a.candidates)
		a.scheduleCall()
	}
	a.flush()
}

// HandlePing takes an authentic ping that came from the given address. It is
// answered there, once; an address that is not proved gets a challenge. The
// error is ErrAddress, ErrReplay or ErrBudget.
func (a *Agent) HandlePing(from netip.AddrPort, m disco.Ping, now time.Time) error {
	return a.HandleSocketPing(0, from, m, now)
}

// HandleSocketPing is HandlePing for a ping that came to a further socket. The
// error may be ErrSocket, too.
func (a *Agent) HandleSocketPing(socket uint32, addr netip.AddrPort, m disco.Ping, now time.Time) error {
	a.advance(now)
	defer a.flush()
	from := DirectFrom(socket, addr)
	if !a.usable(from.Addr) {
		return ErrAddress
	}
	if socket != 0 && !a.listens(socket) {
		a.stats.SocketsIgnored++
		return ErrSocket
	}
	known := a.find(from)
	works := known != nil && a.alive(known)
	answers := &a.answers
	if works {
		answers = &a.liveAnswers
	}
	if !answers.has(a.now) {
		a.stats.PingsOverBudget++
		return ErrBudget
	}
	if !a.answered.fresh(m.Session, m.Seq) {
		a.stats.PingsReplayed++
		return ErrReplay
	}
	if works && a.answered.keep(m.Session) {
		a.emit()
		a.events[len(a.events)-1].Restarted = true
	}
	answers.take(a.now)
	a.stats.PongsSent++
	a.transmit(Transmit{from, disco.Pong{TxID: m.TxID, Observed: from.Addr}})
	c := a.meet(from)
	switch {
	case works, a.now.Before(c.barred):
	case !a.active:
		if a.stir() && a.now.Sub(c.wanted) >= echoInterval {
			a.want(c)
		}
	case c.stray() && a.now.Sub(c.wanted) < echoInterval:
	case c.next.IsZero(), c.step == len(probeDelays):
		a.schedule([]*candidate{c})
	case a.now.Sub(c.wanted) >= echoInterval:
		a.want(c)
	}
	a.notePing(c)
	c.heard = a.now
	if p := a.find(a.primary); a.primary.Kind == Direct && p != c {
		// The peer may have moved: ask the primary now, not at the next beat.
		a.checkIfQuiet(p)
	}
	return nil
}

// notePing notes a ping from c. Where the peer asks the primary again within the
// time of a try, it got no answer: what leaves by that path may be lost. Not where
// an answer just came by it, or the two would go on asking each other.
func (a *Agent) notePing(c *candidate) {
	again := a.now.Sub(c.pinged) < maxSpacing && a.now.Sub(c.proved) >= quiet
	c.pinged = a.now
	if again && a.active && c.path() == a.primary {
		a.check()
		a.unheard = true
	}
}

// HandlePong takes an authentic pong that came from the given address. The
// error is ErrUnsolicited.
func (a *Agent) HandlePong(from netip.AddrPort, m disco.Pong, now time.Time) error {
	return a.HandleSocketPong(0, from, m, now)
}

// HandleSocketPong is HandlePong for a pong that came to a further socket.
func (a *Agent) HandleSocketPong(socket uint32, from netip.AddrPort, m disco.Pong, now time.Time) error {
	a.advance(now)
	defer a.flush()
	c := a.find(DirectFrom(socket, from))
	if c == nil || !c.answer(m.TxID, a.now) && !a.answerSize(c, m.TxID) {
		a.stats.PongsUnsolicited++
		return ErrUnsolicited
	}
	a.stats.PongsAccepted++
	c.observed = m.Observed
	if c.path() == a.primary {
		a.checking, a.unheard = time.Time{}, false
	}
	a.choose(ReasonProved)
	return nil
}

// HandleCallMe takes an authentic call that came over the relay: the peer wants
// to be probed at its addresses now. The error is ErrBudget.
func (a *Agent) HandleCallMe(m disco.CallMe, now time.Time) error {
	a.advance(now)
	defer a.flush()
	if !a.calls.take(a.now) {
		a.stats.CallsOverBudget++
		return ErrBudget
	}
	a.replace(m.Endpoints, SourceCalled)
	a.choose(ReasonProved)
	wanted := make([]*candidate, 0, len(a.candidates))
	for _, c := range a.candidates {
		if !a.alive(c) {
			wanted = append(wanted, c)
		}
	}
	a.schedule(wanted)
	if a.relay && (a.called.IsZero() || a.now.Sub(a.called) >= callBack) {
		a.wantCall()
	}
	return nil
}

// HandleInbound says that an authenticated packet of the tunnel came by a path at
// a time that is not after now. It is cheap; once for a batch, or a few times a
// second, is enough. A packet from elsewhere than the primary moves nothing, but
// where it came from gets a challenge, and the primary, once it is quiet, has to
// answer one, too: the peer's NAT may have given it another address.
func (a *Agent) HandleInbound(p Path, t Traffic, at, now time.Time) {
	a.advance(now)
	at = earliest(at, a.now)
	switch {
	case p.Kind == Direct:
		a.hear(DirectFrom(p.Socket, p.Addr), t, at)
	case p.Kind == Relay && a.primary.Kind == Direct && t == Data:
		// The peer has a reason not to take the direct way.
		if a.now.Sub(a.find(a.primary).proved) >= quiet {
			a.check()
		}
	}
	if t == Data {
		a.use()
	}
	a.flush()
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// hear notes that an authenticated packet came from an address. One that is not
// the primary's is asked for a proof: the peer may have moved, and its NAT lets
// us in there now if ever.
func (a *Agent) hear(from Path, t Traffic, at time.Time) {
	c := a.find(from)
	if c == nil && t == Data && from.Socket == 0 && a.usable(from.Addr) {
		c = a.observe(from)
	}
	if c != nil {
		if c.heard.Before(at) {
			c.heard = at
		}
		if t == Data {
			c.carried = at
			a.unbar(c)
		}
	}
	primary := a.find(a.primary)
	if a.primary.Kind != Direct || primary == c || !a.active {
		return
	}
	a.checkIfQuiet(primary)
	if c != nil && !a.alive(c) && !a.now.Before(c.barred) && a.now.Sub(c.wanted) >= movedInterval {
		a.want(c)
	}
}

// HandleOutboundUse says that packets were sent to the peer, or want to be. It
// is cheap; once for a batch, or a few times a second, is enough.
func (a *Agent) HandleOutboundUse(now time.Time) {
	a.advance(now)
	a.use()
	if a.primary.Kind == Direct {
		a.checkIfQuiet(a.find(a.primary))
	}
	a.flush()
}

// HandleRelayState says whether packets to the peer can go over the relay.
func (a *Agent) HandleRelayState(available bool, now time.Time) {
	a.advance(now)
	if a.relay != available {
		a.relay = available
		a.choose(ReasonRelay)
		if available && a.active && a.primary.Kind != Direct {
			a.scheduleCall()
		}
	}
	a.flush()
}

// Primary returns the path by which packets go.
func (a *Agent) Primary() Path { return a.primary }

// RTT returns the least of the recent round trips by the primary path, zero where
// none is known: it is no Direct one, or was not asked yet.
func (a *Agent) RTT() time.Duration {
	if c := a.find(a.primary); a.primary.Kind == Direct && c != nil {
		return c.rtt()
	}
	return 0
}

// NextTransmit returns the next message to send, if there is one.
func (a *Agent) NextTransmit() (Transmit, bool) {
	if len(a.out) == 0 {
		return Transmit{}, false
	}
	t := a.out[0]
	a.out = slices.Delete(a.out, 0, 1)
	return t, true
}

// NextEvent returns the next event, if there is one.
func (a *Agent) NextEvent() (Event, bool) {
	if len(a.events) == 0 {
		return Event{}, false
	}
	e := a.events[0]
	a.events = slices.Delete(a.events, 0, 1)
	return e, true
}

func (a *Agent) transmit(t Transmit) {
	if len(a.out) == maxOutput {
		a.stats.OutputOverCap++
		return
	}
	a.out = append(a.out, t)
}

func (a *Agent) setPrimary(p Path, why Reason) {
	if p == a.primary {
		return
	}
	a.primary, a.checking, a.distress, a.both, a.unheard = p, time.Time{}, distress{}, false, false
	a.why, a.since = why, a.now
	if p.Kind == Direct {
		a.reconfirm(a.find(p))
	}
	a.stats.PrimaryChanges++
	a.emit()
	if a.flaps.note(1, a.now) {
		a.stats.Flaps++
		a.events[len(a.events)-1].FlapsBegin = true
	}
}

// emit tells of the primary as it is now.
func (a *Agent) emit() {
	if len(a.events) == maxOutput {
		a.events = slices.Delete(a.events, 0, 1)
	}
	a.events = append(a.events, Event{Primary: a.primary, Why: a.why, Both: a.both})
}
