package nat

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/stun"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var (
	server1, server2, server6 = at("9.9.9.1:3478"), at("9.9.9.2:3478"), at("[2001:db8::9]:3478")
	local                     = at("192.168.1.2:41641")
)

func newDiscoverer() *Discoverer {
	return New(Config{Rand: rand.NewChaCha8([32]byte{1})}, epoch)
}

// asked drains the requests, by server.
func asked(t *testing.T, d *Discoverer) map[netip.AddrPort]stun.TxID {
	t.Helper()
	requests := make(map[netip.AddrPort]stun.TxID)
	for tr, ok := d.NextTransmit(); ok; tr, ok = d.NextTransmit() {
		m, err := stun.Parse(tr.Packet)
		if err != nil || m.Kind != stun.Request {
			t.Fatalf("%+v, %v", m, err)
		}
		requests[tr.To] = m.TxID
	}
	return requests
}

func response(id stun.TxID, mapped string) stun.Message {
	return stun.Message{Kind: stun.Response, TxID: id, Mapped: at(mapped)}
}

func TestReport(t *testing.T) {
	for name, c := range map[string]struct {
		answers map[netip.AddrPort]string
		want    Report
	}{
		"nothing": {nil, Report{Endpoints: []netip.AddrPort{local}}},
		"one server": {
			map[netip.AddrPort]string{server1: "1.1.1.1:5000"},
			Report{UDP: true, Public4: at("1.1.1.1:5000"), Endpoints: []netip.AddrPort{local, at("1.1.1.1:5000")}},
		},
		"fixed mapping": {
			map[netip.AddrPort]string{server1: "1.1.1.1:5000", server2: "1.1.1.1:5000"},
			Report{UDP: true, Public4: at("1.1.1.1:5000"), MappingVaries: No, Endpoints: []netip.AddrPort{local, at("1.1.1.1:5000")}},
		},
		"varying mapping": {
			map[netip.AddrPort]string{server1: "1.1.1.1:5000", server2: "1.1.1.1:31001"},
			Report{UDP: true, Public4: at("1.1.1.1:5000"), MappingVaries: Yes, Endpoints: []netip.AddrPort{local, at("1.1.1.1:5000")}},
		},
		"ports in a row": {
			map[netip.AddrPort]string{server1: "1.1.1.1:5000", server2: "1.1.1.1:5001"},
			Report{
				UDP: true, Public4: at("1.1.1.1:5000"), MappingVaries: Yes, Endpoints: []netip.AddrPort{local, at("1.1.1.1:5000")},
				Predicted: []netip.AddrPort{
					at("1.1.1.1:5002"), at("1.1.1.1:5003"), at("1.1.1.1:5004"), at("1.1.1.1:5005"), at("1.1.1.1:5006"), at("1.1.1.1:5007"),
				},
			},
		},
		"even ports, at the end": {
			map[netip.AddrPort]string{server1: "1.1.1.1:65528", server2: "1.1.1.1:65530"},
			Report{
				UDP: true, Public4: at("1.1.1.1:65528"), MappingVaries: Yes, Endpoints: []netip.AddrPort{local, at("1.1.1.1:65528")},
				Predicted: []netip.AddrPort{at("1.1.1.1:65532"), at("1.1.1.1:65534")},
			},
		},
		"ports in a row of two addresses": {
			map[netip.AddrPort]string{server1: "1.1.1.1:5000", server2: "1.1.1.2:5001"},
			Report{UDP: true, Public4: at("1.1.1.1:5000"), MappingVaries: Yes, Endpoints: []netip.AddrPort{local, at("1.1.1.1:5000")}},
		},
		"no NAT": {
			map[netip.AddrPort]string{server1: local.String()},
			Report{UDP: true, Public4: local, NoNAT: true, Endpoints: []netip.AddrPort{local}},
		},
		"a server on this machine": {
			map[netip.AddrPort]string{server1: "127.0.0.1:5000"},
			Report{UDP: true, Public4: at("127.0.0.1:5000"), NoNAT: true, Endpoints: []netip.AddrPort{local, at("127.0.0.1:5000")}},
		},
		"a NAT for one of two families": {
			map[netip.AddrPort]string{server1: local.String(), server6: "[2001:db8::1]:41641"},
			Report{UDP: true, Public4: local, Public6: at("[2001:db8::1]:41641"), Endpoints: []netip.AddrPort{local, at("[2001:db8::1]:41641")}},
		},
		"both families": {
			map[netip.AddrPort]string{server1: "1.1.1.1:5000", server6: "[2001:db8::1]:41641"},
			Report{
				UDP: true, Public4: at("1.1.1.1:5000"), Public6: at("[2001:db8::1]:41641"),
				Endpoints: []netip.AddrPort{local, at("1.1.1.1:5000"), at("[2001:db8::1]:41641")},
			},
		},
	} {
		d := newDiscoverer()
		d.SetLocal([]netip.AddrPort{local}, epoch)
		d.SetServers([]netip.AddrPort{server1, server2, server6}, epoch)
		requests := asked(t, d)
		if len(requests) != 3 {
			t.Fatalf("%s: asked %d servers at once", name, len(requests))
		}
		now := epoch.Add(30 * time.Millisecond)
		for _, s := range []netip.AddrPort{server1, server2, server6} {
			if mapped, ok := c.answers[s]; ok {
				if err := d.HandleResponse(s, response(requests[s], mapped), now); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := d.Report()
		if !got.Equal(c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		for _, s := range got.Servers {
			if s.RTT != 30*time.Millisecond {
				t.Errorf("%s: round trip %v", name, s.RTT)
			}
		}
		if e, ok := d.NextEvent(); !ok || !e.Equal(c.want) {
			t.Errorf("%s: event %+v, %v", name, e, ok)
		}
		if _, ok := d.NextEvent(); ok {
			t.Errorf("%s: told twice", name)
		}
	}
}

// TestForgedResponses: only the server that was asked can answer, once, with the
// id of the request.
func TestForgedResponses(t *testing.T) {
	d := newDiscoverer()
	d.SetServers([]netip.AddrPort{server1, server2}, epoch)
	requests := asked(t, d)
	good := response(requests[server1], "1.1.1.1:5000")
	for name, c := range map[string]struct {
		from netip.AddrPort
		m    stun.Message
	}{
		"wrong id":          {server1, response(stun.TxID{}, "6.6.6.6:6")},
		"other's id":        {server2, good},
		"another port":      {netip.AddrPortFrom(server1.Addr(), 1), good},
		"stranger":          {at("6.6.6.6:3478"), good},
		"a failure instead": {server1, stun.Message{Kind: stun.Failure, TxID: good.TxID}},
	} {
		if err := d.HandleResponse(c.from, c.m, epoch); !errors.Is(err, ErrUnsolicited) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r := d.Report(); r.UDP || d.Stats().Unsolicited != 5 {
		t.Fatalf("%+v %+v", r, d.Stats())
	}
	if err := d.HandleResponse(server1, good, epoch); err != nil {
		t.Fatal(err)
	}
	if err := d.HandleResponse(server1, response(good.TxID, "6.6.6.6:6"), epoch); !errors.Is(err, ErrUnsolicited) {
		t.Errorf("second answer: %v", err)
	}
}

// TestSilentServer: a server is asked four times with one id, then its last
// answer is forgotten until it answers again.
func TestSilentServer(t *testing.T) {
	d := newDiscoverer()
	d.SetServers([]netip.AddrPort{server1}, epoch)
	id := asked(t, d)[server1]
	if err := d.HandleResponse(server1, response(id, "1.1.1.1:5000"), epoch); err != nil {
		t.Fatal(err)
	}
	d.NextEvent()
	var times []time.Duration
	now := epoch
	for !d.now.After(epoch.Add(refresh + 4*time.Second)) {
		next, ok := d.NextTimeout()
		if !ok {
			t.Fatal("never asks again")
		}
		now = next
		d.HandleTimeout(now)
		if len(asked(t, d)) > 0 {
			times = append(times, now.Sub(epoch)-refresh)
		}
		if _, ok := d.NextEvent(); ok {
			break
		}
	}
	want := []time.Duration{0, 250 * time.Millisecond, 750 * time.Millisecond, 1750 * time.Millisecond}
	if !slices.Equal(times, want) {
		t.Errorf("asked at %v, want %v", times, want)
	}
	if d.Report().UDP || now.Sub(epoch) != refresh+2750*time.Millisecond {
		t.Errorf("at %v: %+v", now.Sub(epoch), d.Report())
	}
}

func TestNetworkChange(t *testing.T) {
	d := newDiscoverer()
	d.SetServers([]netip.AddrPort{server1}, epoch)
	id := asked(t, d)[server1]
	if err := d.HandleResponse(server1, response(id, "1.1.1.1:5000"), epoch); err != nil {
		t.Fatal(err)
	}
	now := epoch.Add(10 * time.Second)
	d.HandleNetworkChange(now)
	if d.Report().UDP {
		t.Error("an answer from the old network counts on")
	}
	second := asked(t, d)
	if len(second) != 1 || second[server1] == id {
		t.Fatalf("asked again: %v", second)
	}
	if err := d.HandleResponse(server1, response(id, "1.1.1.1:5000"), now); !errors.Is(err, ErrUnsolicited) {
		t.Errorf("late answer from the old network: %v", err)
	}
	// A machine that reports changes without end does not ask without end.
	requests := 0
	for range 1000 {
		now = now.Add(time.Millisecond)
		d.HandleNetworkChange(now)
		requests += len(asked(t, d))
	}
	if requests > 5 {
		t.Errorf("%d requests in a second of changes", requests)
	}
}

// TestDistress: lost paths make for a round at once, but not for many.
func TestDistress(t *testing.T) {
	d := newDiscoverer()
	d.HandleDistress(epoch)
	if _, ok := d.NextTimeout(); ok {
		t.Error("without servers there is nobody to ask")
	}
	d.SetServers([]netip.AddrPort{server1}, epoch)
	id := asked(t, d)[server1]
	if err := d.HandleResponse(server1, response(id, "1.1.1.1:5000"), epoch); err != nil {
		t.Fatal(err)
	}
	requests := 0
	now := epoch.Add(5 * time.Second)
	for range 100 {
		d.HandleDistress(now)
		for server, id := range asked(t, d) {
			requests++
			if d.Report().Public4 != at("1.1.1.1:5000") && requests == 1 {
				t.Error("forgotten before it was answered anew")
			}
			if err := d.HandleResponse(server, response(id, "1.1.1.1:5001"), now); err != nil {
				t.Fatal(err)
			}
		}
		now = now.Add(50 * time.Millisecond)
	}
	if requests != 3 || d.Report().Public4 != at("1.1.1.1:5001") {
		t.Errorf("%d requests in 5 s, %v", requests, d.Report())
	}
}

// TestSleep: rounds that a sleeping machine missed are not made up for.
func TestSleep(t *testing.T) {
	d := newDiscoverer()
	d.SetServers([]netip.AddrPort{server1}, epoch)
	asked(t, d)
	d.HandleTimeout(epoch.Add(24 * time.Hour))
	if n := d.Stats().ServersSilent; n > 2 {
		t.Errorf("%d rounds were made up for", n)
	}
	sent := 0
	for _, ok := d.NextTransmit(); ok; _, ok = d.NextTransmit() {
		sent++
	}
	if sent > 1 {
		t.Errorf("%d requests after sleep", sent)
	}
	d.HandleTimeout(epoch)
	if d.Stats().ClockBack != 1 {
		t.Error("a clock that went back was not counted")
	}
}

func TestCaps(t *testing.T) {
	d := newDiscoverer()
	var many []netip.AddrPort
	for i := range 100 {
		many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 2, 3, byte(i)}), 1))
	}
	d.SetServers(many, epoch)
	d.SetLocal(many, epoch)
	if n := len(asked(t, d)); n != MaxServers {
		t.Errorf("asked %d servers", n)
	}
	if n := len(d.Report().Endpoints); n != MaxLocal {
		t.Errorf("%d endpoints", n)
	}
	d.SetServers(nil, epoch)
	for i := 0; ; i++ {
		next, ok := d.NextTimeout()
		if !ok {
			break
		}
		if i > 10 {
			t.Fatal("without servers it goes on")
		}
		d.NextEvent()
		d.HandleTimeout(next)
	}
}

// TestCheck: somebody who asks gets a round at once, and knows when it is over,
// whether servers answer or not; many who ask get one.
func TestCheck(t *testing.T) {
	d := newDiscoverer()
	d.HandleCheck(epoch)
	if d.Asking() {
		t.Error("asking without servers")
	}
	d.SetServers([]netip.AddrPort{server1, server2}, epoch)
	now := epoch.Add(time.Second)
	for server, id := range asked(t, d) {
		if err := d.HandleResponse(server, response(id, "1.1.1.1:5000"), now); err != nil {
			t.Fatal(err)
		}
	}
	if d.Asking() {
		t.Error("asking after all have answered")
	}
	for range 3 {
		d.HandleCheck(now)
		if !d.Asking() {
			t.Error("over before it began")
		}
	}
	requests := asked(t, d)
	if len(requests) != 2 || !d.Report().UDP {
		t.Errorf("asked %v, report %v", requests, d.Report())
	}
	if err := d.HandleResponse(server1, response(requests[server1], "1.1.1.1:5000"), now); err != nil {
		t.Fatal(err)
	}
	if !d.Asking() {
		t.Error("over before the second server answered or was given up")
	}
	began := now
	for d.Asking() {
		next, ok := d.NextTimeout()
		if !ok || next.Sub(began) > 3*time.Second {
			t.Fatalf("not over after 3 s: %v", next)
		}
		asked(t, d)
		d.NextEvent()
		now = next
		d.HandleTimeout(now)
	}
	if d.Stats().RequestsSent != 2+2+3 {
		t.Errorf("%d requests", d.Stats().RequestsSent)
	}
	// Soon after the last one: not at once, but sure.
	d.HandleCheck(now)
	if !d.Asking() {
		t.Error("no round soon after the last one")
	}
}

// TestForwarded: addresses that lead here are told to peers, before the public
// ones, once each, and however many local ones there are.
func TestForwarded(t *testing.T) {
	d := newDiscoverer()
	var many []netip.AddrPort
	for i := range MaxLocal {
		many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1))
	}
	d.SetLocal(many, epoch)
	d.NextEvent()
	forwarded := []netip.AddrPort{at("5.5.0.1:41641"), at("5.5.0.2:1"), at("10.0.0.0:1"), at("5.5.0.1:41641")}
	d.SetForwarded(forwarded, epoch)
	report, changed := d.NextEvent()
	if !changed || len(report.Endpoints) != MaxLocal-2 || !slices.Equal(report.Endpoints[MaxLocal-4:], forwarded[:2]) {
		t.Errorf("changed %v: %v", changed, report.Endpoints)
	}
	d.SetForwarded(forwarded, epoch)
	if _, changed := d.NextEvent(); changed {
		t.Error("told twice")
	}
	d.SetForwarded(slices.Repeat(forwarded[:1], 100), epoch)
	if n := len(d.forwarded); n != MaxForwarded {
		t.Errorf("%d are kept", n)
	}
	d.SetForwarded(nil, epoch)
	if report, _ := d.NextEvent(); !slices.Equal(report.Endpoints, many) {
		t.Errorf("endpoints %v", report.Endpoints)
	}
}

// TestMoves: a public address that becomes another by itself is told of once,
// also where servers were silent in between; one that differs from server to
// server, and one of another network, is no move.
func TestMoves(t *testing.T) {
	d, now := newDiscoverer(), epoch
	d.SetServers([]netip.AddrPort{server1, server2, server6}, now)
	round := func(answers map[netip.AddrPort]string) {
		t.Helper()
		now = now.Add(time.Minute)
		d.HandleCheck(now)
		for server, id := range asked(t, d) {
			if mapped, ok := answers[server]; ok {
				if err := d.HandleResponse(server, response(id, mapped), now); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 10 { // the others are given up
			now = now.Add(time.Second)
			d.HandleTimeout(now)
			asked(t, d)
		}
	}
	for _, c := range []struct {
		name    string
		answers map[netip.AddrPort]string
		moves   uint64
	}{
		{"the first answers", map[netip.AddrPort]string{server1: "1.1.1.1:5000", server2: "1.1.1.2:5000", server6: "[2001:db8::1]:5000"}, 0},
		{"other ports", map[netip.AddrPort]string{server1: "1.1.1.1:6000", server2: "1.1.1.2:7000", server6: "[2001:db8::1]:5000"}, 0},
		{"silence", nil, 0},
		{"the same again", map[netip.AddrPort]string{server1: "1.1.1.1:5000", server2: "1.1.1.2:5000"}, 0},
		{"silence", nil, 0},
		{"another address, as both see it", map[netip.AddrPort]string{server1: "2.2.2.2:5000", server2: "2.2.2.2:5001"}, 1},
		{"another of IPv6", map[netip.AddrPort]string{server1: "2.2.2.2:5000", server6: "[2001:db8::2]:5000"}, 2},
	} {
		round(c.answers)
		if got := d.Report().Moves; got != c.moves {
			t.Errorf("%s: %d moves, want %d", c.name, got, c.moves)
		}
	}
	d.HandleNetworkChange(now)
	round(map[netip.AddrPort]string{server1: "3.3.3.3:5000", server6: "[2001:db8::3]:5000"})
	if got := d.Report().Moves; got != 2 {
		t.Errorf("another network counts as a move: %d", got)
	}
}
