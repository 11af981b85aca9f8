package path

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var (
	home   = at("1.1.1.1:1000")
	lan    = at("192.168.1.2:1000")
	v6     = at("[2001:db8::1]:1000")
	rogue  = at("6.6.6.6:666")
	listed = []netip.AddrPort{home, lan, v6}
)

func newAgent(t testing.TB, seed byte) *Agent {
	t.Helper()
	a, err := New(Config{Rand: rand.NewChaCha8([32]byte{seed}), Birthday: NewBirthdayBudget(epoch)}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// challenges is pings without those of guesses.
func challenges(a *Agent) map[netip.AddrPort]disco.TxID {
	got := make(map[netip.AddrPort]disco.TxID)
	for tr, ok := a.NextTransmit(); ok; tr, ok = a.NextTransmit() {
		if p, ok := tr.Message.(disco.Ping); ok && p.Session == a.session {
			got[tr.To.Addr] = p.TxID
		}
	}
	return got
}

// pings drains the transmits and returns the challenges by address.
func pings(a *Agent) map[netip.AddrPort]disco.TxID {
	got := make(map[netip.AddrPort]disco.TxID)
	for tr, ok := a.NextTransmit(); ok; tr, ok = a.NextTransmit() {
		if p, ok := tr.Message.(disco.Ping); ok {
			got[tr.To.Addr] = p.TxID
		}
	}
	return got
}

// direct returns an active agent whose primary is home.
func direct(t testing.TB, seed byte) *Agent {
	t.Helper()
	a := newAgent(t, seed)
	a.HandleRelayState(true, epoch)
	a.SetRemoteCandidates([]netip.AddrPort{home}, epoch)
	a.HandleOutboundUse(epoch)
	if err := a.HandlePong(home, disco.Pong{TxID: pings(a)[home], Observed: lan}, epoch.Add(20*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if a.Primary() != DirectTo(home) {
		t.Fatalf("primary %v", a.Primary())
	}
	if got := a.Snapshot().Candidates[0].Observed; got != lan {
		t.Fatalf("the peer sees this node at %v, want %v", got, lan)
	}
	drainEvents(a)
	return a
}

func drainEvents(a *Agent) (events []Event) {
	for e, ok := a.NextEvent(); ok; e, ok = a.NextEvent() {
		events = append(events, e)
	}
	return events
}

// TestOnlyTheRightAnswerPromotes: a path is proved by the answer to a challenge,
// from where the challenge went, once, in time.
func TestOnlyTheRightAnswerPromotes(t *testing.T) {
	a := newAgent(t, 1)
	a.HandleRelayState(true, epoch)
	a.SetRemoteCandidates(listed, epoch)
	a.HandleOutboundUse(epoch)
	ids := pings(a)
	now := epoch.Add(10 * time.Millisecond)
	for name, c := range map[string]struct {
		from netip.AddrPort
		id   disco.TxID
	}{
		"unknown challenge":       {home, disco.TxID{}},
		"challenge of another":    {home, ids[lan]},
		"from elsewhere":          {rogue, ids[home]},
		"from another port":       {netip.AddrPortFrom(home.Addr(), 1), ids[home]},
		"other candidate answers": {lan, ids[home]},
	} {
		if err := a.HandlePong(c.from, disco.Pong{TxID: c.id, Observed: home}, now); !errors.Is(err, ErrUnsolicited) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a.Primary() != viaRelay || a.Snapshot().Stats.PongsUnsolicited != 5 {
		t.Fatalf("primary %v, %+v", a.Primary(), a.Snapshot().Stats)
	}
	pong := disco.Pong{TxID: ids[home], Observed: home}
	if err := a.HandlePong(home, pong, now); err != nil || a.Primary() != DirectTo(home) {
		t.Fatalf("%v, primary %v", err, a.Primary())
	}
	if err := a.HandlePong(home, pong, now); !errors.Is(err, ErrUnsolicited) {
		t.Errorf("the same pong again: %v", err)
	}
	if err := a.HandlePong(lan, disco.Pong{TxID: ids[lan]}, epoch.Add(answerAge+time.Second)); !errors.Is(err, ErrUnsolicited) {
		t.Errorf("an answer that is too old: %v", err)
	}
}

// TestHintsMoveNothing: pings and packets from elsewhere, new or replayed, and
// lists that change, leave the primary where it is (F17, F18, F18b, F19).
func TestHintsMoveNothing(t *testing.T) {
	a := direct(t, 2)
	now := epoch.Add(100 * time.Millisecond)
	ping := disco.Ping{TxID: disco.TxID{1}, Session: 7, Seq: 1}
	if err := a.HandlePing(home, ping, now); err != nil {
		t.Fatal(err)
	}
	pings(a)
	for range 10_000 {
		if err := a.HandlePing(rogue, ping, now); !errors.Is(err, ErrReplay) {
			t.Fatal(err)
		}
	}
	if n := a.Snapshot().Stats.PingsReplayed; n != 10_000 {
		t.Errorf("%d replays counted", n)
	}
	if tr, ok := a.NextTransmit(); ok {
		t.Errorf("a replay is answered with %+v", tr)
	}
	// An on-path attacker hands on a fresh ping from its own address.
	ping.Seq++
	if err := a.HandlePing(rogue, ping, now); err != nil {
		t.Fatal(err)
	}
	a.HandleInbound(DirectTo(rogue), Data, now, now)
	a.HandleInbound(DirectTo(rogue), Handshake, now, now)
	if err := a.HandleCallMe(disco.CallMe{Endpoints: []netip.AddrPort{rogue}}, now); err != nil {
		t.Fatal(err)
	}
	a.SetRemoteCandidates([]netip.AddrPort{rogue}, now)
	a.SetRemoteCandidates(nil, now)
	if a.Primary() != DirectTo(home) || len(drainEvents(a)) != 0 {
		t.Errorf("primary %v", a.Primary())
	}
}

func TestPongGoesWhereThePingCameFrom(t *testing.T) {
	a := newAgent(t, 3)
	if err := a.HandlePing(at("[::ffff:1.1.1.1]:1000"), disco.Ping{TxID: disco.TxID{9}, Session: 1, Seq: 1}, epoch); err != nil {
		t.Fatal(err)
	}
	tr, ok := a.NextTransmit()
	if want := (Transmit{DirectTo(home), disco.Pong{TxID: disco.TxID{9}, Observed: home}}); !ok || !reflect.DeepEqual(tr, want) {
		t.Errorf("%+v, want %+v", tr, want)
	}
	if tr, ok = a.NextTransmit(); !ok || tr.To != DirectTo(home) {
		t.Errorf("no challenge of our own: %+v", tr)
	}
	if a.Primary() != (Path{}) {
		t.Errorf("primary %v", a.Primary())
	}
}

// TestBudgets: whatever an enrolled peer does, what it makes this node send is
// bounded, and so is what this node remembers (A2).
func TestBudgets(t *testing.T) {
	a := newAgent(t, 4)
	a.HandleRelayState(true, epoch)
	rng := rand.New(rand.NewPCG(1, 1))
	now, sentPings, sentPongs, sentCalls := epoch, 0, 0, 0
	for i := range 20_000 {
		now = now.Add(time.Millisecond)
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 9, byte(rng.IntN(256)), byte(rng.IntN(256))}), 1000)
		_ = a.HandlePing(from, disco.Ping{TxID: disco.TxID{1}, Session: 7, Seq: uint64(i + 1)}, now)
		if i%10 == 0 {
			var eps []netip.AddrPort
			for range disco.MaxEndpoints {
				eps = append(eps, netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, 8, byte(rng.IntN(256)), byte(rng.IntN(256))}), 1000))
			}
			_ = a.HandleCallMe(disco.CallMe{Endpoints: eps}, now)
		}
		a.HandleInbound(DirectTo(from), Data, now, now)
		for tr, ok := a.NextTransmit(); ok; tr, ok = a.NextTransmit() {
			switch tr.Message.(type) {
			case disco.Ping:
				sentPings++
			case disco.Pong:
				sentPongs++
			case disco.CallMe:
				sentCalls++
			}
		}
		if n := len(a.candidates); n > 2*maxListed+maxObserved+1 {
			t.Fatalf("%d candidates", n)
		}
	}
	// Twenty seconds.
	if limit := probeBurst + int(20*time.Second/probeInterval); sentPings > limit {
		t.Errorf("%d pings, at most %d", sentPings, limit)
	}
	if limit := answerBurst + int(20*time.Second/answerInterval); sentPongs > limit {
		t.Errorf("%d pongs, at most %d", sentPongs, limit)
	}
	if sentCalls > 8 {
		t.Errorf("%d calls", sentCalls)
	}
}

func TestRefusedAddresses(t *testing.T) {
	a, err := New(Config{
		Rand:   rand.NewChaCha8([32]byte{}),
		Refuse: func(a netip.Addr) bool { return netip.MustParsePrefix("100.64.0.0/10").Contains(a) },
	}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	bad := []netip.AddrPort{
		{},
		at("1.1.1.1:0"), at("0.0.0.0:1"), at("[::]:1"), at("224.0.0.1:1"), at("[ff02::1]:1"), at("255.255.255.255:1"),
		at("127.0.0.1:1"), at("[::1]:1"), at("[::ffff:127.0.0.1]:1"), at("[fe80::1%eth0]:1"), at("[fe80::1]:1"),
		at("100.64.0.1:1"), at("[::ffff:100.64.0.1]:1"),
	}
	a.SetRemoteCandidates(bad, epoch)
	if err := a.HandleCallMe(disco.CallMe{Endpoints: bad}, epoch); err != nil {
		t.Fatal(err)
	}
	a.HandleOutboundUse(epoch)
	if s := a.Snapshot(); len(s.Candidates) != 0 || s.Stats.RefusedCandidates != uint64(2*len(bad)) || s.Stats.PingsSent != 0 {
		t.Errorf("%+v", s)
	}
	for _, from := range bad {
		if err := a.HandlePing(from, disco.Ping{Session: 1, Seq: 1}, epoch); !errors.Is(err, ErrAddress) {
			t.Errorf("ping from %v: %v", from, err)
		}
	}
	loop, err := New(Config{Rand: rand.NewChaCha8([32]byte{}), Loopback: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	loop.SetRemoteCandidates([]netip.AddrPort{at("127.0.0.1:1")}, epoch)
	if len(loop.candidates) != 1 {
		t.Error("loopback was allowed and refused")
	}
}

func TestBetter(t *testing.T) {
	ms := func(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }
	d := func(c Class, rtt float64) Score { return Score{Direct, c, ms(rtt)} }
	relay, none := Score{Kind: Relay}, Score{}
	for _, c := range []struct {
		name string
		a, b Score
		want bool
	}{
		{"direct over relay", d(ClassGlobal4, 500), relay, true},
		{"relay over none", relay, none, true},
		{"relay over direct", relay, d(ClassGlobal4, 500), false},
		{"relay over relay", relay, relay, false},
		{"same", d(ClassGlobal4, 20), d(ClassGlobal4, 20), false},
		{"a little faster", d(ClassGlobal4, 18), d(ClassGlobal4, 20), false},
		{"much faster", d(ClassGlobal4, 10), d(ClassGlobal4, 40), true},
		{"v6 at equal round trip", d(ClassGlobal6, 20), d(ClassGlobal4, 20), true},
		{"v6 at equal long round trip", d(ClassGlobal6, 300), d(ClassGlobal4, 300), true},
		{"v4 at equal round trip", d(ClassGlobal4, 20), d(ClassGlobal6, 20), false},
		{"LAN over hairpin", d(ClassLocal, 0.3), d(ClassGlobal4, 0.5), true},
		{"LAN over v6", d(ClassLocal, 0.3), d(ClassGlobal6, 0.3), true},
		{"slow private network", d(ClassLocal, 150), d(ClassGlobal4, 20), false},
		{"v4 over slow private network", d(ClassGlobal4, 20), d(ClassLocal, 150), true},
	} {
		if got := Better(c.a, c.b); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		a, b := d(Class(rng.IntN(3)), rng.Float64()*400), d(Class(rng.IntN(3)), rng.Float64()*400)
		if Better(a, b) && Better(b, a) {
			t.Fatalf("%+v and %+v are better than each other", a, b)
		}
		if Better(a, b) && a.cost() >= b.cost() {
			t.Fatalf("%+v over %+v does not lower the cost", a, b)
		}
	}
}

// TestSessionsAgainstReference: what the window calls fresh was never seen.
func TestSessionsAgainstReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for range 200 {
		var s sessions
		seen := make(map[[2]uint64]bool)
		base, accepted := uint64(1), 0
		for range 500 {
			session := uint64(rng.IntN(maxSessions))
			seq := base + uint64(rng.IntN(40))
			if rng.IntN(4) == 0 {
				base += uint64(rng.IntN(20))
			}
			k := [2]uint64{session, seq}
			fresh := s.fresh(session, seq)
			if fresh && seen[k] {
				t.Fatalf("session %d: %d was accepted twice", session, seq)
			}
			if fresh {
				accepted++
			}
			seen[k] = seen[k] || fresh
		}
		if accepted < 100 {
			t.Fatalf("only %d of 500 accepted", accepted)
		}
	}
	var s sessions
	if s.fresh(1, 0) || !s.fresh(0, 1) || s.fresh(0, 1) {
		t.Error("edge cases")
	}
	// A peer that restarts again and again is never locked out.
	for session := range uint64(100) {
		if !s.fresh(session+10, 1) {
			t.Fatalf("session %d refused", session)
		}
	}
}

// input is one thing done to an agent, at a time.
type input struct {
	after time.Duration
	do    func(a *Agent, now time.Time)
}

func randomInputs(rng *rand.Rand) []input {
	addrs := []netip.AddrPort{home, lan, v6, rogue}
	var seq uint64
	var in []input
	for range 40 {
		addr := addrs[rng.IntN(len(addrs))]
		up := rng.IntN(2) == 0
		var do func(a *Agent, now time.Time)
		switch rng.IntN(11) {
		case 0:
			do = func(a *Agent, now time.Time) { a.HandleOutboundUse(now) }
		case 1:
			do = func(a *Agent, now time.Time) { a.HandleRelayState(up, now) }
		case 2:
			do = func(a *Agent, now time.Time) { a.SetRemoteCandidates(listed, now) }
		case 3:
			do = func(a *Agent, now time.Time) { a.HandleInbound(DirectTo(addr), Data, now, now) }
		case 4:
			do = func(a *Agent, now time.Time) { a.HandleNetworkChange(now) }
		case 5:
			seq++
			m := disco.Ping{TxID: disco.TxID{1}, Session: 5, Seq: seq}
			do = func(a *Agent, now time.Time) { _ = a.HandlePing(addr, m, now) }
		case 6:
			do = func(a *Agent, now time.Time) { _ = a.HandleCallMe(disco.CallMe{Endpoints: listed}, now) }
		case 7:
			do = func(a *Agent, now time.Time) { a.HandleDistress(now) }
		case 8:
			do = func(a *Agent, now time.Time) { a.SetLocalMapping(home, up, now) }
		case 9:
			m := disco.Mapping{Public: home, Varies: up}
			if up && rng.IntN(2) == 0 {
				m.Ports, m.Attempt = disco.MaxPorts, rng.Uint64N(3)+1
			}
			do = func(a *Agent, now time.Time) { _ = a.HandleMapping(m, now) }
		default:
			// The candidate answers its newest challenge, if that went out in both
			// agents: one that was sent at this moment.
			do = func(a *Agent, now time.Time) {
				a.HandleOutboundUse(now)
				c := a.find(DirectTo(addr))
				if c == nil {
					return
				}
				c.outstanding = append(c.outstanding[:0], challenge{disco.TxID{42}, now})
				_ = a.HandlePong(addr, disco.Pong{TxID: disco.TxID{42}}, now)
			}
		}
		in = append(in, input{time.Duration(rng.Int64N(int64(8 * time.Second))), do})
	}
	return in
}

// TestJumpEqualsStep: an agent that is only called with inputs, long after its
// deadlines passed, decides as one that is called at every deadline.
func TestJumpEqualsStep(t *testing.T) {
	seeds := uint64(500)
	if testing.Short() {
		seeds = 100
	}
	for seed := range seeds {
		in := randomInputs(rand.New(rand.NewPCG(seed, 9)))
		step, jump := newAgent(t, 1), newAgent(t, 1)
		now := epoch
		var stepped, jumped []Event
		for i, x := range in {
			now = now.Add(x.after)
			for d, ok := step.deadline(); ok && d.Before(now); d, ok = step.deadline() {
				step.HandleTimeout(d)
				pings(step)
				stepped = append(stepped, drainEvents(step)...)
			}
			if i%2 == 0 {
				jump.HandleTimeout(now)
			}
			x.do(step, now)
			x.do(jump, now)
			pings(step)
			if n := len(challenges(jump)); n > len(jump.candidates) {
				t.Fatalf("seed %d: a burst of %d pings to %d candidates", seed, n, len(jump.candidates))
			}
			stepped, jumped = append(stepped, drainEvents(step)...), append(jumped, drainEvents(jump)...)
			if step.Primary() != jump.Primary() || step.active != jump.active || !reflect.DeepEqual(stepped, jumped) {
				t.Fatalf("seed %d, input %d: step %v %v, jump %v %v\n%v\n%v",
					seed, i, step.Primary(), step.active, jump.Primary(), jump.active, stepped, jumped)
			}
			sd, sok := step.deadline()
			jd, jok := jump.deadline()
			if sok != jok || !sd.Equal(jd) {
				t.Fatalf("seed %d, input %d: next deadline %v %v, jump %v %v", seed, i, sd, sok, jd, jok)
			}
		}
	}
}

// TestSleep: a machine that slept for a year is back in one call, and sends no
// burst.
func TestSleep(t *testing.T) {
	a := direct(t, 5)
	pings(a)
	a.HandleTimeout(epoch.AddDate(1, 0, 0))
	if a.Primary() != viaRelay || a.active {
		t.Errorf("primary %v, active %v", a.Primary(), a.active)
	}
	if n := len(pings(a)); n != 0 {
		t.Errorf("%d pings to a peer that nobody used for a year", n)
	}
	if _, ok := a.NextTimeout(); !ok {
		t.Error("the event was drained by nobody, and no time is asked for")
	}
	drainEvents(a)
	if d, ok := a.NextTimeout(); ok {
		t.Errorf("wants to be called at %v", d)
	}
}

func TestClockBack(t *testing.T) {
	a := direct(t, 6)
	pings(a)
	before, _ := a.NextTimeout()
	a.HandleTimeout(epoch.Add(-time.Hour))
	a.HandleOutboundUse(epoch.Add(-time.Hour))
	if after, _ := a.NextTimeout(); a.Snapshot().Stats.ClockBack != 2 || !after.Equal(before) || a.Primary() != DirectTo(home) {
		t.Errorf("%+v, next %v, before %v", a.Snapshot().Stats, after, before)
	}
}

// TestLastResort: without a relay an unused path stays, and a lost one does not.
func TestLastResort(t *testing.T) {
	a := direct(t, 7)
	a.HandleRelayState(false, epoch.Add(time.Second))
	pings(a)
	for d, ok := a.deadline(); ok && a.active && a.Primary().Kind == Direct; d, ok = a.deadline() {
		a.HandleTimeout(d)
		pings(a)
	}
	if a.Primary() != (Path{}) {
		t.Errorf("primary %v after the only path died", a.Primary())
	}
	if e := drainEvents(a); len(e) != 1 || e[0].Why != ReasonLost {
		t.Errorf("events %v", e)
	}
	a.HandleRelayState(true, a.now)
	if a.Primary() != viaRelay {
		t.Errorf("primary %v with a relay", a.Primary())
	}
}

// TestDeadline: while output waits, the driver is called at once.
func TestDeadline(t *testing.T) {
	a := newAgent(t, 8)
	if _, ok := a.NextTimeout(); ok {
		t.Error("a new agent wants something")
	}
	now := epoch.Add(time.Second)
	a.HandleRelayState(true, now)
	if d, ok := a.NextTimeout(); !ok || !d.Equal(now) {
		t.Errorf("%v %v with an event pending", d, ok)
	}
}

func TestRandFails(t *testing.T) {
	if _, err := New(Config{Rand: bytes.NewReader(nil)}, epoch); !errors.Is(err, io.EOF) {
		t.Errorf("no randomness: %v", err)
	}
	a, err := New(Config{Rand: bytes.NewReader(make([]byte, 8))}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	a.SetRemoteCandidates(listed, epoch)
	a.HandleOutboundUse(epoch)
	if s := a.Snapshot().Stats; s.RandFailed != 3 || s.PingsSent != 0 || len(pings(a)) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestUseAllocatesNothing: the data path may say often that a peer is used.
func TestUseAllocatesNothing(t *testing.T) {
	a := direct(t, 9)
	pings(a)
	a.find(DirectTo(home)).heard = epoch.Add(time.Hour)
	now := epoch.Add(100 * time.Millisecond)
	if n := testing.AllocsPerRun(100, func() {
		a.HandleOutboundUse(now)
		a.HandleInbound(DirectTo(home), Data, now, now)
		a.NextTimeout()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzAgent: no order of inputs breaks what must always hold.
func FuzzAgent(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08"))
	f.Add([]byte("\x01\x10\x02\x20\x00\xff\x08\x10\x04\xff\x00\x00"))
	f.Fuzz(func(t *testing.T, script []byte) {
		a := newAgent(t, 1)
		now := epoch
		var shown Path
		var seq uint64
		ids, answerable := make(map[netip.AddrPort]disco.TxID), make(map[netip.AddrPort]uint32)
		for i := 0; i+1 < len(script) && i < 400; i += 2 {
			now = now.Add(time.Duration(script[i+1]) * 50 * time.Millisecond)
			addr := listed[int(script[i]>>4)%len(listed)]
			seq++
			switch script[i] % 16 {
			case 0:
				a.HandleOutboundUse(now)
			case 1:
				a.HandleRelayState(true, now)
			case 2:
				a.SetRemoteCandidates(listed[:int(script[i]>>4)%4], now)
			case 3:
				_ = a.HandlePing(addr, disco.Ping{Session: 1, Seq: seq}, now)
			case 4, 5, 6:
				_ = a.HandleSocketPong(answerable[addr], addr, disco.Pong{TxID: ids[addr]}, now)
			case 7:
				_ = a.HandleCallMe(disco.CallMe{Endpoints: listed[:int(script[i]>>4)%4]}, now)
			case 8:
				a.HandleNetworkChange(now)
			case 9:
				a.HandleRelayState(false, now)
			case 10:
				a.HandleInbound(DirectTo(addr), Data, now, now)
				a.HandleStrays([]Stray{{DirectTo(addr), uint64(script[i+1])}}, uint64(script[i]>>7), now)
			case 11:
				a.HandleDistress(now)
			case 12:
				a.SetLocalCandidates(listed, now)
			case 13:
				m := disco.Mapping{Public: addr, Varies: script[i]&16 != 0}
				if m.Varies {
					m.Ports, m.Attempt = disco.MaxPorts, uint64(i+1)
				}
				_ = a.HandleMapping(m, now)
			case 14:
				a.SetLocalMapping(home, script[i]&16 != 0, now)
				if _, first, count := a.Sockets(); count > 0 {
					_ = a.HandleSocketPing(first+uint32(script[i]>>5), addr, disco.Ping{Session: 1, Seq: seq}, now)
				}
			default:
				a.HandleTimeout(now)
			}
			proved := a.Primary()
			kept, first, count := a.Sockets()
			for tr, ok := a.NextTransmit(); ok; tr, ok = a.NextTransmit() {
				if p, ok := tr.Message.(disco.Ping); ok && p.Session == a.session {
					ids[tr.To.Addr] = p.TxID
					answerable[tr.To.Addr] = tr.To.Socket
				}
			}
			if count > birthdaySockets || kept != 0 && kept-first < count || proved.Socket != 0 && proved.Socket != kept {
				t.Fatalf("sockets %d, %d and %d more for %v", kept, first, count, proved)
			}
			for _, e := range drainEvents(a) {
				shown = e.Primary
			}
			if shown != proved {
				t.Fatalf("primary %v, events say %v", proved, shown)
			}
			if proved.Kind == Direct && a.find(proved) == nil {
				t.Fatalf("primary %v is no candidate", proved)
			}
			if proved.Kind == Relay && !a.relay {
				t.Fatal("primary is a relay that is not there")
			}
			if proved.Kind == None && a.relay {
				t.Fatal("the relay is there and not used")
			}
			if len(a.strayed.waiting) > maxStrays {
				t.Fatalf("%d addresses are waited for", len(a.strayed.waiting))
			}
			if d, ok := a.NextTimeout(); ok && d.Before(a.now) {
				t.Fatalf("deadline %v lies before %v", d, a.now)
			}
		}
	})
}
