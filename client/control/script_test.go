package control_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// update rewrites the traces in testdata/*.txt; the diff is to be explained.
var update = flag.Bool("update", false, "rewrite the traces of testdata/*.txt")

// TestScripts runs testdata/*.txt. A script is a list of steps: input lines,
// "----", and the trace that they cause, up to an empty line. A line that
// begins with # is a comment. The commands are the keys of script.run.
func TestScripts(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := newScript(t).play(string(text))
			if got == string(text) {
				return
			}
			if !*update {
				t.Fatalf("%s: another trace than expected; got:\n%s", name, got)
			}
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// zeros makes the back-off's jitter the least there is.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

type script struct {
	t     *testing.T
	net   *network
	m     *control.Machine
	now   time.Time
	saved control.Saved
	// sent are the maps that the coordinator made, by sequence.
	maps  map[uint64]*wire.Map
	trace strings.Builder
}

func newScript(t *testing.T) *script {
	s := &script{t: t, net: newNetwork(t, 1), now: start, maps: map[uint64]*wire.Map{}}
	return s
}

// play returns the script with the traces that really come about.
func (s *script) play(text string) string {
	var out strings.Builder
	for step := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n\n") {
		input, _, _ := strings.Cut(step, "\n----")
		for line := range strings.SplitSeq(input, "\n") {
			if line != "" && !strings.HasPrefix(line, "#") {
				fields := strings.Fields(line)
				s.run(fields[0], fields[1:])
			}
		}
		out.WriteString(input)
		// protobuf puts no-break spaces into the texts of its errors in some
		// builds, so that nobody relies on them.
		if trace := strings.ReplaceAll(s.trace.String(), "\u00a0", " "); strings.Contains(step, "\n----") {
			out.WriteString("\n----\n" + strings.TrimSuffix(trace, "\n"))
			if trace == "" {
				out.WriteString("nothing")
			}
		}
		s.trace.Reset()
		out.WriteString("\n\n")
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func (s *script) run(command string, args []string) {
	switch command {
	case "new": // [fresh]: without a genesis record; otherwise with what was saved
		cfg := s.net.config()
		cfg.Rand = zeros{}
		if len(s.saved.Genesis) > 0 {
			cfg.Saved = s.saved
		}
		if slices.Contains(args, "fresh") {
			cfg.Saved = control.Saved{}
		}
		m, err := control.New(cfg, s.now)
		if err != nil {
			s.t.Fatal(err)
		}
		s.m = m
	case "start":
		s.m.HandleStart(s.now)
	case "stop":
		s.m.HandleStop(s.now)
	case "login":
		s.m.HandleLogin(control.Registration{AuthKey: args[0], Hostname: "laptop"}, s.now)
	case "logout":
		fmt.Fprintf(&s.trace, "told %v\n", s.m.HandleLogout(s.now))
	case "network-change":
		s.m.HandleNetworkChange(s.now)
	case "genesis":
		s.m.HandleGenesis(s.net.genesis, s.now)
	case "genesis-of-another":
		s.m.HandleGenesis(newNetwork(s.t, 2).genesis, s.now)
	case "connected":
		s.m.HandleConnected(wire.Proof{}, s.now)
	case "closed":
		s.m.HandleClosed(errors.New(strings.Join(args, " ")), s.now)
	case "closed-by-another":
		s.m.HandleClosed(fmt.Errorf("handshake: %w", authority.ErrFingerprint), s.now)
	case "endpoints":
		var all []netip.AddrPort
		for _, a := range args {
			all = append(all, netip.MustParseAddrPort(a))
		}
		s.m.HandleReach(all, "", s.now)
	case "time": // +duration, with all that is due on the way
		end := s.now.Add(s.duration(strings.TrimPrefix(args[0], "+")))
		s.drain()
		for at, ok := s.m.NextTimeout(); ok && !at.After(end); at, ok = s.m.NextTimeout() {
			s.now = at
			fmt.Fprintf(&s.trace, "at +%v\n", at.Sub(start))
			s.m.HandleTimeout(at)
			s.drain()
		}
		s.now = end
	case "jump": // +duration, as after a suspend
		s.now = s.now.Add(s.duration(strings.TrimPrefix(args[0], "+")))
		s.m.HandleTimeout(s.now)
	default:
		s.receive(command, args)
	}
	s.drain()
}

// receive makes the coordinator's message and hands it in.
func (s *script) receive(kind string, args []string) {
	value := func(key, otherwise string) string {
		for _, a := range args {
			if v, ok := strings.CutPrefix(a, key+"="); ok {
				return v
			}
		}
		return otherwise
	}
	number := func(key string, otherwise uint64) uint64 {
		n, err := strconv.ParseUint(value(key, fmt.Sprint(otherwise)), 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		return n
	}
	var frame []byte
	switch kind {
	case "welcome":
		frame = wire.EncodeServer(wire.Welcome{
			Version: wire.Version(number("version", 1)), Registered: value("registered", "yes") == "yes",
			Time: s.now.Add(s.duration(value("clock", "0s"))),
		})
	case "registered":
		frame = wire.EncodeServer(wire.Registered{Node: selfID, Name: "laptop"})
	case "ping":
		frame = wire.EncodeServer(wire.Ping{Number: number("number", 1)})
	case "error":
		frame = wire.EncodeServer(&wire.Error{
			Code: wire.Code(number("code", 0)), Message: value("message", ""), RetryAfter: s.duration(value("retry", "0s")),
		})
	case "map":
		m := s.coordinatorMap(number("sequence", 1), number("epoch", 1), value("peers", ""))
		frame = wire.EncodeServer(m)
	case "delta":
		base := s.maps[number("base", 1)]
		m := s.coordinatorMap(number("sequence", 2), number("epoch", 1), value("peers", ""))
		d := diff(m, base)
		if value("damage", "") == "hash" {
			d.Hash[0] ^= 1
		}
		frame = wire.EncodeServer(d)
	case "noise":
		frame = []byte{0xff, 0xff, 0xff}
	default:
		s.t.Fatalf("unknown command %q", kind)
	}
	if err := s.m.HandleFrame(frame, s.now); err != nil {
		fmt.Fprintf(&s.trace, "error %v\n", err)
	}
}

// coordinatorMap makes a map. Peers are ids, those with a ! signed by an
// unknown key.
func (s *script) coordinatorMap(sequence, epoch uint64, peers string) *wire.Map {
	m := s.net.fullMap(sequence, ruleset.Epoch(epoch))
	for p := range strings.SplitSeq(peers, ",") {
		if p == "" {
			continue
		}
		digits, forged := strings.CutSuffix(p, "!")
		n, err := strconv.ParseUint(digits, 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		id := ident.NodeID(n)
		peer := s.net.peer(id, n*10)
		if forged {
			peer.Certificate = s.net.signWith(s.net.certificate(id, n*10), s.net.rogue, nil)
		}
		m.Peers[id] = peer
	}
	s.maps[sequence] = m
	return m
}

func (s *script) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// drain writes what the machine has to say.
func (s *script) drain() {
	for {
		o, ok := s.m.NextOutput()
		if !ok {
			break
		}
		switch o := o.(type) {
		case control.FetchGenesis:
			fmt.Fprintf(&s.trace, "fetch genesis from %s\n", o.URL)
		case control.Dial:
			fmt.Fprintf(&s.trace, "dial %s\n", o.URL)
		case control.Close:
			s.trace.WriteString(map[bool]string{false: "close\n", true: "close after a moment\n"}[o.Linger])
		case control.Send:
			message, err := wire.DecodeClient(o.Frame)
			if err != nil {
				s.t.Fatal(err)
			}
			s.trace.WriteString("send " + describe(message) + "\n")
		}
	}
	for {
		e, ok := s.m.NextEvent()
		if !ok {
			return
		}
		switch e := e.(type) {
		case control.StateChanged:
			fmt.Fprintln(&s.trace, strings.TrimSuffix(fmt.Sprintf("state %v: %s", e.State, e.Reason), ": "))
		case control.Persist:
			s.saved = e.Saved
			fmt.Fprintf(&s.trace, "save map=%v revoked=%v epoch=%d\n", len(e.Saved.Map) > 0, e.Saved.Revoked, e.Saved.Authority.Epoch)
		case control.NetMap:
			s.trace.WriteString("view " + describeView(e.View) + "\n")
		case control.HealthChanged:
			var facts []string
			for _, f := range s.m.Snapshot().Facts {
				facts = append(facts, strings.TrimSuffix(string(f.Code)+"/"+f.Subject, "/"))
			}
			fmt.Fprintf(&s.trace, "health %v\n", facts)
		}
	}
}

func describe(m wire.ClientMessage) string {
	switch m := m.(type) {
	case wire.Hello:
		return fmt.Sprintf("hello version=%d", m.Version)
	case wire.Register:
		return fmt.Sprintf("register key=%s hostname=%s", m.AuthKey, m.Hostname)
	case wire.MapRequest:
		return fmt.Sprintf("map-request have=%d endpoints=%v", m.HaveSequence, m.Endpoints)
	case wire.Update:
		return fmt.Sprintf("update endpoints=%v", m.Endpoints)
	case wire.Pong:
		return fmt.Sprintf("pong number=%d", m.Number)
	case wire.Logout:
		return "logout"
	}
	return fmt.Sprintf("%T", m)
}

func describeView(v *control.View) string {
	if v.Self == nil {
		return "empty"
	}
	var peers []string
	for _, p := range v.Peers {
		peers = append(peers, p.Member.Node().String())
	}
	epoch := "none"
	if v.Rules != nil {
		epoch = fmt.Sprint(v.Rules.Set().Epoch)
	}
	text := fmt.Sprintf("sequence=%d epoch=%s peers=%v", v.Sequence, epoch, peers)
	if v.Cached {
		text += " cached"
	}
	return text
}
