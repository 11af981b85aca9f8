package engine

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/netstack/wg"
)

// Collector returns the engine's metrics for a Prometheus registry. It yields
// none while the engine does not run.
func (e *Engine) Collector() prometheus.Collector { return collector{e} }

type collector struct{ e *Engine }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("warren_"+name, help, labels, nil)
}

// The traffic and the drops of the data plane, by direction.
var (
	packetsDesc = [2]*prometheus.Desc{
		filter.Inbound:  describe("inbound_packets_total", "Sealed packets received from peers.", "path"),
		filter.Outbound: describe("outbound_packets_total", "Sealed packets sent to peers.", "path"),
	}
	bytesDesc = [2]*prometheus.Desc{
		filter.Inbound:  describe("inbound_bytes_total", "Bytes of sealed packets received from peers.", "path"),
		filter.Outbound: describe("outbound_bytes_total", "Bytes of sealed packets sent to peers.", "path"),
	}
	filteredDesc = [2]*prometheus.Desc{
		filter.Inbound:  describe("inbound_dropped_packets_total", "Packets from peers that the filter dropped.", "reason", "family"),
		filter.Outbound: describe("outbound_dropped_packets_total", "Packets to peers that the filter dropped.", "reason", "family"),
	}
	passedDesc = [2]*prometheus.Desc{
		filter.Inbound:  describe("inbound_passed_packets_total", "Packets from peers that the filter passed.", "family"),
		filter.Outbound: describe("outbound_passed_packets_total", "Packets to peers that the filter passed.", "family"),
	}
	lostDesc       = describe("lost_packets_total", "Packets that were lost outside the filter.", "reason")
	loweredDesc    = describe("lowered_windows_total", "TCP segments whose receive window was lowered, because queues were long, by the direction of the data.", "direction")
	markedDesc     = describe("congestion_marked_packets_total", "Packets that were marked, because queues were long, rather than dropped.", "direction")
	peersDesc      = describe("peers", "Peers of the data plane.", "path")
	unrecordedDesc = describe("unrecorded_events_total", "Flows and denials that were not recorded, because too many came at a time.")
	flowsDesc      = describe("flows", "Flows that the filters know.")
	relayDesc      = describe("relay_connected", "Whether the relay has admitted this device: 1 or 0.", "relay", "region")
	relayHomeDesc  = describe("relay_home", "Whether the relay is where this device listens: 1 or 0.", "relay", "region")
	relayRTTDesc   = describe("relay_rtt_seconds", "The least of the recent round trips to the relay, where one is known.", "relay", "region")
	relayQueueDesc = describe("relay_queued_bytes", "Bytes that wait to be sent to the relay.", "relay", "region")
	relayBarDesc   = describe("relay_barred_peers", "Peers for which the relay is not used where there is another, since it carried questions to them and dropped their tunnel's packets.", "relay", "region")
	relayEventDesc = describe("relay_events_total", "What happened between this device and its relays.", "event")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for d := range packetsDesc {
		out <- packetsDesc[d]
		out <- bytesDesc[d]
		out <- filteredDesc[d]
		out <- passedDesc[d]
	}
	for _, d := range []*prometheus.Desc{
		lostDesc, loweredDesc, markedDesc, unrecordedDesc, peersDesc, flowsDesc, relayDesc, relayHomeDesc, relayRTTDesc, relayQueueDesc, relayBarDesc, relayEventDesc,
		pathEventDesc, stunEventDesc, mappingEventDesc, mappingStateDesc, pinholeEventDesc, pinholesDesc,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	if !c.e.started.Load() {
		return
	}
	for _, m := range ask(c.e, (*control).metrics) {
		out <- m
	}
}

func counter(d *prometheus.Desc, n uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func gauge(d *prometheus.Desc, n float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
}

func (c *control) metrics() []prometheus.Metric {
	var out []prometheus.Metric
	tunnel := c.device.Counters()
	for d, traffic := range [2][]wg.Traffic{filter.Inbound: tunnel.Received[:], filter.Outbound: tunnel.Sent[:]} {
		for link, t := range traffic {
			out = append(out, counter(packetsDesc[d], t.Packets, wg.Link(link).String()),
				counter(bytesDesc[d], t.Bytes, wg.Link(link).String()))
		}
	}
	counters := c.filtered(tunnel)
	for _, d := range []filter.Direction{filter.Inbound, filter.Outbound} {
		for version, family := range map[uint8]string{4: "ipv4", 6: "ipv6"} {
			out = append(out, counter(passedDesc[d], counters.Packets(d, version, filter.Passed), family))
			for r := filter.Passed + 1; int(r) < filter.NumReasons; r++ {
				out = append(out, counter(filteredDesc[d], counters.Packets(d, version, r), r.String(), family))
			}
		}
	}
	out = append(out, counter(unrecordedDesc, c.e.Flows(math.MaxUint64, 0).Lost))
	for reason, n := range c.losses() {
		out = append(out, counter(lostDesc, n, reason))
	}
	for d, direction := range [2]string{filter.Inbound: "inbound", filter.Outbound: "outbound"} {
		out = append(out, counter(loweredDesc, c.e.host.shed[d].lowered.Load(), direction))
		out = append(out, counter(markedDesc, c.e.host.shed[d].marked.Load(), direction))
	}
	paths := map[PathKind]int{PathNone: 0, PathRelay: 0, PathDirect: 0}
	flows := 0
	for _, p := range c.peers {
		paths[pathFrom(c.tunnelPath(p, p.agent.Primary())).Kind]++
		p.mu.Lock()
		flows += p.filter.Flows()
		p.mu.Unlock()
	}
	for kind, n := range paths {
		out = append(out, gauge(peersDesc, float64(n), string(kind)))
	}
	out = append(append(out, gauge(flowsDesc, float64(flows))), c.relayMetrics()...)
	return append(out, c.eventMetrics()...)
}

func (c *control) relayMetrics() []prometheus.Metric {
	var out []prometheus.Metric
	value := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, r := range c.relayStatus() {
		out = append(out, gauge(relayDesc, value(r.Connected), r.Name, r.Region), gauge(relayHomeDesc, value(r.Home), r.Name, r.Region),
			gauge(relayQueueDesc, float64(r.Queued), r.Name, r.Region), gauge(relayBarDesc, float64(r.Barred), r.Name, r.Region))
		if r.RTT > 0 {
			out = append(out, gauge(relayRTTDesc, r.RTT.Seconds(), r.Name, r.Region))
		}
	}
	stats := c.relays.machine.Snapshot().Stats
	for event, n := range map[string]uint64{
		"home_changed": stats.HomeChanges, "route_changed": stats.RouteChanges, "route_lost": stats.RoutesLost,
		"peer_gone": stats.PeersGone, "connection_lost": stats.ConnectionLosses, "connect_failed": stats.ConnectFailures,
		"over_cap": stats.OverCap, "ping_over_budget": stats.PingsOverBudget, "pong_unsolicited": stats.PongsUnsolicited,
		"tunnel_asked": stats.TunnelAsked, "tunnel_answer_unsolicited": stats.TunnelUnsolicited, "route_barred": stats.RoutesBarred,
	} {
		out = append(out, counter(relayEventDesc, n, event))
	}
	return out
}
