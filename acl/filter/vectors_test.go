package filter_test

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

const vectorFile = "../../tests/vectors/filter/vectors.txt"

func readVectors(t *testing.T) []acltest.Vector {
	text, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	vectors, err := acltest.ParseVectors(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return vectors
}

// subject is a filter for one peer, fast or slow.
type subject interface {
	check(b []byte, d filter.Direction, now time.Time) filter.Decision
	setRules(self, peer *ident.Identity, rules *ruleset.RuleSet, now time.Time)
	setCandidate(self, peer *ident.Identity, rules *ruleset.RuleSet)
	setConfig(cfg filter.Config, now time.Time)
	setShields(up bool, now time.Time)
	remove()
	timeout(now time.Time)
	flows() int
	cuts() []packet.Tuple
}

type fastSubject struct{ *filter.Peer }

func (s fastSubject) check(b []byte, d filter.Direction, now time.Time) filter.Decision {
	var i packet.Info
	if d == filter.Inbound {
		return s.Receive(b, &i, now)
	}
	return s.Send(b, &i, now)
}

func (s fastSubject) setRules(self, peer *ident.Identity, rules *ruleset.RuleSet, now time.Time) {
	s.SetRules(self, peer, rules.ForPeer(self, peer), now)
}

func (s fastSubject) setCandidate(self, peer *ident.Identity, rules *ruleset.RuleSet) {
	if rules == nil {
		s.SetCandidate(nil)
		return
	}
	s.SetCandidate(rules.ForPeer(self, peer))
}

func (s fastSubject) setConfig(cfg filter.Config, now time.Time) {
	s.SetDevice(filter.NewDevice(cfg), now)
}
func (s fastSubject) setShields(up bool, now time.Time) { s.SetShields(up, now) }
func (s fastSubject) remove()                           { s.Remove() }
func (s fastSubject) flows() int                        { return s.Flows() }

func (s fastSubject) timeout(now time.Time) {
	for due, ok := s.NextTimeout(); ok && !due.After(now); due, ok = s.NextTimeout() {
		s.HandleTimeout(now)
	}
}

func (s fastSubject) cuts() (all []packet.Tuple) {
	for c, ok := s.NextCut(); ok; c, ok = s.NextCut() {
		all = append(all, c.Flow)
	}
	return all
}

type slowSubject struct{ *acltest.Filter }

func (s slowSubject) check(b []byte, d filter.Direction, now time.Time) filter.Decision {
	var i packet.Info
	if fault := packet.Parse(b, &i); fault != packet.None {
		return filter.Decision{Reason: filter.FaultReason(fault)}
	}
	return s.Check(&i, d, now)
}

func (s slowSubject) setRules(self, peer *ident.Identity, rules *ruleset.RuleSet, _ time.Time) {
	s.SetRules(self, peer, rules)
}

func (s slowSubject) setCandidate(self, peer *ident.Identity, rules *ruleset.RuleSet) {
	s.SetCandidate(self, peer, rules)
}

func (s slowSubject) setConfig(cfg filter.Config, _ time.Time) { s.SetConfig(cfg) }
func (s slowSubject) setShields(up bool, _ time.Time)          { s.SetShields(up) }
func (s slowSubject) remove()                                  { s.Remove() }
func (s slowSubject) timeout(now time.Time)                    { s.HandleTimeout(now) }
func (s slowSubject) flows() int                               { return s.Flows() }
func (s slowSubject) cuts() []packet.Tuple                     { return s.TakeCuts() }

// device runs one vector.
type device struct {
	make  func(cfg filter.Config, self, peer *ident.Identity, rules *ruleset.RuleSet, now time.Time) subject
	cfg   filter.Config
	self  *ident.Identity
	peers map[string]*ident.Identity
	rules *ruleset.RuleSet
	// candidate is nil where there is none; labels are what it gives devices
	// otherwise than their certificates.
	candidate *ruleset.RuleSet
	labels    map[string]ident.LabelSet
	now       time.Time
	filter    map[string]subject
	cuts      map[string][]packet.Tuple
}

func (d *device) subject(name string) subject {
	if d.filter[name] == nil {
		d.filter[name] = d.make(d.cfg, d.self, d.peers[name], d.rules, d.now)
		d.applyCandidate(name)
	}
	return d.filter[name]
}

func (d *device) applyCandidate(name string) {
	relabel := func(id *ident.Identity, of string) *ident.Identity {
		other := *id
		if labels, ok := d.labels[of]; ok {
			other.Labels = labels
		}
		return &other
	}
	if s := d.filter[name]; s != nil {
		s.setCandidate(relabel(d.self, "self"), relabel(d.peers[name], name), d.candidate)
	}
}

func (d *device) apply(name string) {
	if s := d.filter[name]; s != nil {
		s.setRules(d.self, d.peers[name], d.rules, d.now)
		d.applyCandidate(name)
	}
}

func (d *device) changeRules(dir ruleset.Direction, change func([]ruleset.Rule) []ruleset.Rule) {
	next := &ruleset.RuleSet{Epoch: d.rules.Epoch + 1, In: slices.Clone(d.rules.In), Out: slices.Clone(d.rules.Out)}
	if dir == ruleset.In {
		next.In = change(next.In)
	} else {
		next.Out = change(next.Out)
	}
	d.rules = next
	for name := range d.filter {
		d.apply(name)
	}
}

// step does what a line says and returns what is wrong with the outcome.
func (d *device) step(s *acltest.VectorStep) error {
	if strings.HasSuffix(s.Op, "candidate") || s.Op == "candidate-labels" {
		defer func() {
			for name := range d.filter {
				d.applyCandidate(name)
			}
		}()
	}
	switch s.Op {
	case "at":
		d.now = acltest.VectorStart.Add(s.At)
		for _, f := range d.filter {
			f.timeout(d.now)
		}
	case "self":
		d.self = s.Identity
		for name := range d.filter {
			d.apply(name)
		}
	case "peer":
		d.peers[s.Peer] = s.Identity
		d.apply(s.Peer)
	case "config":
		d.cfg = *s.Config
		for _, f := range d.filter {
			f.setConfig(d.cfg, d.now)
		}
	case "rule":
		d.changeRules(s.Direction, func(r []ruleset.Rule) []ruleset.Rule { return append(r, s.Rule) })
	case "candidate":
		next := &ruleset.RuleSet{Epoch: 1}
		if d.candidate != nil {
			next.In, next.Out = slices.Clone(d.candidate.In), slices.Clone(d.candidate.Out)
		}
		if s.Direction == ruleset.In {
			next.In = append(next.In, s.Rule)
		} else {
			next.Out = append(next.Out, s.Rule)
		}
		d.candidate = next
	case "candidate-labels":
		d.labels[s.Peer] = s.Identity.Labels
	case "no-candidate":
		d.candidate = nil
	case "drop-rule":
		found := false
		d.changeRules(s.Direction, func(all []ruleset.Rule) []ruleset.Rule {
			return slices.DeleteFunc(all, func(r ruleset.Rule) bool {
				found = found || r.ID == s.Rule.ID
				return r.ID == s.Rule.ID
			})
		})
		if !found {
			return fmt.Errorf("no rule %s", s.Rule.ID)
		}
	case "in", "out":
		decision := acltest.DecisionOf(d.subject(s.Peer).check(s.Packet, filter.Direction(s.Direction), d.now))
		if decision != s.Want {
			return fmt.Errorf("got %v, want %v", decision, s.Want)
		}
	case "shields":
		for _, f := range d.filter {
			f.setShields(s.Up, d.now)
			f.timeout(d.now)
		}
	case "remove":
		d.subject(s.Peer).remove()
	case "flows":
		if got := d.subject(s.Peer).flows(); got != s.Count {
			return fmt.Errorf("got %d flows, want %d", got, s.Count)
		}
	case "cut":
		d.cuts[s.Peer] = append(d.cuts[s.Peer], d.subject(s.Peer).cuts()...)
		at := slices.Index(d.cuts[s.Peer], s.Cut)
		if at < 0 {
			return fmt.Errorf("not cut; but %v were", d.cuts[s.Peer])
		}
		d.cuts[s.Peer] = slices.Delete(d.cuts[s.Peer], at, at+1)
	}
	return nil
}

func TestVectors(t *testing.T) {
	vectors := readVectors(t)
	for n := 1; n <= 64; n++ {
		name := fmt.Sprintf("FV-%02d", n)
		if !slices.ContainsFunc(vectors, func(v acltest.Vector) bool { return v.Name == name }) {
			t.Errorf("no vector %s", name)
		}
	}
	makers := map[string]func(filter.Config, *ident.Identity, *ident.Identity, *ruleset.RuleSet, time.Time) subject{
		"fast": func(cfg filter.Config, self, peer *ident.Identity, rules *ruleset.RuleSet, now time.Time) subject {
			return fastSubject{filter.NewPeer(filter.NewDevice(cfg), self, peer, rules.ForPeer(self, peer), now)}
		},
		"reference": func(cfg filter.Config, self, peer *ident.Identity, rules *ruleset.RuleSet, _ time.Time) subject {
			return slowSubject{acltest.NewFilter(cfg, nil, self, peer, rules)}
		},
	}
	for _, kind := range []string{"fast", "reference"} {
		for _, v := range vectors {
			t.Run(kind+"/"+v.Name, func(t *testing.T) {
				d := &device{
					make: makers[kind], peers: map[string]*ident.Identity{}, rules: &ruleset.RuleSet{}, now: acltest.VectorStart,
					filter: map[string]subject{}, cuts: map[string][]packet.Tuple{}, labels: map[string]ident.LabelSet{},
				}
				for i := range v.Steps {
					if err := d.step(&v.Steps[i]); err != nil {
						t.Errorf("line %d, %s: %s: %v", v.Steps[i].Line, v.Title, v.Steps[i].Text, err)
					}
				}
				if len(v.Steps) == 0 || !slices.ContainsFunc(v.Steps, func(s acltest.VectorStep) bool { return s.Op == "in" || s.Op == "out" }) {
					t.Error("no packets")
				}
			})
		}
	}
}

// TestVectorsMeetEveryReason keeps the vectors complete: whatever the filter
// can say of a packet, one of them must ask for.
func TestVectorsMeetEveryReason(t *testing.T) {
	met := map[string]bool{}
	for _, v := range readVectors(t) {
		for _, s := range v.Steps {
			met[s.Want.Reason] = true
		}
	}
	var missing []string
	for r := range filter.Reason(filter.NumReasons) {
		// The device's table is full only where several peers fill it.
		if !met[r.String()] && r != filter.DropQuota {
			missing = append(missing, r.String())
		}
	}
	slices.SortFunc(missing, cmp.Compare[string])
	if len(missing) > 0 {
		t.Errorf("no vector asks for %s", strings.Join(missing, ", "))
	}
}
