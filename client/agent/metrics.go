package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/netstack/userstack"
)

// errNotLoopback refuses to show metrics to the network.
var errNotLoopback = errors.New("agent: metrics are served on loopback addresses only, such as 127.0.0.1:9095")

// listenLoopback opens HOST:PORT, or PORT on 127.0.0.1.
func listenLoopback(ctx context.Context, address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = "127.0.0.1", address
	}
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	if a, err := netip.ParseAddr(host); err != nil || !a.IsLoopback() {
		return nil, fmt.Errorf("%w; %q is none", errNotLoopback, address)
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
}

// serveMetrics serves /metrics and /healthz until ctx ends.
func (d *Daemon) serveMetrics(ctx context.Context, l net.Listener) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(d.engine.Collector(), nodeCollector{d.agent},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if stack, ok := d.device.(*userstack.Stack); ok {
		registry.MustRegister(stackCollector{stack})
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if _, err := ask(ctx, d.agent, (*loop).standing); err != nil {
			http.Error(w, "the node does not answer", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{
		Handler: loopbackOnly(mux), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// loopbackOnly refuses requests whose Host is not a loopback address, so that
// no web page reaches the listener through a name that it controls (DNS
// rebinding).
func loopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if a, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !a.IsLoopback()) {
			http.Error(w, "not this host", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// nodeCollector shows what the node knows, beside the engine's metrics.
type nodeCollector struct{ agent *Agent }

// The metrics of the node.
var (
	infoDesc        = prometheus.NewDesc("warren_build_info", "Always 1; the label says which version runs.", []string{"version"}, nil)
	stateDesc       = prometheus.NewDesc("warren_state", "1 for the state that the node is in, 0 for the others.", []string{"state"}, nil)
	healthDesc      = prometheus.NewDesc("warren_health_messages", "Health facts that hold, by severity.", []string{"type"}, nil)
	visibleDesc     = prometheus.NewDesc("warren_visible_peers", "Peers in the verified map.", nil, nil)
	ttlDesc         = prometheus.NewDesc("warren_certificate_ttl_seconds", "Seconds until the device's own certificate ends.", nil, nil)
	epochDesc       = prometheus.NewDesc("warren_policy_epoch", "Epoch of the verified rules.", nil, nil)
	framesDesc      = prometheus.NewDesc("warren_control_frames_total", "Messages from the coordinator.", nil, nil)
	mapsDesc        = prometheus.NewDesc("warren_control_maps_total", "Maps taken from the coordinator, by kind.", []string{"kind"}, nil)
	resyncsDesc     = prometheus.NewDesc("warren_control_resyncs_total", "Full maps asked for because a delta did not fit.", nil, nil)
	connectionsDesc = prometheus.NewDesc("warren_control_connections_total", "Connections to the coordinator that gave a map.", nil, nil)
	refusedDesc     = prometheus.NewDesc("warren_control_refused_total", "Peers, rules and certificates that did not verify.", nil, nil)
	malformedDesc   = prometheus.NewDesc("warren_control_malformed_total", "Messages that were not of the protocol.", nil, nil)
)

// Describe implements prometheus.Collector.
func (nodeCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		infoDesc, stateDesc, healthDesc, visibleDesc, ttlDesc, epochDesc,
		framesDesc, mapsDesc, resyncsDesc, connectionsDesc, refusedDesc, malformedDesc,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c nodeCollector) Collect(out chan<- prometheus.Metric) {
	s, err := ask(context.Background(), c.agent, (*loop).standing)
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge(infoDesc, 1, c.agent.cfg.Host.ProgramVersion)
	state, _ := stateOf(s)
	for _, each := range []localapi.State{
		localapi.Stopped, localapi.NeedsLogin, localapi.Connecting, localapi.Connected, localapi.Offline, localapi.Revoked, localapi.Expired,
		localapi.Suspended,
	} {
		gauge(stateDesc, map[bool]float64{true: 1}[each == state], string(each))
	}
	bySeverity := map[health.Severity]float64{}
	for _, f := range c.agent.facts(s, c.agent.cfg.DataPlane.Status()) {
		bySeverity[f.Severity]++
	}
	for _, severity := range []health.Severity{health.Info, health.Warning, health.Error, health.Alarm} {
		gauge(healthDesc, bySeverity[severity], severity.String())
	}
	gauge(visibleDesc, float64(len(s.view.Peers)))
	if s.view.Self != nil {
		gauge(ttlDesc, s.view.Self.NotAfter().Add(s.view.Lead).Sub(c.agent.cfg.Now()).Seconds())
	}
	if s.view.Rules != nil {
		gauge(epochDesc, float64(s.view.Rules.Set().Epoch))
	}
	n := s.control.Counters
	counter(framesDesc, n.Frames)
	counter(mapsDesc, n.Maps, "full")
	counter(mapsDesc, n.Deltas, "delta")
	counter(resyncsDesc, n.Resyncs)
	counter(connectionsDesc, n.Connections)
	counter(refusedDesc, n.Refused)
	counter(malformedDesc, n.Malformed)
}
