package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/client/agent"
	"github.com/warren-overlay/warren/coordinator/wire"
)

const (
	// gcPercent trades processor time for memory: the live heap of an idle
	// node is a few megabytes, and with Go's default of 100 the collector
	// would let garbage grow to the same again before it looks.
	gcPercent = 50
	// memoryLimit makes the collector work harder before a node on a small
	// machine is killed. A busy node with thousands of peers may exceed it: it
	// is no cap.
	memoryLimit = 256 << 20
)

func (m *Main) daemonCommand() *cobra.Command {
	var (
		o         agent.Options
		port      uint16
		logFormat string
		logLevel  string
	)
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the node itself",
		Long: `Run the node itself, in the foreground, until it gets SIGINT or SIGTERM.

It remembers whether it is to be connected: after a restart it connects by
itself, and while the coordinator is down it works with what it last verified.
Connections through a network interface outlive a restart of up to 60 seconds
where the rules still allow them.

With --tun userspace it needs no root: programs reach the overlay through the
proxies (--socks5, --http-proxy), and connections from the overlay to this
device's ports are forwarded to the same ports on localhost. Routes that it
advertises are served by connections of the daemon's own: TCP, UDP and ping.`,
		Example: `  warren daemon
  warren daemon --state ~/.warren --socket ~/.warren/sock --tun userspace --socks5 127.0.0.1:1055`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := m.logger(logFormat, logLevel)
			if err != nil {
				return err
			}
			if o.MTU != 0 && (o.MTU < 1280 || o.MTU > 9000) {
				return usagef("--mtu: %d is not 0, nor from 1280 to 9000", o.MTU)
			}
			debug.SetGCPercent(gcPercent)
			debug.SetMemoryLimit(memoryLimit)
			o.Socket, o.Port, o.Logger = m.socket, port, log
			o.Host = wire.HostInfo{ProgramVersion: version(), OS: runtime.GOOS, Architecture: runtime.GOARCH}
			o.Hostname = deviceName()
			o.Ready = func() {
				log.Info("ready", "socket", m.socket, "state", o.StateDir, "device", o.Device, "version", version())
				notifySystemd(m.Getenv("NOTIFY_SOCKET"))
			}
			return runDaemon(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.StateDir, "state", defaultStateDir(m.Getenv), "directory of keys and state, private to the daemon's user")
	f.StringVar(&o.Device, "tun", defaultDevice(), `network interface to make, or "userspace" for none`)
	f.Uint16Var(&port, "port", 41641, "UDP port for packets of peers; 0 for any. One that is taken is replaced by another")
	f.BoolVar(&o.PortMapping, "port-mapping", true, "ask the gateway to forward the UDP port (PCP, NAT-PMP, UPnP), and to let it in over IPv6; false forbids it whatever the settings say")
	f.IntVar(&o.MTU, "mtu", 0, "length in bytes of the longest packet inside the overlay, 1280 to 9000; 0 for what the machine's links carry, 1420 on Ethernet. What the path to a device carries of it is found out by itself")
	f.StringVar(&o.SOCKS5, "socks5", "", "address of a SOCKS5 proxy into the overlay, such as 127.0.0.1:1055")
	f.StringVar(&o.HTTPProxy, "http-proxy", "", "address of an HTTP proxy into the overlay, such as 127.0.0.1:1056")
	f.StringVar(&o.Metrics, "metrics-listen", "127.0.0.1:9095", `loopback address of /metrics and /healthz, or "off"`)
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func runDaemon(ctx context.Context, o agent.Options) error {
	d, err := agent.Open(ctx, o)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// logger makes the log that the flags describe.
func (m *Main) logger(format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usagef("--log-level: %q is not debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(m.Stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(m.Stderr, options)), nil
	}
	return nil, usagef("--log-format: %q is not text or json", format)
}

// deviceName makes a name for this device out of the machine's.
func deviceName() string {
	host, err := os.Hostname()
	if err != nil {
		return "device"
	}
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, host)
	name = strings.Trim(name[:min(len(name), 63)], "-")
	if !authority.ValidName(name) {
		return "device"
	}
	return name
}

// notifySystemd tells the service manager that the daemon is ready
// (sd_notify(3)), where it is run by one.
func notifySystemd(path string) {
	if path == "" {
		return
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprint(conn, "READY=1")
}
