package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
cannot be reached, the relay works on; see the administrators' guide.

On SIGHUP the certificate and the configuration file are read again. The settings
tls-cert, tls-key, max-clients, rate and log-level take effect at once, others at
the next start. Where something is wrong, it is logged and all stays as it was.`,
		Example: "  warren-relay serve --name fra --tls-cert fra.pem --tls-key fra.key --coordinator https://warren.example.com --fingerprint FINGERPRINT",
		Args:    commandline.Arguments(0),
	}
	o.flags(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		given := givenFlags(c)
		if err := applyFile(c, o.config, c.Flags().Changed("config")); err != nil {
			return commandline.Wrong(c, err)
		}
		level := new(slog.LevelVar)
		log, err := m.logger(o, level)
		if err != nil {
			return commandline.Wrong(c, err)
		}
		fingerprint, err := o.check()
		if err != nil {
			return commandline.Wrong(c, err)
		}
		r := &reloader{given: given, flags: c.Flags(), options: o, level: level, log: log}
		return m.runServe(c.Context(), r, fingerprint, c.Flags().Changed("metrics-listen"))
	}
	return c
}

// flags defines the flags in f.
func (o *options) flags(f *pflag.FlagSet) {
	f.StringVar(&o.name, "name", "", "the relay's name in the coordinator's configuration")
	f.StringVar(&o.region, "region", "", "where the relay stands, such as eu-central; shown in metrics and logs")
	f.StringVar(&o.listen, "listen", "0.0.0.0:8443", "address for nodes, TCP: HTTPS with --tls-cert, else HTTP")
	f.StringVar(&o.udp, "udp-listen", "0.0.0.0:3478", `address for packets and STUN, UDP, or "off"`)
	f.StringVar(&o.metrics, "metrics-listen", "127.0.0.1:9091", `address for /metrics and /healthz, TCP, or "off"`)
	f.StringVar(&o.certificate, "tls-cert", "", "PEM file with the certificate and those it was signed by; read anew when it changes, and on SIGHUP")
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

// logger returns a logger of the options; level is set to theirs.
func (m *Main) logger(o options, level *slog.LevelVar) (*slog.Logger, error) {
	if err := o.setLevel(level); err != nil {
		return nil, err
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

// setLevel sets level to what the options say.
func (o *options) setLevel(level *slog.LevelVar) error {
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q is none of debug, info, warn, error", o.logLevel)
	}
	return nil
}

// runServe opens the listeners and relays until the context ends.
func (m *Main) runServe(ctx context.Context, r *reloader, fingerprint ident.Fingerprint, wantMetrics bool) error {
	if m.Hangup != nil { // first of all: until then SIGHUP ends the program
		signal.Notify(m.Hangup, syscall.SIGHUP)
		defer signal.Stop(m.Hangup)
	}
	o, log := r.options, r.log
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
		if r.certificate, err = relayserver.NewCertificate(o.certificate, o.key, log); err != nil {
			return err
		}
		l.Public = tls.NewListener(l.Public, r.certificate.TLS())
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
	ctx, cancel := context.WithCancel(ctx)
	var reloading sync.WaitGroup
	defer reloading.Wait()
	defer cancel()
	reloading.Go(func() { r.follow(ctx, m.Hangup, s) })
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
