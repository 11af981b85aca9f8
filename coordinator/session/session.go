package session

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// Times of a session.
const (
	// SetupTimeout bounds each step until the stream of maps: a connection that
	// says nothing is not kept (F21).
	SetupTimeout = 30 * time.Second
	// PingInterval is how long a node may be silent before it is asked for a
	// sign of life.
	PingInterval = 15 * time.Second
	// DeadAfter is the silence after which a node counts as gone: two pings
	// lost, and a third.
	DeadAfter = 45 * time.Second
	// updateInterval is the least time between two changes of a node's
	// endpoints that are passed on; what comes faster is joined, the last wins.
	updateInterval = 200 * time.Millisecond
	// mapInterval is the least time between two map requests of a connection,
	// in the mean: each costs a whole map.
	mapInterval = 2 * time.Second
	// mapBurst is how many may come at once.
	mapBurst = 5
)

// maxSequence is the highest sequence that a node may claim to have, so that
// counting on from it never overflows.
const maxSequence = 1 << 62

// maxMessage is the longest text of an error in bytes; the codec refuses more.
const maxMessage = 1000

// Source is where views come from; netmap.Network is one.
type Source interface {
	// Map returns the whole view of a device, which the Session takes over.
	Map(ident.NodeID) (*wire.Map, error)
	// Peer returns what is told of a device to those that may see it.
	Peer(ident.NodeID) (wire.Peer, bool)
	// RelayToken returns a token and when the next one is due.
	RelayToken(ident.NodeID, time.Time) (token []byte, renew time.Time, err error)
}

// Request is what a node wants of the coordinator: Register, Stream, Update or
// Logout.
type Request interface{ request() }

// Register asks for membership, once on a connection. The answer is Registered
// or Close.
type Register struct {
	wire.Register
	Host wire.HostInfo
}

// Stream tells that the node begins to listen, or asks for everything anew:
// under this key, at these endpoints. The answer is Begin or Close.
type Stream struct {
	NodeKey   ident.NodeKey
	Endpoints []netip.AddrPort
	// Routes is all that the node offers to route.
	Routes []netip.Prefix
	Proof  wire.Proof
	Host   wire.HostInfo
	// HomeRelay is the name of the relay at which the node listens, empty for
	// none.
	HomeRelay string
}

// Update tells where the node is now, and all that it offers to route. It
// needs no answer.
type Update struct {
	Endpoints []netip.AddrPort
	Routes    []netip.Prefix
	HomeRelay string
}

// Logout asks for the end of the membership. The answer is Close.
type Logout struct{}

func (Register) request() {}
func (Stream) request()   {}
func (Update) request()   {}
func (Logout) request()   {}

// state is how far a session is.
type state uint8

const (
	waitHello state = iota
	waitRegister
	waitMap
	streaming
	closing
)

// Config is what a Session needs.
type Config struct {
	// Node is the device that the machine key is registered for, zero for
	// none.
	Node ident.NodeID
	// Overlay are the network's own ranges: an endpoint within them would lead
	// packets into the tunnel that they are to carry.
	Overlay []netip.Prefix
}

// Session is one connection.
type Session struct {
	cfg   Config
	state state
	node  ident.NodeID
	host  wire.HostInfo
	now   time.Time
	// version is what both ends speak, zero before Hello.
	version wire.Version

	frames   [][]byte
	requests []Request

	stream *wire.Stream
	have   wire.MapRequest
	// whole and peers are what changed since the node was last told.
	whole bool
	peers map[ident.NodeID]bool
	// gone are peers to be taken away before anything else is told.
	gone []ident.NodeID
	// anew means that the node asked for everything anew while it was still
	// being told: one that takes nothing costs one map, however often it asks.
	anew bool
	// registering means that the node has sent its Register.
	registering bool
	// renewToken is when the relay token is due.
	renewToken time.Time

	heard      time.Time // when the node last said anything
	asked      time.Time // when it was last asked for a sign of life
	pingNumber uint64
	deadline   time.Time // of the present step, until streaming

	// updates that wait for their time.
	update    Update
	hasUpdate bool
	updateAt  time.Time
	// mapBudget is when a map request would have been paid for.
	mapBudget time.Time
}

// New returns a session that waits for Hello.
func New(cfg Config, now time.Time) *Session {
	return &Session{
		cfg: cfg, node: cfg.Node, now: now, heard: now, asked: now, deadline: now.Add(SetupTimeout),
		peers: make(map[ident.NodeID]bool),
	}
}

// Node returns the device at the other end, zero while it is not registered.
func (s *Session) Node() ident.NodeID { return s.node }

// Streaming reports whether the node listens to maps.
func (s *Session) Streaming() bool { return s.state == streaming }

// Closing reports whether the connection is to be closed once the frames that
// are left were written.
func (s *Session) Closing() bool { return s.state == closing }

// NextFrame returns the next frame for the node, which the caller owns.
func (s *Session) NextFrame() ([]byte, bool) {
	if len(s.frames) == 0 {
		return nil, false
	}
	f := s.frames[0]
	s.frames = s.frames[1:]
	return f, true
}

// NextRequest returns the next request of the node.
func (s *Session) NextRequest() (Request, bool) {
	if len(s.requests) == 0 {
		return nil, false
	}
	r := s.requests[0]
	s.requests = s.requests[1:]
	return r, true
}

func (s *Session) send(m wire.ServerMessage) { s.frames = append(s.frames, wire.EncodeServer(m)) }

func (s *Session) clock(now time.Time) {
	if now.After(s.now) {
		s.now = now
	}
}

// Close tells the node why the connection ends, and ends it. A second Close
// does nothing.
func (s *Session) Close(why *wire.Error) {
	if s.state == closing {
		return
	}
	s.state = closing
	s.requests = nil
	bounded := *why
	if len(bounded.Message) > maxMessage {
		bounded.Message = bounded.Message[:maxMessage]
	}
	bounded.Message = strings.ToValidUTF8(bounded.Message, "?")
	s.send(&bounded)
}

func (s *Session) malformed(format string, args ...any) {
	s.Close(&wire.Error{Code: wire.CodeMalformed, Message: fmt.Sprintf(format, args...)})
}

// HandleFrame takes a frame of the node's, which is not kept. What is not of
// the protocol ends the connection.
func (s *Session) HandleFrame(frame []byte, now time.Time) {
	s.clock(now)
	if s.state == closing {
		return
	}
	m, err := wire.DecodeClient(frame)
	if err != nil {
		s.malformed("%v", err)
		return
	}
	s.heard = s.now
	if _, isHello := m.(wire.Hello); isHello != (s.state == waitHello) {
		s.malformed("Hello comes first, and once")
		return
	}
	switch m := m.(type) {
	case wire.Hello:
		s.hello(m)
	case wire.Register:
		if s.state == streaming {
			s.malformed("Register comes before MapRequest")
			return
		}
		if s.registering {
			s.malformed("Register comes once")
			return
		}
		s.registering = true
		s.deadline = s.now.Add(SetupTimeout)
		s.requests = append(s.requests, Register{m, s.host})
	case wire.MapRequest:
		s.mapRequest(m)
	case wire.Update:
		if s.state != streaming {
			s.malformed("Update comes after MapRequest")
			return
		}
		s.update, s.hasUpdate = Update{s.outside(m.Endpoints), m.Routes, m.HomeRelay}, true
		s.passUpdate()
	case wire.Pong:
	case wire.Logout:
		if s.node == 0 {
			s.Close(&wire.Error{Code: wire.CodeNotRegistered, Message: "this device is not registered"})
			return
		}
		s.requests = append(s.requests, Logout{})
	default:
		panic(fmt.Sprintf("BUG: session: unknown message %T", m))
	}
}

func (s *Session) hello(m wire.Hello) {
	version, ok := wire.Agree(m.Version)
	if !ok {
		s.Close(&wire.Error{Code: wire.CodeVersion, Message: fmt.Sprintf(
			"this coordinator speaks versions %d to %d of the protocol, the device up to %d; update the older program", wire.Oldest, wire.Newest, m.Version)})
		return
	}
	s.host, s.version = m.Host, version
	s.state = waitRegister
	if s.node != 0 {
		s.state = waitMap
	}
	s.deadline = s.now.Add(SetupTimeout)
	s.send(wire.Welcome{Version: version, Time: s.now, Registered: s.node != 0})
}

// Registered answers Register.
func (s *Session) Registered(node ident.NodeID, name string) {
	if s.state != waitRegister && s.state != waitMap {
		return
	}
	s.node, s.state = node, waitMap
	s.send(wire.Registered{Node: node, Name: name})
}

func (s *Session) mapRequest(m wire.MapRequest) {
	if s.node == 0 {
		s.Close(&wire.Error{Code: wire.CodeNotRegistered, Message: "this device is not registered; join with a join key"})
		return
	}
	if s.mapBudget.After(s.now.Add((mapBurst - 1) * mapInterval)) {
		s.Close(&wire.Error{Code: wire.CodeUnavailable, Message: "too many map requests", RetryAfter: mapInterval * mapBurst})
		return
	}
	s.mapBudget = later(s.mapBudget, s.now).Add(mapInterval)
	if m.HaveSequence > maxSequence {
		m.HaveSequence = 0
	}
	s.have = m
	s.requests = append(s.requests, Stream{NodeKey: m.NodeKey, Endpoints: s.outside(m.Endpoints), Routes: m.Routes, Proof: m.Proof, Host: s.host, HomeRelay: m.HomeRelay})
}

// outside drops the endpoints that lie in the overlay.
func (s *Session) outside(endpoints []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(endpoints), func(e netip.AddrPort) bool {
		return slices.ContainsFunc(s.cfg.Overlay, func(p netip.Prefix) bool { return p.Contains(e.Addr()) })
	})
}

// Begin answers Stream: it sends a map, or where the node has the very same
// one already, an empty delta. Where the node has not taken yet what it was
// told before, that is left to Flush. An error of the source ends the
// connection.
func (s *Session) Begin(source Source, now time.Time) error {
	s.clock(now)
	if s.state != waitMap && s.state != streaming {
		return nil
	}
	if s.stream != nil && len(s.frames) > 0 {
		s.anew = true
		return nil
	}
	return s.begin(source)
}

func (s *Session) begin(source Source) error {
	m, err := s.view(source)
	if err == nil {
		m.RelayToken, s.renewToken, err = source.RelayToken(s.node, s.now)
	}
	if err != nil {
		return s.fail(err)
	}
	m.Sequence = s.have.HaveSequence + 1
	if s.stream != nil { // a node that lost count is ahead of nothing it was told
		m.Sequence = max(m.Sequence, s.stream.Map().Sequence+1)
	}
	s.stream = wire.Begin(m)
	s.state, s.whole, s.anew, s.gone = streaming, false, false, nil
	clear(s.peers)
	if s.have.HaveSequence > 0 && s.have.HaveHash == s.stream.Hash() {
		s.send(&wire.Delta{
			BaseSequence: s.have.HaveSequence, BaseHash: s.have.HaveHash, Sequence: m.Sequence, Hash: s.stream.Hash(), RelayToken: m.RelayToken,
		})
		return nil
	}
	s.send(s.stream.Map())
	return nil
}

// view returns what the node may know, as far as its version goes.
func (s *Session) view(source Source) (*wire.Map, error) {
	m, err := source.Map(s.node)
	if err != nil {
		return nil, err
	}
	return m.For(s.version), nil
}

// fail ends the connection because the source has nothing for the node.
func (s *Session) fail(err error) error {
	s.Close(&wire.Error{
		Code: wire.CodeUnavailable, Message: "the coordinator cannot make this device's map; its log says why", RetryAfter: 30 * time.Second,
	})
	return fmt.Errorf("session: map of %v: %w", s.node, err)
}

// Touch tells that the view changed: what it shows of the subject, or all of
// it where that is zero.
func (s *Session) Touch(subject ident.NodeID) {
	if subject == 0 {
		s.whole = true
		return
	}
	s.peers[subject] = true
}

// Gone tells that the node must not hold the subject any more. FlushGone says it
// at once; what else changed by it is up to Touch and Flush.
func (s *Session) Gone(subject ident.NodeID) {
	if s.state == streaming {
		s.gone = append(s.gone, subject)
	}
}

// FlushGone takes away from the node what Gone named, once everything before was
// taken by NextFrame: that costs a few bytes where Flush may have to make a map.
// Flush does it, too.
func (s *Session) FlushGone(now time.Time) {
	s.clock(now)
	if s.state != streaming || len(s.frames) > 0 || len(s.gone) == 0 {
		return
	}
	delta := s.stream.Remove(s.gone)
	s.gone = nil
	if delta != nil {
		s.send(delta)
	}
}

// Flush tells the node what changed, once everything before was taken by
// NextFrame. An error of the source ends the connection.
func (s *Session) Flush(source Source, now time.Time) error {
	s.clock(now)
	if s.FlushGone(now); s.state != streaming || len(s.frames) > 0 {
		return nil
	}
	if s.anew {
		return s.begin(source)
	}
	delta, err := s.delta(source)
	if err != nil {
		return s.fail(err)
	}
	s.whole = false
	clear(s.peers)
	if delta != nil {
		s.send(delta)
	}
	return nil
}

// delta returns what the node must be told, nil for nothing.
func (s *Session) delta(source Source) (*wire.Delta, error) {
	renew := !s.now.Before(s.renewToken)
	if !s.whole && len(s.peers) == 0 && !renew {
		return nil, nil
	}
	var m *wire.Map
	if s.whole {
		var err error
		if m, err = s.view(source); err != nil {
			return nil, err
		}
		// With another certificate the node may have another key, for which
		// its token is void.
		renew = renew || !bytes.Equal(m.Self, s.stream.Map().Self)
	}
	var token []byte
	if renew {
		var err error
		if token, s.renewToken, err = source.RelayToken(s.node, s.now); err != nil {
			return nil, err
		}
	}
	if m != nil {
		m.RelayToken = token
		return s.stream.Whole(m), nil
	}
	peers := make(map[ident.NodeID]wire.Peer, len(s.peers))
	for _, id := range slices.Sorted(maps.Keys(s.peers)) {
		if p, ok := source.Peer(id); ok {
			peers[id] = p.For(s.version)
		}
	}
	return s.stream.Peers(peers, token), nil
}

// passUpdate passes the last endpoints on if it is time.
func (s *Session) passUpdate() {
	if s.hasUpdate && !s.now.Before(s.updateAt) {
		s.requests = append(s.requests, s.update)
		s.update, s.hasUpdate, s.updateAt = Update{}, false, s.now.Add(updateInterval)
	}
}

// NextTimeout returns when HandleTimeout is due.
func (s *Session) NextTimeout() (time.Time, bool) {
	switch {
	case s.state == closing:
		return time.Time{}, false
	case len(s.frames) > 0 || len(s.requests) > 0:
		return s.now, true
	case s.state != streaming:
		return s.deadline, true
	}
	next := earlier(s.heard.Add(DeadAfter), later(s.heard, s.asked).Add(PingInterval))
	next = earlier(next, s.renewToken)
	if s.hasUpdate {
		next = earlier(next, s.updateAt)
	}
	return next, true
}

// HandleTimeout does what is due at now. A relay token that is due goes out
// with the next Flush.
func (s *Session) HandleTimeout(now time.Time) {
	s.clock(now)
	switch {
	case s.state == closing:
		return
	case s.state != streaming:
		if !s.now.Before(s.deadline) {
			s.Close(&wire.Error{Code: wire.CodeUnavailable, Message: "the device took too long to say what it wants"})
		}
		return
	case !s.now.Before(s.heard.Add(DeadAfter)):
		s.Close(&wire.Error{Code: wire.CodeUnavailable, Message: "no sign of life from the device"})
		return
	}
	if !s.now.Before(later(s.heard, s.asked).Add(PingInterval)) {
		s.asked = s.now
		s.pingNumber++
		s.send(wire.Ping{Number: s.pingNumber})
	}
	s.passUpdate()
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
