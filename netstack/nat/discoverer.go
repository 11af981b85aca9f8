package nat

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/netstack/stun"
)

// Config is what a Discoverer needs.
type Config struct {
	// Rand is the source of request ids.
	Rand io.Reader
}

// Transmit is a packet to send from the socket that peers' packets come to.
type Transmit struct {
	To     netip.AddrPort
	Packet []byte // the caller's
}

// Tristate is an answer that may not be known.
type Tristate uint8

const (
	// Unknown means that too little was heard.
	Unknown Tristate = iota
	// No means no.
	No
	// Yes means yes.
	Yes
)

// String returns "unknown", "no" or "yes".
func (t Tristate) String() string {
	switch t {
	case Unknown:
		return "unknown"
	case No:
		return "no"
	case Yes:
		return "yes"
	}
	return "invalid"
}

// Report is what is known of this machine's addresses.
type Report struct {
	// UDP says whether any server answered.
	UDP bool
	// Public4 and Public6 are the socket's addresses as seen from outside, the
	// zero value where none is known.
	Public4, Public6 netip.AddrPort
	// MappingVaries says whether the NAT gives different destinations different
	// addresses (RFC 4787, section 4.1), so that Public4 is of little use to
	// peers. It takes answers of two servers of one family.
	MappingVaries Tristate
	// NoNAT says that every server that answered saw an address of this machine's own:
	// there is no NAT between them. There may be one on the way to others, where those
	// servers are near.
	NoNAT bool
	// Endpoints are the addresses to tell to peers: local ones as they were
	// given, then those that are forwarded, then public ones, without repeats.
	Endpoints []netip.AddrPort
	// Moves counts how often a server saw another address than before though this
	// machine's own network did not change: its provider gave it another one, or
	// the way out is another. Connections through the old one are dead.
	Moves uint64
	// Predicted are the addresses that Public4's NAT seems to give next, where
	// MappingVaries and it numbers ports in a row: one of them is what a peer will
	// see. They are for peers that probe at once. It takes answers of two servers.
	Predicted []netip.AddrPort
	// Servers are the servers that answered, with their round trips.
	Servers []ServerReport
}

// ServerReport is what one server answered.
type ServerReport struct {
	Server netip.AddrPort
	Mapped netip.AddrPort
	RTT    time.Duration
}

// Equal reports whether r and o say the same but for round trips.
func (r Report) Equal(o Report) bool {
	return r.UDP == o.UDP && r.Public4 == o.Public4 && r.Public6 == o.Public6 &&
		r.MappingVaries == o.MappingVaries && r.Moves == o.Moves && r.NoNAT == o.NoNAT && slices.Equal(r.Predicted, o.Predicted) &&
		slices.Equal(r.Endpoints, o.Endpoints)
}

// ErrUnsolicited means that a response answers no outstanding request to the
// server that it came from.
var ErrUnsolicited = errors.New("nat: response to no request")

const (
	// MaxServers bounds the servers that are asked; the first ones count. Two of
	// each family would do, a few more allow for outages.
	MaxServers = 8
	// MaxLocal bounds the local addresses, and with those outside all that peers
	// are told (disco.MaxEndpoints).
	MaxLocal = 16

	// A request is sent tries times, tryDelays apart, before its server counts as
	// silent: within 3 s, as RFC 8489, section 6.2.1 does it but sooner.
	tries = 4
	// refresh is the distance of rounds: below the 30 s after which careless NATs
	// forget a mapping, so that what is told to peers stays true.
	refresh = 25 * time.Second
	// minRound is the least distance of rounds that events ask for.
	minRound = 250 * time.Millisecond
	// maxStride is the greatest distance of two ports that are taken to be given
	// out in a row: some NATs keep to even ports (RFC 4787, section 4.2.2), and
	// another host may open a flow in between. A NAT that draws ports at random
	// seems to be one of these once in 16,000 times, which costs some probes.
	maxStride = 4
	// predictions is how many of the ports to come are told to peers. Each
	// destination takes one, in the order in which it is probed: the peer's private
	// addresses, which lead nowhere, as well as its public one.
	predictions = 6
	// distressRound is the least distance of rounds because of lost paths, of
	// which a node with many peers can have many at once.
	distressRound = 2 * time.Second
)

var tryDelays = [tries]time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, time.Second}

type server struct {
	addr   netip.AddrPort
	id     stun.TxID
	sent   time.Time // first try of this round, zero where nothing is outstanding
	last   time.Time // last try, whose round trip is measured
	tried  int
	next   time.Time // next try, zero for none
	due    bool
	mapped netip.AddrPort // last answer, zero for none or given up
	seen   netip.Addr     // of the last answer since the network changed, zero for none
	rtt    time.Duration
}

// Stats counts what happened in a Discoverer.
type Stats struct {
	ClockBack     uint64 // calls with a time before the last one's
	RequestsSent  uint64
	Responses     uint64
	Unsolicited   uint64
	ServersSilent uint64 // rounds in which a server did not answer
	RandFailed    uint64
}

// Discoverer learns this machine's public addresses.
type Discoverer struct {
	cfg     Config
	now     time.Time
	servers []*server
	local   []netip.AddrPort
	// forwarded are addresses outside that lead here (SetForwarded).
	forwarded []netip.AddrPort
	round     time.Time // when the next round begins, zero for never
	began     time.Time // when the last round began
	report    Report
	changed   bool
	stats     Stats
}

// New returns a Discoverer that knows nothing and asks nobody.
func New(cfg Config, now time.Time) *Discoverer {
	return &Discoverer{cfg: cfg, now: now}
}

// SetServers says whom to ask; a round begins at once where the list changed.
// The slice is not kept; invalid addresses and those over MaxServers are left
// out.
func (d *Discoverer) SetServers(addrs []netip.AddrPort, now time.Time) {
	d.advance(now)
	var next []*server
	for _, a := range addrs {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if !a.IsValid() || a.Port() == 0 || len(next) == MaxServers || find(next, a) != nil {
			continue
		}
		s := find(d.servers, a)
		if s == nil {
			s = &server{addr: a}
		}
		next = append(next, s)
	}
	if !slices.Equal(d.servers, next) {
		d.servers = next
		d.again()
		d.update()
	}
	d.flush()
}

// SetLocal says which addresses the socket has on this machine: addresses of
// its interfaces, with its port. The slice is not kept; those over MaxLocal are
// left out.
func (d *Discoverer) SetLocal(addrs []netip.AddrPort, now time.Time) {
	d.advance(now)
	local := slices.Clone(addrs[:min(len(addrs), MaxLocal)])
	if !slices.Equal(local, d.local) {
		d.local = local
		d.update()
	}
	d.flush()
}

// HandleNetworkChange says that this machine's addresses or routes changed: all
// answers are forgotten and a round begins at once.
func (d *Discoverer) HandleNetworkChange(now time.Time) {
	d.advance(now)
	for _, s := range d.servers {
		*s = server{addr: s.addr}
	}
	d.update()
	d.again()
	d.flush()
}

// HandleDistress says that a path to a peer was lost: the NAT in front of this
// machine may have forgotten its mappings, or got another address, of which
// nothing tells but another answer. A round begins at once, but not within 2 s
// of the last one; what was answered before counts on until then.
func (d *Discoverer) HandleDistress(now time.Time) {
	d.advance(now)
	if len(d.servers) > 0 && (d.began.IsZero() || d.now.Sub(d.began) >= distressRound) {
		d.again()
	}
	d.flush()
}

// HandleResponse takes a STUN message that came from the given address. The
// error is ErrUnsolicited; nothing changes then.
func (d *Discoverer) HandleResponse(from netip.AddrPort, m stun.Message, now time.Time) error {
	d.advance(now)
	s := find(d.servers, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	if s == nil || s.sent.IsZero() || s.id != m.TxID || m.Kind != stun.Response || s.last.Before(s.sent) {
		d.stats.Unsolicited++
		d.flush()
		return ErrUnsolicited
	}
	d.stats.Responses++
	d.see(s, m.Mapped.Addr())
	s.mapped, s.rtt = m.Mapped, d.now.Sub(s.last)
	s.sent, s.next = time.Time{}, time.Time{}
	d.update()
	d.flush()
	return nil
}

// see notes under which address a server sees this machine. What several servers
// tell of one move counts once; a NAT with several addresses, of which it gives
// each server another one, does not move.
func (d *Discoverer) see(s *server, a netip.Addr) {
	before := s.seen
	s.seen = a
	if !before.IsValid() || before == a {
		return
	}
	for _, other := range d.servers {
		if other != s && other.seen == a {
			return
		}
	}
	d.report.Moves++
	d.changed = true
}

// Report returns what is known now. Its slices are the caller's.
func (d *Discoverer) Report() Report {
	r := d.report
	r.Endpoints, r.Predicted = slices.Clone(r.Endpoints), slices.Clone(r.Predicted)
	r.Servers = slices.Clone(r.Servers)
	return r
}

// Stats returns the counters.
func (d *Discoverer) Stats() Stats { return d.stats }

// NextEvent returns the newest report, once after each change; what it replaced
// is not told.
func (d *Discoverer) NextEvent() (Report, bool) {
	if !d.changed {
		return Report{}, false
	}
	d.changed = false
	return d.Report(), true
}

// NextTransmit returns the next packet to send, if there is one.
func (d *Discoverer) NextTransmit() (Transmit, bool) {
	for _, s := range d.servers {
		if s.due {
			s.due = false
			s.last = d.now
			d.stats.RequestsSent++
			return Transmit{s.addr, stun.AppendRequest(nil, s.id)}, true
		}
	}
	return Transmit{}, false
}

// NextTimeout returns when HandleTimeout wants to be called: the last time
// given where output is pending.
func (d *Discoverer) NextTimeout() (time.Time, bool) {
	if d.changed || slices.ContainsFunc(d.servers, func(s *server) bool { return s.due }) {
		return d.now, true
	}
	return d.deadline()
}

// HandleTimeout does what is due at now.
func (d *Discoverer) HandleTimeout(now time.Time) {
	d.advance(now)
	d.flush()
}

func (d *Discoverer) deadline() (time.Time, bool) {
	next := d.round
	for _, s := range d.servers {
		if !s.next.IsZero() && (next.IsZero() || s.next.Before(next)) {
			next = s.next
		}
	}
	return notBefore(next, d.now)
}

// notBefore returns when there is something to do next, not before now; false where
// next is zero.
func notBefore(next, now time.Time) (time.Time, bool) {
	if next.IsZero() {
		return time.Time{}, false
	}
	if next.Before(now) {
		next = now
	}
	return next, true
}

// advance moves the clock to now. Rounds that were missed are not made up for:
// only the last one is begun.
func (d *Discoverer) advance(now time.Time) {
	if now.Before(d.now) {
		d.stats.ClockBack++
		return
	}
	for {
		t, ok := d.deadline()
		if !ok || t.After(now) {
			break
		}
		if t.After(d.now) {
			d.now = t
		}
		if !d.round.IsZero() && !d.round.After(d.now) {
			if late := now.Sub(d.round); late > refresh {
				d.now = now.Add(-late % refresh)
			}
			d.begin()
		}
		for _, s := range d.servers {
			if !s.next.IsZero() && !s.next.After(d.now) {
				d.try(s)
			}
		}
	}
	d.now = now
}

// again asks for a round as soon as may be.
func (d *Discoverer) again() {
	d.round = d.now
	if earliest := d.began.Add(minRound); !d.began.IsZero() && d.round.Before(earliest) {
		d.round = earliest
	}
}

// flush begins a round that is due already.
func (d *Discoverer) flush() { d.advance(d.now) }

func (d *Discoverer) begin() {
	d.began = d.now
	d.round = time.Time{}
	if len(d.servers) > 0 {
		d.round = d.now.Add(refresh)
	}
	for _, s := range d.servers {
		if _, err := io.ReadFull(d.cfg.Rand, s.id[:]); err != nil {
			d.stats.RandFailed++
			s.sent, s.next = time.Time{}, time.Time{}
			continue
		}
		s.sent, s.tried = d.now, 0
		d.try(s)
	}
}

// try sends the request of s again, or gives the server up for this round.
func (d *Discoverer) try(s *server) {
	if s.tried == tries {
		d.stats.ServersSilent++
		s.sent, s.next, s.due, s.mapped = time.Time{}, time.Time{}, false, netip.AddrPort{}
		d.update()
		return
	}
	s.due = true
	s.next = d.now.Add(tryDelays[s.tried])
	s.tried++
}

// own reports whether a public address is this machine's own, or there is none.
func (d *Discoverer) own(public netip.AddrPort) bool {
	return !public.IsValid() || public.Addr().IsLoopback() || slices.Contains(d.local, public)
}

// update computes the report anew.
func (d *Discoverer) update() {
	r := Report{Moves: d.report.Moves}
	varies := func(known, mapped netip.AddrPort) {
		switch {
		case known != mapped:
			r.MappingVaries = Yes
		case r.MappingVaries == Unknown:
			r.MappingVaries = No
		}
	}
	for _, s := range d.servers {
		if !s.mapped.IsValid() {
			continue
		}
		r.UDP = true
		r.Servers = append(r.Servers, ServerReport{s.addr, s.mapped, s.rtt})
		public := &r.Public6
		if s.mapped.Addr().Is4() {
			public = &r.Public4
		}
		if public.IsValid() {
			varies(*public, s.mapped)
		} else {
			*public = s.mapped
		}
	}
	r.NoNAT = r.UDP && d.own(r.Public4) && d.own(r.Public6) && r.MappingVaries != Yes
	if r.MappingVaries == Yes {
		r.Predicted = predict(r.Servers)
	}
	outside := slices.DeleteFunc(append(slices.Clone(d.forwarded), r.Public4, r.Public6), func(e netip.AddrPort) bool { return !e.IsValid() })
	// A machine with many addresses must not hide those that lead to it from
	// outside.
	local := d.local[:min(len(d.local), MaxLocal-len(outside))]
	for _, e := range slices.Concat(local, outside) {
		if !slices.Contains(r.Endpoints, e) {
			r.Endpoints = append(r.Endpoints, e)
		}
	}
	if !r.Equal(d.report) {
		d.changed = true
	}
	d.report = r
}

// predict returns what a NAT gives next that gave the ports of the answers over
// IPv4 in a row, in the order in which the servers are asked; nil for others.
func predict(answers []ServerReport) (next []netip.AddrPort) {
	var last netip.AddrPort
	stride := 0
	for _, a := range answers {
		if !a.Mapped.Addr().Is4() {
			continue
		}
		if last.IsValid() {
			step := int(a.Mapped.Port()) - int(last.Port())
			if a.Mapped.Addr() != last.Addr() || step < 1 || step > maxStride {
				return nil
			}
			stride = step
		}
		last = a.Mapped
	}
	if stride == 0 {
		return nil
	}
	for i := 1; i <= predictions && int(last.Port())+i*stride <= math.MaxUint16; i++ {
		next = append(next, netip.AddrPortFrom(last.Addr(), last.Port()+uint16(i*stride)))
	}
	return next
}

func find(servers []*server, a netip.AddrPort) *server {
	for _, s := range servers {
		if s.addr == a {
			return s
		}
	}
	return nil
}

// String returns the report on one line, for logs.
func (r Report) String() string {
	return fmt.Sprintf("udp %v, v4 %v, v6 %v, mapping varies %v", r.UDP, r.Public4, r.Public6, r.MappingVaries)
}
