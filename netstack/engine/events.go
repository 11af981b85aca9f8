package engine

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/path"
)

// What the machines have counted, as one metric for each machine: the label says
// what happened.
var (
	pathEventDesc    = describe("path_events_total", "What happened while paths to peers were looked for and watched, of all peers there ever were.", "event")
	stunEventDesc    = describe("stun_events_total", "What happened between this device and its STUN servers.", "event")
	mappingEventDesc = describe("port_mapping_events_total", "What happened between this device and its gateway, which is asked to forward a port.", "event")
	pinholeEventDesc = describe("pinhole_events_total", "What happened between this device and its gateway, which is asked to let in what comes to IPv6 addresses.", "event")
	pinholesDesc     = describe("pinholes", "Global IPv6 addresses of this device, by how the letting in at the gateway stands.", "state")
	mappingStateDesc = describe("port_mapping", "1 for how the forwarding of the port stands, 0 for the others.", "state")
)

// pathEvents puts what an agent has counted under the names of a metric.
func pathEvents(s *path.Stats) map[string]uint64 {
	return map[string]uint64{
		"clock_back": s.ClockBack, "ping_sent": s.PingsSent, "pong_sent": s.PongsSent, "call_sent": s.CallsSent,
		"pong_accepted": s.PongsAccepted, "pong_unsolicited": s.PongsUnsolicited, "ping_replayed": s.PingsReplayed,
		"ping_over_budget": s.PingsOverBudget, "call_over_budget": s.CallsOverBudget, "probe_over_budget": s.ProbesOverBudget,
		"probe_skipped": s.ProbesSkipped, "candidate_refused": s.RefusedCandidates, "candidate_over_cap": s.CandidatesOverCap,
		"primary_changed": s.PrimaryChanges, "primary_lost": s.Losses, "primary_barred": s.Barred, "primary_flapping": s.Flaps,
		"packet_stray": s.Strays, "packets_straying": s.StrayAlarms, "output_over_cap": s.OutputOverCap,
		"rand_failed": s.RandFailed, "size_sent": s.SizesSent, "black_hole": s.BlackHoles,
		"mapping_sent": s.MappingsSent, "mapping_over_budget": s.MappingsOverBudget, "birthday_begun": s.BirthdaysBegun,
		"birthday_won": s.BirthdaysWon, "birthday_failed": s.BirthdaysFailed, "opening_sent": s.OpeningsSent,
		"guess_sent": s.GuessesSent, "socket_ignored": s.SocketsIgnored,
	}
}

func stunEvents(s nat.Stats) map[string]uint64 {
	return map[string]uint64{
		"clock_back": s.ClockBack, "request_sent": s.RequestsSent, "response": s.Responses, "unsolicited": s.Unsolicited,
		"server_silent": s.ServersSilent, "rand_failed": s.RandFailed,
	}
}

func mappingEvents(s nat.MapperStats) map[string]uint64 {
	return map[string]uint64{
		"clock_back": s.ClockBack, "request": s.Requests, "grant": s.Grants, "failure": s.Failures, "refused": s.Refused,
		"stale": s.Stale, "lost": s.Lost,
	}
}

func pinholeEvents(s nat.PinholesStats) map[string]uint64 {
	events := mappingEvents(s.MapperStats)
	events["over_cap"] = s.OverCap
	return events
}

// retirePaths keeps what a removed peer's agent has counted: counters only grow.
func (c *control) retirePaths(p *peer) {
	stats := p.agent.Stats()
	for event, n := range pathEvents(&stats) {
		c.retired[event] += n
	}
}

// eventMetrics returns what the machines have counted.
func (c *control) eventMetrics() []prometheus.Metric {
	var out []prometheus.Metric
	paths := pathEvents(&path.Stats{}) // all of them, from the first moment on
	for event, n := range c.retired {
		paths[event] += n
	}
	for _, p := range c.peers {
		stats := p.agent.Stats()
		for event, n := range pathEvents(&stats) {
			paths[event] += n
		}
	}
	for _, m := range []struct {
		desc   *prometheus.Desc
		events map[string]uint64
	}{
		{pathEventDesc, paths},
		{stunEventDesc, stunEvents(c.nat.Stats())},
		{mappingEventDesc, mappingEvents(c.mapping.mapper.Stats())},
		{pinholeEventDesc, pinholeEvents(c.mapping.pinholes.Stats())},
	} {
		for _, event := range slices.Sorted(maps.Keys(m.events)) {
			out = append(out, counter(m.desc, m.events[event], event))
		}
	}
	state, pinholes := c.mapping.mapper.Mapping().State, make(map[nat.MappingState]int)
	for _, m := range c.mapping.pinholes.Mappings() {
		pinholes[m.State]++
	}
	for s := nat.MappingOff; s <= nat.MappingActive; s++ {
		out = append(out, gauge(mappingStateDesc, map[bool]float64{true: 1}[s == state], s.String()))
		if s != nat.MappingOff {
			out = append(out, gauge(pinholesDesc, float64(pinholes[s]), s.String()))
		}
	}
	return out
}
