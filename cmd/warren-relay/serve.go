package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayserver"
	"github.com/warren-overlay/warren/netstack/sock"
)

// off switches a listener off.
const off = "off"

// options are the flags of serve.
type options struct {
	name, region             string
	listen, udp, metrics     string
	certificate, key         string
	proxy                    bool
	coordinator, fingerprint string
	genesis, data            string
	maxClients               int
	rate                     int64
	logFormat, logLevel      string
	config                   string
}

func (m *Main) serve() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use: "serve", Short: "Relay, until it is told to stop",
		Long: `Relay packets of one network, which the fingerprint names.

Nodes are told of the relay by the coordinator, under the same name:

  warren-coordinator serve --relay name=NAME,url=wss://HOST,udp=HOST:3478,stun=HOST:3478

The network's genesis record comes from the coordinator at the first start and
is kept in the data directory; or it comes from a file. While the coordinator
cannot be reached, the relay works on; see the administrators' guide.`,
		Example: "  warren-relay serve --name fra --tls-cert fra.pem --tls-key fra.key --coordinator https://warren.example.com --fingerprint FINGERPRINT",
		Args:    commandline.Arguments(0),
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "the relay's name in the coordinator's configuration")
	f.StringVar(&o.region, "region", "", "where the relay stands, such as eu-central; shown in metrics and logs")
	f.StringVar(&o.listen, "listen", "0.0.0.0:8443", "address for nodes, TCP: HTTPS with --tls-cert, else HTTP")
	f.StringVar(&o.udp, "udp-listen", "0.0.0.0:3478", `address for packets and STUN, UDP, or "off"`)
	f.StringVar(&o.metrics, "metrics-listen", "127.0.0.1:9091", `address for /metrics and /healthz, TCP, or "off"`)
	f.StringVar(&o.certificate, "tls-cert", "", "PEM file with the certificate and those it was signed by; read anew when it changes")
	f.StringVar(&o.key, "tls-key", "", "PEM file with the certificate's private key")
	f.BoolVar(&o.proxy, "behind-proxy", false, "all connections come from a proxy, which limits those of one address itself")
	f.StringVar(&o.coordinator, "coordinator", "", "URL of the coordinator")
	f.StringVar(&o.fingerprint, "fingerprint", "", "the network's fingerprint, as warren-coordinator status shows it")
	f.StringVar(&o.genesis, "genesis", "", "file with the network's genesis record, where the coordinator cannot be reached from here")
	f.StringVar(&o.data, "data", "/var/lib/warren-relay", "data directory")
	f.IntVar(&o.maxClients, "max-clients", 10_000, "nodes that may be connected at once")
	f.Int64Var(&o.rate, "rate", relay.DefaultRate, "bytes a second that one node may send")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.config, "config", configFile, "YAML file with any of these settings, named as here without the dashes; the command line goes before it")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := applyFile(c, o.config, c.Flags().Changed("config")); err != nil {
			return commandline.Wrong(c, err)
		}
		log, err := m.logger(o)
		if err != nil {
			return commandline.Wrong(c, err)
		}
		fingerprint, err := o.check()
		if err != nil {
			return commandline.Wrong(c, err)
		}
		return m.runServe(c.Context(), o, fingerprint, c.Flags().Changed("metrics-listen"), log)
	}
	return c
}

// check reports what is wrong with the command line, and returns the fingerprint.
func (o *options) check() (ident.Fingerprint, error) {
	switch {
	case o.name == "" || len(o.name) > authority.MaxRelayName:
		return ident.Fingerprint{}, fmt.Errorf("--name %q: a relay has a name of 1 to %d bytes", o.name, authority.MaxRelayName)
	case o.fingerprint == "":
		return ident.Fingerprint{}, errors.New("--fingerprint says which network the relay serves, and there is none")
	case o.coordinator == "" && o.genesis == "":
		return ident.Fingerprint{}, errors.New("one of --coordinator and --genesis is needed to know the network")
	case (o.certificate == "") != (o.key == ""):
		return ident.Fingerprint{}, errors.New("--tls-cert and --tls-key go together")
	case o.maxClients <= 0 || o.rate <= 0:
		return ident.Fingerprint{}, errors.New("--max-clients and --rate are above zero")
	}
	fingerprint, err := ident.ParseFingerprint(o.fingerprint)
	if err != nil {
		return ident.Fingerprint{}, fmt.Errorf("--fingerprint: %w", err)
	}
	return fingerprint, nil
}

func (m *Main) logger(o options) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q is none of debug, info, warn, error", o.logLevel)
	}
	settings := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(m.Stderr, settings)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(m.Stderr, settings)), nil
	}
	return nil, fmt.Errorf("--log-format %q is neither text nor json", o.logFormat)
}

// runServe opens the listeners and relays until the context ends.
func (m *Main) runServe(ctx context.Context, o options, fingerprint ident.Fingerprint, wantMetrics bool, log *slog.Logger) error {
	genesis, err := o.network(ctx, fingerprint, log)
	if err != nil {
		return err
	}
	var l relayserver.Listeners
	if l.Public, err = net.Listen("tcp", o.listen); err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	defer l.Public.Close()
	if o.certificate != "" {
		settings, err := relayserver.Certificate(o.certificate, o.key, log)
		if err != nil {
			return err
		}
		l.Public = tls.NewListener(l.Public, settings)
	}
	udp := off
	if o.udp != off {
		if l.Datagrams, err = listenUDP(o.udp); err != nil {
			return fmt.Errorf("--udp-listen %s: %w", o.udp, err)
		}
		defer l.Datagrams.Close()
		udp = fmt.Sprint(l.Datagrams.LocalPort())
	}
	if o.metrics != off {
		l.Metrics, err = net.Listen("tcp", o.metrics)
		switch {
		case err == nil:
			defer l.Metrics.Close()
			log.Info("metrics", "address", l.Metrics.Addr())
		case wantMetrics:
			return fmt.Errorf("--metrics-listen: %w", err)
		default:
			log.Warn("no metrics: their port is in use; name another with --metrics-listen", "error", err)
		}
	}
	cfg := relayserver.Config{
		Name: o.name, Region: o.region, Genesis: genesis, MaxConns: o.maxClients, Rate: o.rate,
		BehindProxy: o.proxy, Rand: m.Rand, Logger: log,
	}
	if o.coordinator != "" {
		cfg.Fetch = func(ctx context.Context) (authority.RelayRevocations, error) {
			return channel.FetchRevocations(ctx, nil, o.coordinator, genesis)
		}
	}
	s, err := relayserver.New(cfg, l)
	if err != nil {
		return err
	}
	log.Info("relaying", "name", o.name, "region", o.region, "network", fingerprint, "address", l.Public.Addr(), "tls", o.certificate != "", "udp", udp)
	return s.Run(ctx)
}

// network returns the genesis record of the network.
func (o *options) network(ctx context.Context, fingerprint ident.Fingerprint, log *slog.Logger) (*authority.Genesis, error) {
	if o.genesis != "" {
		return relayserver.ReadGenesis(o.genesis, fingerprint)
	}
	return relayserver.LoadGenesis(ctx, o.data, fingerprint, func(ctx context.Context) (*authority.Genesis, error) {
		return channel.FetchGenesis(ctx, nil, o.coordinator, fingerprint)
	}, log)
}

func listenUDP(address string) (sock.Conn, error) {
	udp, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	cfg := sock.Config{Port: uint16(udp.Port), Fragment: true}
	if ip, ok := netip.AddrFromSlice(udp.IP); ok && !ip.Unmap().IsUnspecified() {
		cfg.Addresses = []netip.Addr{ip.Unmap()}
	}
	return sock.Listen(cfg)
}
