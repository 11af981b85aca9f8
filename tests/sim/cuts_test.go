package sim

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
	"github.com/warren-overlay/warren/netstack/simnet"
)

const (
	// cutLimit is the published bound, from the change to the last packet at the
	// receiver (CUT_ONLINE of reliability.md).
	cutLimit = 2 * time.Second
	// toldLimit is how soon the applications on both sides know.
	toldLimit = 3 * time.Second
	// lag is how much later than the first the second end hears of a change.
	lag = time.Second
	// staffLabel is what devices have that a rule speaks of by tag or group.
	staffLabel = ident.Label(77)

	workPort, otherPort, movedPort = 80, 443, 81
)

// stream is one flow between two nodes with packets both ways, numbered.
type stream struct {
	name       string
	from, to   *node
	protocol   uint8
	six        bool
	local      uint16
	port       uint16
	sent, seen [2]uint32 // by end: 0 sends from "from"
	last       [2]time.Time
	told       [2]time.Time // when the end was told that the flow has ended
}

func (st *stream) address(n *node) netip.Addr {
	if st.six {
		return n.Addr6()
	}
	return n.Addr4()
}

// packet makes the next packet that an end sends.
func (st *stream) packet(end int) []byte {
	ours, theirs := netip.AddrPortFrom(st.address(st.from), st.local), netip.AddrPortFrom(st.address(st.to), st.port)
	if end == 1 {
		ours, theirs = theirs, ours
	}
	n := st.sent[end]
	st.sent[end]++
	payload := string(binary.BigEndian.AppendUint32(nil, n))
	switch st.protocol {
	case packet.TCP:
		return enginetest.TCP(ours, theirs, packet.PSH|packet.ACK, 1000+4*n, 1000+4*st.seen[end], payload)
	case packet.UDP:
		return enginetest.UDP(ours, theirs, payload)
	}
	return enginetest.Echo(ours.Addr(), theirs.Addr(), st.local, uint16(n))
}

// applications are what runs on all nodes: the ends of the streams.
type applications struct {
	s       *sim
	streams []*stream
}

// open begins the stream. Both ends have sent when it returns.
func (a *applications) open(name string, from, to *node, protocol uint8, six bool, port uint16) *stream {
	a.s.Helper()
	st := &stream{name: name, from: from, to: to, protocol: protocol, six: six, local: uint16(20000 + len(a.streams)), port: port}
	a.streams = append(a.streams, st)
	if protocol != packet.TCP {
		return st
	}
	ours, theirs := netip.AddrPortFrom(st.address(from), st.local), netip.AddrPortFrom(st.address(to), st.port)
	for _, step := range []struct {
		by *node
		b  []byte
	}{
		{from, enginetest.TCP(ours, theirs, packet.SYN, 999, 0, "")},
		{to, enginetest.TCP(theirs, ours, packet.SYN|packet.ACK, 999, 1000, "")},
		{from, enginetest.TCP(ours, theirs, packet.ACK, 1000, 1000, "")},
	} {
		step.by.tun.Send(step.b)
		time.Sleep(500 * time.Millisecond)
		a.receive()
	}
	return st
}

// run lets every stream send in both directions, twenty times a second.
func (a *applications) run(d time.Duration) {
	const interval = 50 * time.Millisecond
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(interval) {
		for _, st := range a.streams {
			st.from.tun.Send(st.packet(0))
			if st.protocol != packet.ICMP {
				st.to.tun.Send(st.packet(1))
			}
		}
		synctest.Wait()
		a.receive()
	}
	a.receive()
}

// receive takes what has arrived at all nodes.
func (a *applications) receive() {
	nodes := map[*node]bool{}
	for _, st := range a.streams {
		nodes[st.from], nodes[st.to] = true, true
	}
	for n := range nodes {
		for len(n.tun.Received()) > 0 {
			a.arrived(n, <-n.tun.Received())
		}
	}
}

func (a *applications) arrived(n *node, b []byte) {
	info := parsed(a.s, b)
	for _, st := range a.streams {
		if st.from != n && st.to != n {
			continue
		}
		end := 0 // of the stream, at which it arrived
		if st.to == n {
			end = 1
		}
		ports := [2]uint16{st.local, st.port}
		other := [2]*node{st.from, st.to}[1-end]
		switch {
		case info.Kind == packet.ICMPError:
			q := &info.Quoted
			echo := st.protocol == packet.ICMP && (q.Protocol == packet.ICMP || q.Protocol == packet.ICMPv6)
			if q.Destination.Addr() == st.address(other) && st.told[end].IsZero() &&
				(echo || q.Protocol == st.protocol && q.SourcePort == ports[end] && q.DestinationPort == ports[1-end]) {
				st.told[end] = time.Now()
			}
		case info.Source.Addr() != st.address(other):
		case st.protocol == packet.ICMP:
			if info.Identifier == st.local && (info.Kind == packet.EchoRequest) == (end == 1) && (info.Kind == packet.EchoRequest || info.Kind == packet.EchoReply) {
				st.took(end)
				if end == 1 {
					n.tun.Send(enginetest.EchoReply(b))
					st.sent[1]++
				}
			}
		case info.Protocol != st.protocol || info.SourcePort != ports[1-end] || info.DestinationPort != ports[end]:
		case info.Kind == packet.TCPSegment && info.Flags&packet.RST != 0:
			if st.told[end].IsZero() {
				st.told[end] = time.Now()
			}
		case info.Kind == packet.TCPSegment && info.Flags&packet.PSH == 0: // of the handshake
		default:
			st.took(end)
		}
	}
}

func (st *stream) took(end int) {
	st.seen[1-end]++ // packets of the other end
	st.last[end] = time.Now()
}

// lost returns how many packets of each end did not arrive.
func (st *stream) lost() [2]uint32 {
	return [2]uint32{st.sent[0] - st.seen[0], st.sent[1] - st.seen[1]}
}

// cutCase is what ends the flows of a.
type cutCase struct {
	name string
	// change tells the two ends; it must wait lag between the one and the other.
	change func(s *sim, a *node, others []*node, wait func())
	// alone is set where flows between a and b by other rules go on.
	alone bool
	// echoes is set where those go on: a rule for another port admits them (P13).
	echoes bool
	// nobody is set where nothing is said: the flows end by themselves.
	nobody bool
}

// ruleFor admits TCP and UDP to a port from who has the label, and echoes.
func ruleFor(id ruleset.RuleID, label ident.Label, port uint16) ruleset.Rule {
	return ruleset.Rule{
		ID: id, Peers: []ruleset.Selector{{Labels: ident.NewLabelSet(label)}},
		Services: []ruleset.Service{
			{Protocol: packet.TCP, First: port, Last: port}, {Protocol: packet.UDP, First: port, Last: port},
		},
	}
}

// echoRule admits echoes, for as long as the rule is there.
func echoRule(r ruleset.Rule) ruleset.Rule {
	r.Services = append(slices.Clone(r.Services),
		ruleset.Service{Protocol: packet.ICMP, Last: 65535}, ruleset.Service{Protocol: packet.ICMPv6, Last: 65535})
	return r
}

// rulesOf are the rules of a node: work is what the cell takes away, the others
// are what stays. Nothing stays between a and d: a rule that admits anything
// admits echoes, too (P13).
func (s *sim) rulesOf(n *node, change func(*ruleset.Rule) bool) *ruleset.RuleSet {
	set := &ruleset.RuleSet{}
	add := func(r ruleset.Rule) {
		set.In, set.Out = append(set.In, r), append(set.Out, r)
	}
	work := echoRule(ruleFor("work", staffLabel, workPort))
	if change == nil || change(&work) {
		add(work)
	}
	for _, p := range n.peers {
		if pair := n.Certificate.Name + p.Certificate.Name; pair != "ad" && pair != "da" {
			add(ruleFor(ruleset.RuleID(fmt.Sprint("other-", p.Node)), ident.Label(p.Node), otherPort))
		}
	}
	return set
}

var cutCases = []cutCase{
	{name: "device revoked", change: func(_ *sim, a *node, others []*node, wait func()) {
		for i, n := range others {
			n.peers = slices.Delete(slices.Clone(others), i, i+1)
			n.apply(n.rules)
		}
		wait()
		if err := a.engine.Apply(nil); err != nil {
			a.sim.Fatal(err)
		}
	}},
	{name: "user suspended", change: func(_ *sim, a *node, others []*node, wait func()) {
		// Two devices of one user, which are cut off from each other, too.
		own := others[len(others)-1]
		others = others[:len(others)-1]
		for i, n := range others {
			n.peers = slices.Delete(slices.Clone(others), i, i+1)
			n.apply(n.rules)
		}
		wait()
		for _, n := range []*node{a, own} {
			if err := n.engine.Apply(nil); err != nil {
				a.sim.Fatal(err)
			}
		}
	}},
	{name: "rule removed", alone: true, change: func(s *sim, a *node, others []*node, wait func()) {
		removed := func(*ruleset.Rule) bool { return false }
		for _, n := range others {
			n.apply(s.rulesOf(n, removed))
		}
		wait()
		a.apply(s.rulesOf(a, removed))
	}},
	{name: "rule narrowed to another port", alone: true, change: func(s *sim, a *node, others []*node, wait func()) {
		narrow := func(r *ruleset.Rule) bool {
			*r = ruleFor("work", staffLabel, movedPort)
			return true
		}
		a.apply(s.rulesOf(a, narrow))
		wait()
		for _, n := range others {
			n.apply(s.rulesOf(n, narrow))
		}
	}, echoes: true},
	{name: "tag removed", alone: true, change: func(s *sim, a *node, others []*node, wait func()) {
		// A tag is a label of the certificate: the rules stay as they are.
		for _, n := range append([]*node{a}, others...) {
			s.Serial++
			certificate := *n.Certificate
			certificate.Serial, certificate.Labels = s.Serial, ident.NewLabelSet(ident.Label(n.Node))
			n.Certificate = &certificate
		}
		for _, n := range others {
			n.apply(n.rules)
		}
		wait()
		a.apply(a.rules)
	}},
	{name: "group membership removed", alone: true, change: func(s *sim, a *node, others []*node, wait func()) {
		// A group is a list in the rules: the members that stay are named.
		nobody := func(r *ruleset.Rule) bool {
			r.Peers = []ruleset.Selector{{Labels: ident.NewLabelSet(staffLabel + 1)}}
			return true
		}
		a.apply(s.rulesOf(a, nobody))
		wait()
		for _, n := range others {
			n.apply(s.rulesOf(n, nobody))
		}
	}},
	{name: "notAfter reached, nobody says a word", alone: true, nobody: true},
	{name: "certificate ends, nobody says a word", nobody: true},
}

// TestCutsMatrix ends established flows of every kind in every way, on direct
// and on relayed paths, and measures how long after the change the last packet
// arrived on either end. Flows that the change does not concern lose nothing.
//
// Each change reaches one end a second after the other, so that each end is seen
// to refuse for itself what the other still sends. The stack in user space does
// not run in a bubble; it has its cells in ring 3. With -short each way is tried on
// one kind of path only.
func TestCutsMatrix(t *testing.T) {
	t.Parallel()
	var table []string
	for n, test := range cutCases {
		for m, relayed := range []bool{false, true} {
			if testing.Short() && m != n%2 {
				continue
			}
			name := test.name + map[bool]string{false: ", direct", true: ", relayed"}[relayed]
			t.Run(name, func(t *testing.T) {
				run(t, uint64(60+2*n+m), func(s *sim) { table = append(table, cutCell(s, &test, relayed)...) })
			})
		}
	}
	t.Logf("last packet after the change, and when both applications knew:\n%s", strings.Join(table, "\n"))
}

func cutCell(s *sim, test *cutCase, relayed bool) (table []string) {
	hosts := [4]*simnet.Host{}
	for i, name := range []string{"a", "b", "c", "d"} {
		if relayed {
			nat := simnet.NAT{Mapping: simnet.AddressAndPortDependent, Filtering: simnet.AddressAndPortDependent}
			hosts[i], _ = s.behind(name, nat, byte(11+i))
		} else {
			hosts[i] = s.public(name, byte(1+i))
		}
	}
	end := time.Now().Add(time.Minute).Truncate(time.Second).UTC()
	staff := func(label ident.Label, ends bool) func(*authority.Certificate) {
		return func(c *authority.Certificate) {
			c.Labels = ident.NewLabelSet(append(c.Labels.Slice(), label)...)
			if ends && strings.HasPrefix(test.name, "certificate") {
				c.NotAfter = end
			}
		}
	}
	a, b, c := s.start("a", hosts[0], staff(staffLabel, true)), s.start("b", hosts[1], staff(staffLabel, false)), s.start("c", hosts[2], nil)
	d := s.start("d", hosts[3], staff(staffLabel, false))
	s.know(a, b, c, d)
	for _, n := range []*node{a, b, c, d} {
		var until func(*ruleset.Rule) bool
		if strings.HasPrefix(test.name, "notAfter") {
			until = func(r *ruleset.Rule) bool {
				r.NotAfter = end
				return true
			}
		}
		n.apply(s.rulesOf(n, until))
		n.connected()
	}

	apps := &applications{s: s}
	var cut, stay []*stream
	for _, six := range []bool{false, true} {
		family := map[bool]string{false: "IPv4", true: "IPv6"}[six]
		for _, p := range []struct {
			name   string
			number uint8
		}{{"TCP", packet.TCP}, {"UDP", packet.UDP}, {"ICMP", packet.ICMP}} {
			both := []*stream{
				apps.open(p.name+" "+family+" opened by a", a, d, p.number, six, workPort),
				apps.open(p.name+" "+family+" opened to a", d, a, p.number, six, workPort),
			}
			if test.echoes && p.number == packet.ICMP {
				stay = append(stay, both...)
			} else {
				cut = append(cut, both...)
			}
			if p.number != packet.ICMP {
				stay = append(stay, apps.open(p.name+" "+family+" b to c", b, c, p.number, six, otherPort))
				cut = append(cut, apps.open(p.name+" "+family+" beside another rule", b, a, p.number, six, workPort))
				other := apps.open(p.name+" "+family+" a to b by another rule", a, b, p.number, six, otherPort)
				if test.alone {
					stay = append(stay, other)
				}
			}
		}
	}
	apps.run(8 * time.Second) // paths settle
	if kind := map[bool]engine.PathKind{false: engine.PathDirect, true: engine.PathRelay}[relayed]; a.path(b).Kind != kind || b.path(a).Kind != kind {
		s.Fatalf("paths %v and %v, want %v", a.path(b), b.path(a), kind)
	}
	time.Sleep(time.Second)
	synctest.Wait()
	apps.receive()
	for _, st := range apps.streams {
		st.sent, st.seen, st.told = [2]uint32{}, [2]uint32{}, [2]time.Time{}
		if st.last[0].IsZero() || st.last[1].IsZero() {
			s.Fatalf("%s does not work", st.name)
		}
	}
	// From here on each packet counts. TCP's numbers begin anew, which the
	// filter does not look at.
	begin := time.Now()
	if test.nobody {
		apps.run(time.Until(end))
		begin = end
	} else {
		test.change(s, a, []*node{b, c, d}, func() { apps.run(lag) })
	}
	apps.run(2*toldLimit + 50*time.Millisecond)
	quiet := time.Now()
	time.Sleep(time.Second) // what is on its way
	synctest.Wait()
	apps.receive()
	for _, st := range cut {
		last := slices.MaxFunc(st.last[:], time.Time.Compare).Sub(begin)
		told := "-"
		if at := slices.MaxFunc(st.told[:], time.Time.Compare); !at.IsZero() {
			told = at.Sub(begin).Round(time.Millisecond).String()
		}
		table = append(table, fmt.Sprintf("%-40s %-8s %-30s %8v %8v", test.name, map[bool]string{false: "direct", true: "relayed"}[relayed], st.name,
			max(last, 0).Round(time.Millisecond), told))
		if last > cutLimit {
			s.Errorf("%s went on for %v", st.name, last)
		}
		for end, at := range st.told {
			// The end that answers echoes asks for nothing. Where the peer is gone,
			// so is the route to it, and the kernel refuses the next request.
			if st.protocol == packet.ICMP && (end == 1 || !test.alone) {
				continue
			}
			if at.IsZero() || at.Sub(begin) > toldLimit {
				s.Errorf("%s: the application on end %d was told at %v after the change", st.name, end, at.Sub(begin))
			}
		}
	}
	for _, st := range stay {
		if st.lost() != [2]uint32{} || st.sent[0] < 100 {
			s.Errorf("%s, which nothing has cut, lost %v of %v packets", st.name, st.lost(), st.sent)
		}
		if st.last[0].Before(quiet) || st.told != [2]time.Time{} {
			s.Errorf("%s has stopped at %v, or was told at %v", st.name, st.last[0], st.told)
		}
	}
	return table
}
