package sim

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/flowlog"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/enginetest"
)

// TestCandidateIsReportedAndChangesNothing gives two nodes a candidate that
// forbids what their rules admit and admits what they deny, replaces it and takes
// it away, under flows of all kinds that lose nothing. Each node says of every
// new flow and of every denial what the candidate would have made of it.
func TestCandidateIsReportedAndChangesNothing(t *testing.T) {
	t.Parallel()
	run(t, 91, func(s *sim) {
		a, b := s.start("a", s.public("a", 1), nil), s.start("b", s.public("b", 2), nil)
		s.know(a, b)
		configs := map[*node]*config.Config{}
		for n, other := range map[*node]*node{a: b, b: a} {
			work := echoRule(enginetest.Allow("work", other.Member, packet.TCP, workPort))
			work.Services = append(work.Services, ruleset.Service{Protocol: packet.UDP, First: workPort, Last: workPort})
			configs[n] = n.config(&ruleset.RuleSet{In: []ruleset.Rule{work}, Out: []ruleset.Rule{work}})
			if err := n.engine.Apply(configs[n]); err != nil {
				s.Fatal(err)
			}
			n.connected()
		}
		// audit gives the candidate to a node, nil for none, and nothing else.
		audit := func(n *node, c *authority.Candidate) {
			next := *configs[n]
			next.Candidate = c
			if err := n.engine.Apply(&next); err != nil {
				s.Fatal(err)
			}
		}
		candidate := func(n, other *node) *authority.Candidate {
			moved := enginetest.Allow("moved", other.Member, packet.UDP, movedPort)
			return n.Candidate(&ruleset.RuleSet{In: []ruleset.Rule{moved}, Out: []ruleset.Rule{moved}}, other.Member)
		}

		apps := &applications{s: s}
		for _, six := range []bool{false, true} {
			for _, p := range []uint8{packet.TCP, packet.UDP, packet.ICMP} {
				apps.open("a to b", a, b, p, six, workPort)
				apps.open("b to a", b, a, p, six, workPort)
			}
		}
		apps.run(3 * time.Second)
		time.Sleep(time.Second)
		synctest.Wait()
		apps.receive()
		for _, st := range apps.streams {
			st.sent, st.seen, st.told = [2]uint32{}, [2]uint32{}, [2]time.Time{}
		}
		before := configs[a].Rules.Set().Epoch

		// look opens a UDP flow of a's to a port, and returns what both nodes
		// recorded of it; only a does where a's own filter denies it.
		local := uint16(30000)
		look := func(port uint16) (out flowlog.Record, in *flowlog.Record) {
			s.Helper()
			time.Sleep(flowlog.Window + time.Second) // denials of one kind are one record for so long
			local++
			a.tun.Send(enginetest.UDP(netip.AddrPortFrom(a.Addr4(), local), netip.AddrPortFrom(b.Addr4(), port), "x"))
			apps.run(500 * time.Millisecond)
			find := func(n *node) *flowlog.Record {
				for _, r := range n.engine.Flows(0, 4096).Records {
					if r.Source.Address == netip.AddrPortFrom(a.Addr4(), local) {
						return &r
					}
				}
				return nil
			}
			mine := find(a)
			if mine == nil {
				s.Fatalf("no record of port %d", port)
			}
			return *mine, find(b)
		}
		why := func(port uint16) ruleset.Outlook {
			s.Helper()
			answer, err := a.engine.Why(engine.Question{Opener: filter.Outbound, Remote: b.Addr4(), Protocol: packet.UDP, Port: port})
			if err != nil {
				s.Fatal(err)
			}
			return answer.Verdict.Candidate
		}
		check := func(when string, port uint16, allowed bool, epoch ruleset.Epoch, would ruleset.Would, rule ruleset.RuleID) {
			s.Helper()
			want := ruleset.Outlook{Epoch: epoch, Would: would, Rule: rule}
			out, in := look(port)
			if out.Allowed != allowed || out.Candidate != want || out.Epoch != before {
				s.Errorf("%s, port %d: a recorded %+v, want allowed %v and %+v", when, port, out, allowed, want)
			}
			if (in != nil) != allowed {
				s.Errorf("%s, port %d: b recorded %+v", when, port, in)
			}
			if in != nil && (in.Candidate.Would != would || in.Candidate.Rule != rule) {
				s.Errorf("%s, port %d: b recorded %+v", when, port, in.Candidate)
			}
			if got := why(port); got != want {
				s.Errorf("%s, port %d: why says %+v, want %+v", when, port, got, want)
			}
		}
		check("without a candidate", workPort, true, 0, ruleset.WouldChangeNothing, "")
		check("without a candidate", movedPort, false, 0, ruleset.WouldChangeNothing, "")
		for range 2 { // the second replaces the first
			c := candidate(a, b)
			audit(a, c)
			audit(b, candidate(b, a))
			check("in audit", workPort, true, c.Epoch(), ruleset.WouldDeny, "")
			check("in audit", movedPort, false, c.Epoch(), ruleset.WouldAllow, "moved")
			check("in audit", otherPort, false, c.Epoch(), ruleset.WouldChangeNothing, "")
		}
		audit(a, nil)
		audit(b, nil)
		check("after it", workPort, true, 0, ruleset.WouldChangeNothing, "")
		check("after it", movedPort, false, 0, ruleset.WouldChangeNothing, "")

		time.Sleep(time.Second)
		synctest.Wait()
		apps.receive()
		for _, st := range apps.streams {
			if st.lost() != [2]uint32{} || st.sent[0] < 50 || st.told != [2]time.Time{} {
				s.Errorf("protocol %d from %s lost %v of %v packets, told at %v", st.protocol, st.from.Certificate.Name, st.lost(), st.sent, st.told)
			}
		}
	})
}
