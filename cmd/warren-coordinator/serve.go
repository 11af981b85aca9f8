package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/server"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/stun/stunserver"
)

// off switches a listener off.
const off = "off"

// relayName is how devices know the relay beside the coordinator.
const relayName = "default"

// serveOptions are the flags of serve.
type serveOptions struct {
	listen, stun, metrics string
	publicURL             string
	relays, servers       []string
	builtin               bool
	builtinRegion         string
	validity              time.Duration
	logFormat, logLevel   string
}

func (m *Main) serve() *cobra.Command {
	var o serveOptions
	c := &cobra.Command{
		Use: "serve", Short: "Run the coordinator; the first start makes the network",
		Long: `Run the coordinator, with a relay and a STUN server beside it. The first start
makes the network and prints its fingerprint and the next command to type.

Plain HTTP is as safe as HTTPS: devices know the coordinator by the fingerprint
in their join key. Behind a proxy that terminates TLS, give --public-url.

There is nothing to read again while it runs, and SIGHUP does nothing: certificates
are the proxy's, and the policy comes by the policy command.`,
		Example: "  warren-coordinator serve --data DIR --listen 0.0.0.0:8080",
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", "0.0.0.0:8080", "address for devices, TCP")
	f.StringVar(&o.stun, "stun-listen", "", `address of the STUN server, UDP, or "off" (default: the host of --listen, port 3478)`)
	f.StringVar(&o.metrics, "metrics-listen", "127.0.0.1:9090", `address for /metrics and /healthz, TCP, or "off"`)
	f.StringVar(&o.publicURL, "public-url", "", "URL under which devices reach this coordinator, where it is not the address they connect to")
	f.BoolVar(&o.builtin, "builtin-relay", true, "relay packets of devices that find no direct path, here; devices know this relay as \""+relayName+"\"")
	f.StringVar(&o.builtinRegion, "builtin-relay-region", "", "where this relay stands, shown to people, such as eu-central")
	f.StringArrayVar(&o.relays, "relay", nil, "another relay, as name=NAME,url=wss://HOST[,region=REGION][,udp=HOST:PORT][,stun=HOST:PORT]; may be repeated")
	f.StringArrayVar(&o.servers, "stun", nil, "another STUN server for devices to ask, as HOST:PORT; may be repeated. With two a device learns whether its NAT gives every destination another port")
	f.DurationVar(&o.validity, "certificate-validity", 7*24*time.Hour, "life of a device's certificate; renewed at half of it")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	c.Args = commandline.Arguments(0)
	c.RunE = func(c *cobra.Command, _ []string) error {
		log, err := m.logger(o)
		if err != nil {
			return commandline.Wrong(c, err)
		}
		if _, err := publicRelay(o.publicURL); err != nil {
			return commandline.Wrong(c, err)
		}
		if _, err := o.relayList(1, ""); err != nil {
			return commandline.Wrong(c, err)
		}
		if err := o.checkServers(); err != nil {
			return commandline.Wrong(c, err)
		}
		return m.runServe(c.Context(), o, c.Flags().Changed("metrics-listen"), log)
	}
	return c
}

func (m *Main) logger(o serveOptions) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q is none of debug, info, warn, error", o.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(m.Stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(m.Stderr, options)), nil
	}
	return nil, fmt.Errorf("--log-format %q is neither text nor json", o.logFormat)
}

// followHangup answers SIGHUP, which would end the program otherwise: nothing of the
// coordinator's is read from files while it runs.
func (m *Main) followHangup(ctx context.Context, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.Hangup:
			log.Info("SIGHUP: there is nothing to read again: TLS and its certificates are a proxy's, the policy and settings are the database's, and flags take effect at the next start")
		}
	}
}

// runServe wires coordinator, relay and STUN server together and runs them
// until the context ends or one of them fails.
func (m *Main) runServe(ctx context.Context, o serveOptions, wantMetrics bool, log *slog.Logger) error {
	if m.Hangup != nil { // first of all: until then SIGHUP ends the program
		signal.Notify(m.Hangup, syscall.SIGHUP)
		defer signal.Stop(m.Hangup)
	}
	public, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	defer public.Close()
	stun, err := listenSTUN(o, log)
	if err != nil {
		return err
	}
	cfg := server.Config{
		Dir: m.data, CertificateValidity: o.validity, Version: commandline.CurrentBuild().String(), Rand: m.Rand, Logger: log,
	}
	port := public.Addr().(*net.TCPAddr).Port
	if stun != nil {
		defer stun.Close()
		cfg.STUN = []string{":" + strconv.Itoa(int(stun.LocalPort()))}
	}
	if cfg.Relays, err = o.relayList(port, strings.Join(cfg.STUN, "")); err != nil {
		return err
	}
	cfg.STUN = append(cfg.STUN, o.servers...)
	adviseServers(cfg, log)
	var relays *relayhttp.Server
	var members *server.Members
	if o.builtin {
		cfg.Relay = relayName
		cfg.OnRevoke = func(key ident.NodeKey) {
			if relays != nil { // nobody is connected before the relay is made
				relays.Revoke(members.Network(), key)
			}
		}
	}
	s, err := server.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.Close()
	listeners := server.Listeners{Public: public}
	if listeners.Admin, err = s.ListenAdmin(); err != nil {
		return err
	}
	defer listeners.Admin.Close()
	if listeners.Metrics, err = listenMetrics(o.metrics, wantMetrics, log); err != nil {
		return err
	}

	asked := ctx.Done()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	if o.builtin {
		members = s.Members()
		relays, err = relayhttp.NewServer(relayhttp.ServerConfig{
			ServerConfig: relay.ServerConfig{Name: relayName, Admitter: members, Rand: m.Rand}, Datagrams: stun, Logger: log,
		})
		if err != nil {
			return err
		}
		s.Mount("GET "+relayhttp.Path, relays)
		group.Go(func() { report(log, "relay", relays.Run(ctx)) })
	}
	if stun != nil && !o.builtin { // else the relay answers there
		group.Go(func() { report(log, "STUN server", stunserver.New(stun).Run(ctx)) })
	}
	group.Go(func() { m.followHangup(ctx, log) })
	group.Go(func() {
		select {
		case <-ctx.Done():
		case <-asked:
			if relays != nil && len(cfg.Relays) > 1 {
				relays.Drain() // nodes go to another one first, and are served until then
			}
			cancel()
		}
	})
	m.announce(s, o, public.Addr().(*net.TCPAddr).AddrPort())
	return s.Run(ctx, listeners)
}

func report(log *slog.Logger, what string, err error) {
	if err != nil {
		log.Error("it ended; devices do without it until the next start", "what", what, "error", err)
	}
}

// listenMetrics opens the port for metrics. A default port that is taken is
// only worth a warning.
func listenMetrics(address string, wanted bool, log *slog.Logger) (net.Listener, error) {
	if address == off {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil && !wanted {
		log.Warn("no metrics: their port is in use; name another with --metrics-listen", "error", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen: %w", err)
	}
	log.Info("metrics", "address", l.Addr())
	return l, nil
}
