package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-overlay/warren/netstack/router"
	"github.com/warren-overlay/warren/netstack/userstack"
)

// userspaceRouter is the Router of a node without a network interface: what
// peers send to the networks that it serves is carried on by the daemon's own
// sockets. Nothing needs to lead packets into the overlay there, because
// programs reach it through the node's proxies.
type userspaceRouter struct{ stack *userstack.Stack }

var _ router.Router = userspaceRouter{}

// Configure implements router.Router.
func (r userspaceRouter) Configure(s router.Settings) error {
	if err := s.Validate(); err != nil {
		return err
	}
	var routes userstack.Routes
	if len(s.Own) > 0 {
		routes.Forward = s.Forward
		routes.Refuse = slices.Concat(s.Overlay, singles(s.Except), singles(router.Metadata()))
	}
	if err := r.stack.SetRoutes(routes); err != nil {
		return fmt.Errorf("agent: routing in user space: %w", err)
	}
	return nil
}

// Close implements router.Router. The stack ends its flows when it is closed.
func (r userspaceRouter) Close() error { return nil }

func singles(addresses []netip.Addr) []netip.Prefix {
	all := make([]netip.Prefix, 0, len(addresses))
	for _, a := range addresses {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	return all
}

// stackCollector shows what a node without a network interface carries by its
// own sockets, beside the engine's metrics.
type stackCollector struct{ stack *userstack.Stack }

var (
	carriedDesc      = prometheus.NewDesc("warren_userspace_flows_total", "What peers opened to this host and to those behind it, by what became of it.", []string{"to", "protocol", "result"}, nil)
	notPermittedDesc = prometheus.NewDesc("warren_userspace_not_permitted_total", "Flows and echo requests of peers to where nothing may be routed, which the filter let pass.", nil, nil)
)

// Describe implements prometheus.Collector.
func (stackCollector) Describe(out chan<- *prometheus.Desc) {
	out <- carriedDesc
	out <- notPermittedDesc
}

// Collect implements prometheus.Collector.
func (c stackCollector) Collect(out chan<- prometheus.Metric) {
	s := c.stack.Stats()
	r := s.Routed
	for _, m := range []struct {
		to, protocol, result string
		n                    uint64
	}{
		{"host", "tcp", "forwarded", s.TCPForwarded},
		{"host", "tcp", "refused", s.TCPRefused},
		{"host", "tcp", "capped", s.TCPCapped},
		{"host", "udp", "forwarded", s.UDPForwarded},
		{"host", "udp", "refused", s.UDPRefused},
		{"host", "udp", "capped", s.UDPCapped},
		{"route", "tcp", "forwarded", r.TCPForwarded},
		{"route", "tcp", "refused", r.TCPRefused},
		{"route", "tcp", "capped", r.TCPCapped},
		{"route", "udp", "forwarded", r.UDPForwarded},
		{"route", "udp", "refused", r.UDPRefused},
		{"route", "udp", "capped", r.UDPCapped},
		{"route", "icmp", "forwarded", r.EchoForwarded},
		{"route", "icmp", "refused", r.EchoRefused},
		{"route", "icmp", "capped", r.EchoCapped},
	} {
		out <- prometheus.MustNewConstMetric(carriedDesc, prometheus.CounterValue, float64(m.n), m.to, m.protocol, m.result)
	}
	out <- prometheus.MustNewConstMetric(notPermittedDesc, prometheus.CounterValue, float64(r.NotPermitted))
}
