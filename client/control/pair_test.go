package control_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/coordinator/session"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// source is a coordinator's network, of which the test changes the peers.
type source struct {
	net     *network
	present map[ident.NodeID]wire.Peer
	epoch   ruleset.Epoch
	serial  uint64
}

func (s *source) Map(ident.NodeID) (*wire.Map, error) {
	m := s.net.fullMap(1, s.epoch)
	for id, p := range s.present {
		m.Peers[id] = p
	}
	return m, nil
}

func (s *source) Peer(id ident.NodeID) (wire.Peer, bool) { p, ok := s.present[id]; return p, ok }

func (s *source) RelayToken(_ ident.NodeID, now time.Time) ([]byte, time.Time, error) {
	return []byte(now.String()), now.Add(5 * time.Minute), nil
}

// change does one thing to the network and returns whom to touch, zero for
// everything.
func (s *source) change(r *rand.Rand) ident.NodeID {
	id := ident.NodeID(2 + r.IntN(8))
	p, ok := s.present[id]
	switch {
	case !ok:
		s.serial++
		s.present[id] = s.net.peer(id, 1000+s.serial)
		return 0
	case r.IntN(3) == 0:
		delete(s.present, id)
		return 0
	case r.IntN(4) == 0:
		s.epoch++
		return 0
	}
	p.State.Online = !p.State.Online
	s.present[id] = p
	return id
}

// pair is a node and its coordinator, with what is on the way between them.
type pair struct {
	t      *testing.T
	rand   *rand.Rand
	now    time.Time
	source *source
	node   *control.Machine
	// session is nil while there is no connection.
	session            *session.Session
	toNode, toSession  [][]byte
	faulty             bool
	view               *control.View
	lost, twice, swaps int
}

// TestPairWithSession joins the machine to the coordinator's side, over a way
// that loses, repeats and exchanges frames while the network changes. When the
// way is sound again, the node believes what the coordinator says.
func TestPairWithSession(t *testing.T) {
	var faults [3]int
	seeds := uint64(30)
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		n := newNetwork(t, 1)
		cfg := n.config()
		m, err := control.New(cfg, start)
		if err != nil {
			t.Fatal(err)
		}
		p := &pair{
			t: t, rand: rand.New(rand.NewPCG(seed, 1)), now: start, node: m,
			source: &source{net: n, present: map[ident.NodeID]wire.Peer{}, epoch: 1},
		}
		m.HandleStart(start)
		p.faulty = true
		for range 300 {
			if p.rand.IntN(3) == 0 {
				subject := p.source.change(p.rand)
				if p.session != nil {
					p.session.Touch(subject)
				}
			}
			p.step(time.Duration(p.rand.IntN(3000)) * time.Millisecond)
		}
		p.faulty = false
		for range 200 {
			p.step(time.Second)
		}
		if !m.Snapshot().Synced || m.Snapshot().State != control.Streaming {
			t.Fatalf("seed %d: state %v (%s) on a sound way", seed, m.Snapshot().State, m.Snapshot().Reason)
		}
		p.compare(seed)
		faults[0] += p.lost
		faults[1] += p.twice
		faults[2] += p.swaps
	}
	if slices.Contains(faults[:], 0) {
		t.Errorf("frames lost, repeated and exchanged: %v; the way was not bad", faults)
	}
}

func (p *pair) compare(seed uint64) {
	p.t.Helper()
	var want, got []ident.NodeID
	for id := ident.NodeID(2); id < 12; id++ {
		if _, ok := p.source.present[id]; ok {
			want = append(want, id)
		}
	}
	for _, peer := range p.view.Peers {
		got = append(got, peer.Member.Node())
		truth := p.source.present[peer.Member.Node()]
		if !slices.Equal(peer.Member.Signed(), truth.Certificate) || peer.State.Online != truth.State.Online {
			p.t.Errorf("seed %d: %v is not what the coordinator says", seed, peer.Member.Node())
		}
	}
	if !slices.Equal(got, want) || p.view.Rules.Set().Epoch != p.source.epoch {
		p.t.Errorf("seed %d: peers %v of epoch %d, want %v of %d", seed, got, p.view.Rules.Set().Epoch, want, p.source.epoch)
	}
	if facts := p.node.Snapshot().Facts; len(facts) != 0 {
		p.t.Errorf("seed %d: facts %v", seed, facts)
	}
}

// step lets time pass and carries what is on the way.
func (p *pair) step(d time.Duration) {
	p.now = p.now.Add(d)
	if at, ok := p.node.NextTimeout(); ok && !at.After(p.now) {
		p.node.HandleTimeout(p.now)
	}
	p.drainNode()
	if p.session != nil {
		if at, ok := p.session.NextTimeout(); ok && !at.After(p.now) {
			p.session.HandleTimeout(p.now)
		}
		p.drainSession()
	}
	for len(p.toNode) > 0 || len(p.toSession) > 0 {
		toNode, toSession := p.way(p.toNode), p.way(p.toSession)
		p.toNode, p.toSession = nil, nil
		for _, f := range toSession {
			if p.session != nil {
				p.session.HandleFrame(f, p.now)
				p.drainSession()
			}
		}
		for _, f := range toNode {
			if err := p.node.HandleFrame(f, p.now); err != nil && !errors.Is(err, control.ErrNotConnected) {
				p.t.Fatal(err)
			}
			p.drainNode()
		}
	}
}

// way does to frames what a bad way does.
func (p *pair) way(frames [][]byte) [][]byte {
	if !p.faulty {
		return frames
	}
	var out [][]byte
	for _, f := range frames {
		switch p.rand.IntN(20) {
		case 0:
			p.lost++
		case 1:
			p.twice++
			out = append(out, f, f)
		default:
			out = append(out, f)
		}
	}
	if len(out) > 1 && p.rand.IntN(5) == 0 {
		p.swaps++
		out[0], out[1] = out[1], out[0]
	}
	return out
}

func (p *pair) drainNode() {
	for {
		o, ok := p.node.NextOutput()
		if !ok {
			break
		}
		switch o := o.(type) {
		case control.Dial:
			p.session = session.New(session.Config{Node: selfID}, p.now)
			p.toNode, p.toSession = nil, nil
			p.node.HandleConnected(wire.Proof{}, p.now)
		case control.Send:
			p.toSession = append(p.toSession, o.Frame)
		case control.Close:
			p.session = nil
		case control.FetchGenesis:
			p.t.Fatal("the node has lost the genesis record")
		}
	}
	for {
		e, ok := p.node.NextEvent()
		if !ok {
			return
		}
		if e, ok := e.(control.NetMap); ok {
			p.view = e.View
		}
	}
}

func (p *pair) drainSession() {
	for {
		r, ok := p.session.NextRequest()
		if !ok {
			break
		}
		if _, ok := r.(session.Stream); ok {
			if err := p.session.Begin(p.source, p.now); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	for {
		for {
			f, ok := p.session.NextFrame()
			if !ok {
				break
			}
			p.toNode = append(p.toNode, f)
		}
		if err := p.session.Flush(p.source, p.now); err != nil {
			p.t.Fatal(err)
		}
		f, ok := p.session.NextFrame()
		if !ok {
			break
		}
		p.toNode = append(p.toNode, f)
	}
	if p.session.Closing() {
		// The end of the connection comes after the last frame.
		frames := p.toNode
		p.toNode = nil
		for _, f := range frames {
			if err := p.node.HandleFrame(f, p.now); err != nil && !errors.Is(err, control.ErrNotConnected) {
				p.t.Fatal(err)
			}
		}
		p.session = nil
		p.node.HandleClosed(errors.New("closed"), p.now)
		p.drainNode()
	}
}
