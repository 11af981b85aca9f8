package agent

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/relay/home"
)

// TestHints: each fault of a network has its hint, and a sound one has none.
func TestHints(t *testing.T) {
	yes := true
	up := []engine.RelayStatus{
		{Name: "far", RTT: 30 * time.Millisecond}, {Name: "default", Home: true, Connected: true, RTT: 3 * time.Millisecond},
	}
	server := []nat.ServerReport{{Server: netip.MustParseAddrPort("192.0.2.1:3478"), Mapped: netip.MustParseAddrPort("192.0.2.9:4000"), RTT: time.Millisecond}}
	for _, c := range []struct {
		name   string
		status engine.Status
		portal *bool
		want   []string
	}{
		{"sound", engine.Status{NAT: nat.Report{UDP: true, MappingVaries: nat.No, Servers: server}, Relays: up}, new(bool), nil},
		{"hard NAT", engine.Status{NAT: nat.Report{UDP: true, MappingVaries: nat.Yes}, Relays: up}, nil, []string{"another port for each destination"}},
		{"UDP blocked", engine.Status{Relays: up, Port: 41641}, nil, []string{"UDP is blocked, .* port 3478, and from port 41641 .* over the relay"}},
		{"no relay named", engine.Status{NAT: nat.Report{UDP: true, MappingVaries: nat.No}}, nil, []string{"names no relay"}},
		{"relay down", engine.Status{NAT: nat.Report{UDP: true, MappingVaries: nat.No}, Relays: []engine.RelayStatus{{Name: "default", Error: "refused"}}}, nil, []string{`No relay is connected \(default: refused\)`}},
		{"one STUN server answers", engine.Status{NAT: nat.Report{UDP: true, Servers: server}, Relays: up}, nil, []string{"not known.*only one of the 3 STUN servers answers; .*guessed.*allow UDP.*--stun HOST:PORT"}},
		{"one STUN server and no NAT", engine.Status{NAT: nat.Report{UDP: true, NoNAT: true, Servers: server}, Relays: up}, nil, nil},
		{"servers of two families", engine.Status{NAT: nat.Report{UDP: true, Servers: append(server, server...)}, Relays: up}, nil, []string{"not known.*no two.*of one family; .*--stun HOST:PORT"}},
		{"portal", engine.Status{Relays: []engine.RelayStatus{{Error: "moved"}}}, &yes, []string{"sign-in page", "UDP is blocked"}},
	} {
		r := netcheck(c.status)
		r.CaptivePortal = c.portal
		got := hints(r, c.status.NAT.NoNAT, 3)
		if len(got) != len(c.want) {
			t.Errorf("%s: %q", c.name, got)
			continue
		}
		for i := range got {
			rest := got[i]
			for part := range strings.SplitSeq(strings.ReplaceAll(strings.ReplaceAll(c.want[i], `\(`, "("), `\)`, ")"), ".*") {
				_, after, ok := strings.Cut(rest, part)
				if !ok {
					t.Errorf("%s: %q, want %q", c.name, got[i], c.want[i])
				}
				rest = after
			}
		}
	}
	for servers, want := range map[int]string{1: "only one STUN server is configured", 2: "only one of the 2 STUN servers answers"} {
		got := hints(netcheck(engine.Status{NAT: nat.Report{UDP: true, Servers: server}, Relays: up}), false, servers)
		if len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%d STUN servers, of which one answers: %q", servers, got)
		}
	}
	// One that answers beside and takes no connection is not the nearest.
	refusing := engine.RelayStatus{Name: "near", RTT: time.Millisecond, Failed: true, Error: "refused"}
	if r := netcheck(engine.Status{Relays: append([]engine.RelayStatus{refusing}, up...)}); r.NearestRelay != "default" || !r.Relays[0].Failed {
		t.Errorf("%+v", r)
	}
	r := netcheck(engine.Status{NAT: nat.Report{UDP: true, MappingVaries: nat.No, Servers: server}, Relays: up})
	if r.NearestRelay != "default" || len(r.Relays) != 2 || len(r.Servers) != 1 || r.MappingVariesByDestIP == nil || *r.MappingVariesByDestIP {
		t.Errorf("%+v", r)
	}
}

// TestDescribeObserved: where the peer says that it saw this device is passed on, and
// pointed out where it is an address that this device does not know of.
func TestDescribeObserved(t *testing.T) {
	known, unknown := netip.MustParseAddrPort("198.51.100.7:41641"), netip.MustParseAddrPort("198.51.100.7:50001")
	for _, c := range []struct {
		observed netip.AddrPort
		pointed  bool
	}{{netip.AddrPort{}, false}, {known, false}, {unknown, true}} {
		r := describePaths(engine.PeerPaths{Paths: path.Snapshot{Candidates: []path.CandidateState{{Observed: c.observed}}}}, engine.Status{Endpoints: []netip.AddrPort{known}})
		got := r.Candidates[0]
		if got.Observed != c.observed || strings.Contains(got.Why, "sees this device at "+c.observed.String()) != c.pointed {
			t.Errorf("%v: %+v", c.observed, got)
		}
	}
}

// TestDescribeGuessing: it is said which side has to guess, how far that has come,
// and that two hard NATs leave nothing to guess.
func TestDescribeGuessing(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	began := now.Add(-2500 * time.Millisecond)
	const easy, hard = path.MappingEasy, path.MappingHard
	for _, c := range []struct {
		state               path.BirthdayState
		guessing, notDirect string
	}{
		{path.BirthdayState{}, "", "none of the 1 addresses of db answers"},
		{path.BirthdayState{Local: hard, Remote: hard}, "", "neither can guess the other's"},
		{path.BirthdayState{Local: hard, Remote: easy, Role: path.BirthdayOpener, Began: began, Sent: 300}, "for 2.5s this device has been sending from many sockets", "which db has to guess"},
		{path.BirthdayState{Local: easy, Remote: hard, Role: path.BirthdayGuesser, Began: began, Sent: 300, Most: 2000}, "trying ports of db, 300 of at most 2000", "which this device has to guess"},
		{path.BirthdayState{Local: easy, Remote: hard, Failures: 2}, "attempts: 2", "which this device has to guess"},
		{path.BirthdayState{Local: hard, Remote: easy, Failures: 1, Next: now.Add(5 * time.Minute)}, "attempts: 1; next in 5m0s", "which db has to guess"},
	} {
		p := engine.PeerPaths{
			Name: "db", Path: engine.Path{Kind: engine.PathRelay}, Now: now,
			Paths: path.Snapshot{Active: true, Candidates: []path.CandidateState{{Standing: path.StandingSilent, Sources: path.SourceGuessed}}, Birthday: c.state},
		}
		r := describePaths(p, engine.Status{NAT: nat.Report{UDP: true}})
		if (c.guessing == "") != (r.Guessing == "") || !strings.Contains(r.Guessing, c.guessing) || !strings.Contains(r.NotDirect, c.notDirect) || r.Candidates[0].Sources[0] != "guessed" {
			t.Errorf("%+v: %q, %q", c.state, r.Guessing, r.NotDirect)
		}
		p.Path.Kind = engine.PathDirect
		if r := describePaths(p, engine.Status{}); r.Guessing != "" {
			t.Errorf("direct: %q", r.Guessing)
		}
	}
}

// TestDescribeBarredRelays: a relay that carries no data to the peer is named, with
// when that was found and until when it is not used.
func TestDescribeBarredRelays(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	bar := home.Barred{Relay: "evil", Since: now.Add(-time.Minute), Until: now.Add(4 * time.Minute)}
	r := describePaths(engine.PeerPaths{Name: "db", Now: now, Barred: []home.Barred{bar}}, engine.Status{
		Relays: []engine.RelayStatus{{Name: "evil", Barred: 2}, {Name: "good"}},
	})
	if len(r.BarredRelays) != 1 || r.BarredRelays[0] != (localapi.BarredRelay{Name: "evil", Since: bar.Since, Until: bar.Until}) {
		t.Errorf("barred %+v", r.BarredRelays)
	}
	if len(r.Relays) != 2 || r.Relays[0].Barred != 2 || r.Relays[1].Barred != 0 {
		t.Errorf("relays %+v", r.Relays)
	}
}

// TestDescribePaths: every standing of an address has its own explanation, and
// so has every reason why there is no direct path.
func TestDescribePaths(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	addr := netip.MustParseAddrPort("192.0.2.9:4000")
	direct := engine.Path{Kind: engine.PathDirect, Addr: addr}
	relay := engine.Path{Kind: engine.PathRelay, Relay: "default"}
	for _, c := range []struct {
		standing  path.Standing
		path      engine.Path
		own       nat.Report
		why       string
		notDirect string
	}{
		{path.StandingPrimary, direct, nat.Report{UDP: true}, "packets go there; answered 2s ago", ""},
		{path.StandingWorks, direct, nat.Report{UDP: true}, "costs 40ms against 1ms of the primary", ""},
		{path.StandingProbing, relay, nat.Report{UDP: true}, "no answer yet; next in 3s", "1 of the 2 addresses of db are still being asked"},
		{path.StandingSilent, relay, nat.Report{UDP: true}, "again and again without an answer; next in 3s", "none of the 2 addresses of db answers"},
		{path.StandingSilent, relay, nat.Report{UDP: true}, "without an answer", "not known what kind of NAT"},
		{path.StandingSilent, relay, nat.Report{}, "without an answer", "UDP seems to be blocked here"},
		{path.StandingSilent, relay, nat.Report{UDP: true, MappingVaries: nat.Yes}, "without an answer", "this device's NAT takes another port"},
		{path.StandingStale, relay, nat.Report{UDP: true}, "answered last 2s ago, which is too old", "none of the 2"},
		{path.StandingLost, relay, nat.Report{UDP: true}, "was primary and stopped answering", "none of the 2"},
		{path.StandingBarred, relay, nat.Report{UDP: true}, "carried no tunnel; not used for another 7s", "carried no tunnel"},
		{path.StandingIdle, relay, nat.Report{UDP: true}, "not asked while no packets", "none of the 2"},
	} {
		candidate := path.CandidateState{
			Addr: addr, Standing: c.standing, Sources: path.SourceListed | path.SourceObserved, RTT: time.Millisecond,
			Cost: 40 * time.Millisecond, Proved: now.Add(-2 * time.Second), Next: now.Add(3 * time.Second), Barred: now.Add(7 * time.Second),
		}
		other := path.CandidateState{Standing: path.StandingPrimary, Cost: time.Millisecond, Proved: now}
		if c.path != direct {
			other.Standing = path.StandingSilent
		}
		if c.standing == path.StandingPrimary {
			other.Standing = path.StandingSilent
		}
		p := engine.PeerPaths{Name: "db", Path: c.path, Now: now, Relayed: true, Paths: path.Snapshot{Active: true, Candidates: []path.CandidateState{candidate, other}}}
		r := describePaths(p, engine.Status{NAT: c.own})
		got := r.Candidates[0]
		if got.State != c.standing.String() || !strings.Contains(got.Why, c.why) || strings.Join(got.Sources, ",") != "coordinator,observed" {
			t.Errorf("%v: %+v, want %q", c.standing, got, c.why)
		}
		if (c.notDirect == "") != (r.NotDirect == "") || !strings.Contains(r.NotDirect, c.notDirect) || r.Why == "" {
			t.Errorf("%v: %q, not direct %q, want %q", c.standing, r.Why, r.NotDirect, c.notDirect)
		}
		p.Paths.Active, p.Paths.Candidates = false, nil
		if r := describePaths(p, engine.Status{}); c.path != direct && !strings.Contains(r.NotDirect, "no packets were exchanged lately") {
			t.Errorf("idle: %q", r.NotDirect)
		}
	}
}
