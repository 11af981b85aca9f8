package relayserver

import (
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/warren-overlay/warren/netstack/relay"
)

// metrics serves /metrics and /healthz.
func (s *Server) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		&counters{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "warren_relay_info", Help: "1, with what the relay is called.",
			ConstLabels: prometheus.Labels{"name": s.cfg.Name, "region": s.cfg.Region},
		}, func() float64 { return 1 }),
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s.relay.Snapshot() // answers only where the relay does its work
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// counters asks the relay what it counted. No label names a node.
type counters struct{ s *Server }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("warren_relay_"+name, help, labels, nil)
}

var (
	connsGauge    = describe("connections", "Connections, admitted or not.")
	membersGauge  = describe("clients", "Clients that are admitted.")
	queuedGauge   = describe("queued_bytes", "Bytes that wait for clients' connections.")
	silentGauge   = describe("coordinator_silent", "1 where the coordinator does not answer, or is not asked.")
	admittedTotal = describe("admissions_total", "Clients by what became of them.", "outcome")
	endedTotal    = describe("ended_total", "Connections that the relay ended, by reason.", "reason")
	packetsTotal  = describe("packets_total", "Packets by direction.", "direction")
	bytesTotal    = describe("received_bytes_total", "Bytes of packets that came.")
	datagramTotal = describe("datagram_packets_total", "Packets that came and went as datagrams.")
	droppedTotal  = describe("dropped_packets_total", "Packets that were dropped, by reason.", "reason")
	ignoredTotal  = describe("ignored_datagrams_total", "Datagrams that were no packet of a client's, by reason.", "reason")
	stunTotal     = describe("stun_requests_total", "STUN requests.")
	errorsTotal   = describe("socket_errors_total", "What the operating system refused, by operation.", "operation")
	refusedTotal  = describe("refused_connections_total", "Connections over what one address may have, by stage.", "stage")
)

// Describe implements prometheus.Collector.
func (c *counters) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *counters) Collect(ch chan<- prometheus.Metric) {
	snap := c.s.relay.Snapshot()
	st := snap.Stats
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(connsGauge, float64(snap.Conns))
	gauge(membersGauge, float64(snap.Admitted))
	gauge(queuedGauge, float64(snap.QueuedBytes))
	silent := 0.0
	if c.s.admission.Snapshot(time.Now()).Silent {
		silent = 1
	}
	gauge(silentGauge, silent)
	count(admittedTotal, st.Admitted, "admitted")
	count(admittedTotal, st.RejectedProof, relay.ReasonProof.String())
	count(admittedTotal, st.RejectedToken, relay.ReasonToken.String())
	count(admittedTotal, st.RejectedFull, relay.ReasonFull.String())
	count(endedTotal, st.Protocol, relay.ReasonProtocol.String())
	count(endedTotal, st.Replaced, relay.ReasonReplaced.String())
	count(endedTotal, st.TimedOut+st.HandshakeEnding, relay.ReasonTimeout.String())
	count(endedTotal, st.Revoked, relay.ReasonRevoked.String())
	count(endedTotal, st.Expired, relay.ReasonExpired.String())
	count(packetsTotal, st.PacketsIn, "in")
	count(packetsTotal, st.PacketsOut, "out")
	count(bytesTotal, st.BytesIn)
	count(datagramTotal, st.DatagramsForwarded)
	count(droppedTotal, st.DroppedRate, "rate")
	count(droppedTotal, st.DroppedShare, "share")
	count(droppedTotal, st.DroppedQueue, "queue")
	count(droppedTotal, st.DroppedNoPeer, "no_peer")
	count(droppedTotal, st.DroppedClosing, "closing")
	count(ignoredTotal, st.DatagramsUnbound, "unbound")
	count(ignoredTotal, st.DatagramsForged, "forged")
	count(ignoredTotal, st.DatagramsReplayed, "replayed")
	count(ignoredTotal, st.DatagramsUnknown, "unknown")
	errs, questions := c.s.relay.DatagramErrors()
	count(stunTotal, questions)
	count(errorsTotal, errs.Receive, "receive")
	count(errorsTotal, errs.Send, "send")
	count(refusedTotal, c.s.strangers.refused.Load(), "http")
	count(refusedTotal, st.HelloPerSource, "admission")
}
