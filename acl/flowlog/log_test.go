package flowlog

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

var (
	start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	sides = Sides{
		Self: Party{Node: 1, Name: "laptop", User: 7, Certificate: 3},
		Peer: Party{Node: 2, Name: "db", Certificate: 5},
	}
	laptop, db = netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2")
)

func flow(port uint16) packet.Tuple {
	return packet.Tuple{
		Source: packet.AddressOf(laptop), SourcePort: 40000, Destination: packet.AddressOf(db), DestinationPort: port,
		Protocol: packet.TCP,
	}
}

func opened(port uint16, at time.Time) *filter.Event {
	return &filter.Event{
		Kind: filter.FlowOpened, Flow: flow(port), Opener: filter.Outbound, At: at, Epoch: 4, Rule: "r",
		Would: ruleset.WouldDeny, WouldRule: "audit", Candidate: ruleset.Outlook{Epoch: 3, Would: ruleset.WouldDeny, Rule: "no"},
	}
}

func ended(port uint16, at time.Time, lasted time.Duration) *filter.Event {
	return &filter.Event{
		Kind: filter.FlowEnded, Flow: flow(port), Opener: filter.Outbound, At: at, Lasted: lasted, Epoch: 5, Rule: "r",
		End: filter.EndRule, Packets: [2]uint32{filter.Inbound: 3, filter.Outbound: 2}, Bytes: [2]uint64{filter.Inbound: 300, filter.Outbound: 200},
	}
}

func denied(port uint16, at time.Time) *filter.Event {
	return &filter.Event{Kind: filter.FlowDenied, Flow: flow(port), Opener: filter.Outbound, At: at, Epoch: 4, Reason: filter.DropNoRule}
}

func all(l *Log) []Record {
	records, _ := l.Since(0, 1<<20)
	return records
}

func TestFlowIsOneRecord(t *testing.T) {
	l := New(99)
	l.Add(&sides, opened(5432, start), start)
	before := all(l)
	if len(before) != 1 {
		t.Fatalf("%+v", before)
	}
	o := before[0]
	if !o.Allowed || o.Source.Name != "laptop" || o.Source.Address != netip.AddrPortFrom(laptop, 40000) || o.Source.User != 7 ||
		o.Destination.Name != "db" || o.Destination.Address.Port() != 5432 || o.Rule != "r" || o.Epoch != 4 ||
		!o.Start.Equal(start) || !o.End.IsZero() || o.Would != ruleset.WouldDeny || o.WouldRule != "audit" ||
		o.Candidate != (ruleset.Outlook{Epoch: 3, Would: ruleset.WouldDeny, Rule: "no"}) {
		t.Errorf("opening: %+v", o)
	}
	l.Add(&sides, ended(5432, start.Add(time.Minute), time.Minute), start.Add(time.Minute))
	after := all(l)
	if len(after) != 1 {
		t.Fatalf("%+v", after)
	}
	e := after[0]
	if e.ID != o.ID || e.Sequence <= o.Sequence || !e.Start.Equal(start) || !e.End.Equal(start.Add(time.Minute)) || e.EndReason != "rule" ||
		e.Epoch != 4 || e.EndEpoch != 5 || e.Sent != (Traffic{2, 200}) || e.Received != (Traffic{3, 300}) || e.WouldRule != "audit" ||
		e.Candidate != o.Candidate {
		t.Errorf("end: %+v", e)
	}
	if news, gap := l.Since(o.Sequence, 10); len(news) != 1 || gap {
		t.Errorf("since the opening: %+v, %v", news, gap)
	}
	if len(l.byID) != 0 {
		t.Error("an ended flow is kept as an open one")
	}
}

func TestInboundFlowHasThePeerAsSource(t *testing.T) {
	l := New(1)
	e := ended(22, start, time.Second)
	e.Opener = filter.Inbound
	l.Add(&sides, e, start)
	r := all(l)[0]
	if r.Source.Name != "db" || r.Destination.Name != "laptop" || r.Sent != (Traffic{3, 300}) || r.Received != (Traffic{2, 200}) {
		t.Errorf("%+v", r)
	}
}

// TestClockThatWasSet corrects the filter's clock by the present one.
func TestClockThatWasSet(t *testing.T) {
	l := New(1)
	now := time.Now() // with a monotonic reading
	l.Add(&sides, opened(1, now.Add(-time.Second)), now)
	if r := all(l)[0]; !r.Start.Equal(now.Add(-time.Second)) {
		t.Errorf("%v, want a second before %v", r.Start, now)
	}
}

func TestDenialsAreCounted(t *testing.T) {
	l := New(1)
	for i := range 5 {
		l.Add(&sides, denied(22, start.Add(time.Duration(i)*time.Second)), start.Add(time.Duration(i)*time.Second))
	}
	if got := all(l); len(got) != 1 || got[0].Attempts != 5 || got[0].Sequence != 1 || !got[0].End.Equal(start.Add(4*time.Second)) {
		t.Fatalf("%+v", got)
	}
	at, ok := l.NextTimeout()
	if !ok || !at.Equal(start.Add(Window)) {
		t.Fatalf("timeout %v, %v", at, ok)
	}
	l.HandleTimeout(at)
	if got, _ := l.Since(1, 10); len(got) != 1 || got[0].Attempts != 5 || got[0].Sequence != 2 {
		t.Errorf("after the window: %+v", got)
	}
	if _, ok := l.NextTimeout(); ok || len(l.kinds) != 0 || len(l.perPeer) != 0 {
		t.Errorf("something is left: %+v", l)
	}
	l.Add(&sides, denied(22, at), at)
	if got := all(l); len(got) != 2 || got[0].ID == got[1].ID {
		t.Errorf("a new window: %+v", got)
	}
}

func TestScanIsBounded(t *testing.T) {
	l := New(1)
	for port := range uint16(10000) {
		l.Add(&sides, denied(port+1, start), start)
	}
	got := all(l)
	if len(got) != MaxKinds+1 {
		t.Fatalf("%d records", len(got))
	}
	if latest := l.Denials(2); len(latest) != 2 || latest[0].ID != got[len(got)-1].ID || latest[1].ID != got[len(got)-2].ID {
		t.Errorf("latest denials: %+v", latest)
	}
	rest := got[len(got)-1]
	if !rest.Others || rest.Attempts != 10000-MaxKinds {
		t.Errorf("%+v", rest)
	}
	// Another peer is not concerned.
	other := sides
	other.Peer.Node = 3
	l.Add(&other, denied(1, start), start)
	if r := all(l)[len(got)]; r.Others || r.Attempts != 1 {
		t.Errorf("%+v", r)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	l := New(1)
	now := start
	for i := range 3 * MaxFlows {
		now = now.Add(time.Millisecond)
		l.Add(&sides, opened(uint16(i), now), now)
		if i%3 == 0 {
			l.Add(&sides, ended(uint16(i), now.Add(time.Microsecond), time.Microsecond), now)
		}
		peer := sides
		peer.Peer.Node += ident.NodeID(1 + i)
		l.Add(&peer, denied(uint16(i), now), now)
	}
	if l.flows.order.Len() != MaxFlows || l.denials.order.Len() != MaxDenials || len(l.byID) > MaxFlows {
		t.Errorf("%d flows, %d open, %d denials", l.flows.order.Len(), len(l.byID), l.denials.order.Len())
	}
	if _, gap := l.Since(1, 10); !gap {
		t.Error("no gap is told of")
	}
	last := uint64(0)
	total := 0
	for {
		part, _ := l.Since(last, 100)
		if len(part) == 0 {
			break
		}
		for _, r := range part {
			if r.Sequence <= last {
				t.Fatalf("%d after %d", r.Sequence, last)
			}
			last = r.Sequence
		}
		total += len(part)
	}
	if total != MaxFlows+MaxDenials || last != l.Sequence() {
		t.Errorf("read %d records up to %d of %d", total, last, l.Sequence())
	}
	for at, ok := l.NextTimeout(); ok; at, ok = l.NextTimeout() {
		l.HandleTimeout(at)
	}
	if len(l.kinds)+len(l.perPeer)+l.windows.Len() != 0 {
		t.Error("windows are left")
	}
	l.Lose(3)
	if l.Lost() != 3 {
		t.Error(l.Lost())
	}
}

func TestEncoding(t *testing.T) {
	l := New(99)
	l.Add(&sides, opened(5432, start), start)
	l.Add(&sides, ended(5432, start.Add(time.Minute), time.Minute), start.Add(time.Minute))
	l.Add(&sides, denied(22, start), start)
	six := opened(443, start)
	six.Opener = filter.Inbound
	six.Flow.Source, six.Flow.Destination = packet.AddressOf(netip.MustParseAddr("fd00::1")), packet.AddressOf(netip.MustParseAddr("fd00::2"))
	l.Add(&sides, six, start)
	want := Batch{Reporter: 1, Lost: 2, Records: all(l)}
	for i := range want.Records {
		want.Records[i].Sequence = 0
	}
	b, err := Append(nil, &want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(b)
	if err != nil || fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", want) {
		t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
	}
}

// TestFormatIsFixed compares with the encoding as it was when the format was
// fixed. It must never change: records are kept and read by others.
func TestFormatIsFixed(t *testing.T) {
	r := Record{
		ID: 0x0102030405060708, Allowed: true, Opener: filter.Inbound, Protocol: 6, Rule: "r1", Epoch: 4,
		Source:      Party{Node: 2, Name: "db", Certificate: 5, Address: netip.AddrPortFrom(db, 40000)},
		Destination: Party{Node: 1, Name: "laptop", User: 7, Certificate: 3, Address: netip.AddrPortFrom(laptop, 443)},
		Would:       ruleset.WouldDeny, WouldRule: "a", Start: start, End: start.Add(time.Second), EndReason: "idle", EndEpoch: 5,
		Sent: Traffic{1, 40}, Received: Traffic{2, 80},
	}
	d := Record{ID: 1, Opener: filter.Outbound, Protocol: 17, Reason: "drop_no_rule", Attempts: 9, Others: true, Start: start, End: start, Source: r.Source, Destination: r.Destination}
	b, err := Append(nil, &Batch{Reporter: 1, Records: []Record{r, d}, Lost: 3})
	if got := fmt.Sprintf("%x", b); err != nil || got != fixedFormat {
		t.Errorf("%s, %v", got, err)
	}
}

func TestMalformed(t *testing.T) {
	good := Record{
		Source: Party{Node: 1, Address: netip.AddrPortFrom(db, 1)}, Destination: Party{Node: 2, Address: netip.AddrPortFrom(laptop, 1)},
		Start: start,
	}
	for name, change := range map[string]func(*Batch){
		"no reporter":    func(b *Batch) { b.Reporter = 0 },
		"no device":      func(b *Batch) { b.Records[0].Source.Node = 0 },
		"no address":     func(b *Batch) { b.Records[0].Destination.Address = netip.AddrPort{} },
		"mapped address": func(b *Batch) { b.Records[0].Source.Address = netip.MustParseAddrPort("[::ffff:1.2.3.4]:1") },
		"no time":        func(b *Batch) { b.Records[0].Start = time.Time{} },
		"long rule":      func(b *Batch) { b.Records[0].Rule = ruleset.RuleID(strings.Repeat("x", maxText+1)) },
		"long name":      func(b *Batch) { b.Records[0].Source.Name = strings.Repeat("x", maxText+1) },
		"audit verdict":  func(b *Batch) { b.Records[0].Would = 3 },
		"candidate":      func(b *Batch) { b.Records[0].Candidate.Would = 3 },
		"candidate rule": func(b *Batch) { b.Records[0].Candidate.Rule = ruleset.RuleID(strings.Repeat("x", maxText+1)) },
	} {
		batch := Batch{Reporter: 1, Records: []Record{good}}
		b, err := Append(nil, &batch)
		if err == nil {
			_, err = Parse(b)
		}
		if err != nil {
			t.Fatalf("%s: not good before: %v", name, err)
		}
		change(&batch)
		if b, err = Append(nil, &batch); err != nil {
			t.Fatal(err)
		}
		if got, err := Parse(b); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if _, err := Parse(make([]byte, MaxBatch+1)); err == nil {
		t.Error("a batch that is too long was read")
	}
	if _, err := Parse([]byte{0xff}); err == nil {
		t.Error("garbage was read")
	}
}

// TestMemoryOfAFullLog holds what the limits were chosen for.
func TestMemoryOfAFullLog(t *testing.T) {
	measure := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := measure()
	l := New(1)
	now := start
	for i := range MaxFlows {
		now = now.Add(time.Millisecond)
		l.Add(&sides, opened(uint16(i), now), now)
	}
	if used := measure() - before; used > 2<<20 {
		t.Errorf("%d records take %d bytes", MaxFlows, used)
	} else {
		t.Logf("%d records take %d bytes", MaxFlows, used)
	}
	runtime.KeepAlive(l)
}

// TestDenialsOfAnotherCandidateAreAnotherRecord replaces the candidate between
// two denials that differ in nothing else.
func TestDenialsOfAnotherCandidateAreAnotherRecord(t *testing.T) {
	l := New(99)
	for n := range 4 {
		e := denied(22, start.Add(time.Duration(n)*time.Second))
		if n >= 2 {
			e.Candidate = ruleset.Outlook{Epoch: 1, Would: ruleset.WouldAllow, Rule: "ssh"}
		}
		l.Add(&sides, e, start.Add(time.Duration(n)*time.Second))
	}
	records := all(l)
	if len(records) != 2 || records[0].Attempts != 2 || records[1].Attempts != 2 || records[1].Candidate.Rule != "ssh" {
		t.Errorf("%+v", records)
	}
}
