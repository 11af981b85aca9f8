package server

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what the coordinator counts. None has a label that names a
// device or a user.
type metrics struct {
	registry        *prometheus.Registry
	registrations   *prometheus.CounterVec
	certificates    prometheus.Counter
	framesSent      prometheus.Counter
	bytesSent       prometheus.Counter
	refusedConns    prometheus.Counter
	handshakeErrors prometheus.Counter
	viewErrors      prometheus.Counter
	commitErrors    prometheus.Counter
	commitSeconds   prometheus.Histogram
}

func newMetrics(s *Server) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "warren_coordinator_" + name, Help: help})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		registrations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "warren_coordinator_registrations_total", Help: "Registrations by outcome.",
		}, []string{"outcome"}),
		certificates:    counter("certificates_issued_total", "Device certificates signed and recorded."),
		framesSent:      counter("frames_sent_total", "Messages sent to nodes."),
		bytesSent:       counter("frame_bytes_sent_total", "Bytes of messages sent to nodes."),
		refusedConns:    counter("refused_connections_total", "Control connections refused for their number or rate."),
		handshakeErrors: counter("handshake_errors_total", "Control connections that ended before a node was known."),
		viewErrors:      counter("view_errors_total", "Devices that could not be told their map."),
		commitErrors:    counter("commit_errors_total", "Changes that could not be written."),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "warren_coordinator_commit_seconds", Help: "Time until a change was on the disk.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .5, 2},
		}),
	}
	m.registry.MustRegister(
		m.registrations, m.certificates, m.framesSent, m.bytesSent, m.refusedConns, m.handshakeErrors, m.viewErrors,
		m.commitErrors, m.commitSeconds, &gauges{s},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// handler serves the metrics and, besides, the health.
func (m *metrics) handler(healthz http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", healthz)
	return mux
}

// gauges asks the loop how many there are of what.
type gauges struct{ s *Server }

var (
	usersGauge    = prometheus.NewDesc("warren_coordinator_users", "Users.", nil, nil)
	devicesGauge  = prometheus.NewDesc("warren_coordinator_devices", "Devices.", nil, nil)
	keysGauge     = prometheus.NewDesc("warren_coordinator_join_keys", "Join keys, usable or not.", nil, nil)
	sessionsGauge = prometheus.NewDesc("warren_coordinator_sessions", "Devices that listen to their map.", nil, nil)
	connsGauge    = prometheus.NewDesc("warren_coordinator_connections", "Control connections.", nil, nil)
	epochGauge    = prometheus.NewDesc("warren_coordinator_policy_epoch", "Version of the policy in force.", nil, nil)
	auditGauge    = prometheus.NewDesc("warren_coordinator_audit_index", "Entries of the audit log.", nil, nil)
)

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{usersGauge, devicesGauge, keysGauge, sessionsGauge, connsGauge, epochGauge, auditGauge} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. It says nothing where the loop does
// not answer.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var values [7]int
	if g.s.do(ctx, func() {
		values[0], values[1], values[2] = g.s.state.Counts()
		values[3], values[4] = len(g.s.byNode), len(g.s.conns)
		values[5], values[6] = int(g.s.state.Policy().Epoch), int(g.s.head.Index)
	}) != nil {
		return
	}
	for i, d := range []*prometheus.Desc{usersGauge, devicesGauge, keysGauge, sessionsGauge, connsGauge, epochGauge, auditGauge} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(values[i]))
	}
}
