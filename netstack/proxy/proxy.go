package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

var (
	// ErrNotOverlay is the reason for refusing a destination outside the
	// overlay.
	ErrNotOverlay = errors.New("proxy: destination is not in the overlay; this proxy carries overlay traffic only")

	// ErrUnknownName is what a Resolver returns, wrapped or not, for a name
	// that no device of the overlay has.
	ErrUnknownName = errors.New("proxy: no such name in the overlay")

	// ErrDestination is returned for a destination that cannot be understood.
	ErrDestination = errors.New("proxy: malformed destination")
)

// NotAllowedError is what a Dialer returns, wrapped or not, for a connection
// that this device's own rules refuse. Clients are told so in the words of their
// protocol.
type NotAllowedError struct {
	// Reason says what the rules lack, for people.
	Reason string
}

// Error returns the reason.
func (e *NotAllowedError) Error() string { return "proxy: not allowed by the rules: " + e.Reason }

// A Dialer opens connections into the overlay. Network is "tcp", address is
// IP:port. *userstack.Stack is one.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// A Resolver turns names into overlay addresses, the preferred ones first. A
// name that is none of the overlay's is ErrUnknownName.
type Resolver interface {
	Resolve(ctx context.Context, name string) ([]netip.Addr, error)
}

// Config says how a proxy works. Dialer must be set.
type Config struct {
	Dialer Dialer

	// Resolver answers for names; nil knows none, so that only addresses work.
	Resolver Resolver

	// Contains tells which addresses are in the overlay. Nil means those that
	// overlays use: 100.64.0.0/10 (RFC 6598) and fc00::/7 (RFC 4193).
	Contains func(addr netip.Addr) bool

	// Logger gets one debug record for each connection that failed, and a
	// warning when accepting fails; nil logs nothing.
	Logger *slog.Logger

	// MaxConnections caps the clients' connections; more are closed at once.
	// Zero means 1024.
	MaxConnections int

	// RequestTimeout is how long a client may take to say what it wants: a
	// client that says nothing must not hold a connection for ever. Zero means
	// 10 seconds.
	RequestTimeout time.Duration

	// DialTimeout bounds the opening of a connection into the overlay, over
	// all addresses of a name. Zero means 30 seconds.
	DialTimeout time.Duration
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Dialer == nil {
		return cfg, errors.New("proxy: no Dialer")
	}
	if cfg.MaxConnections < 0 || cfg.RequestTimeout < 0 || cfg.DialTimeout < 0 {
		return cfg, errors.New("proxy: negative limit")
	}
	if cfg.Contains == nil {
		cfg.Contains = usualOverlay
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 1024
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = 10 * time.Second
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = 30 * time.Second
	}
	return cfg, nil
}

var usualPrefixes = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7")}

func usualOverlay(addr netip.Addr) bool {
	return usualPrefixes[0].Contains(addr) || usualPrefixes[1].Contains(addr)
}

// Listen opens the TCP port on which to run a proxy: HOST:PORT, where no host
// means the loopback address 127.0.0.1, or PORT alone. Other addresses than
// loopback must be given in so many words.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	if !strings.Contains(address, ":") {
		address = ":" + address
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("proxy: listen address %q: %w", address, err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("proxy: listening: %w", err)
	}
	return l, nil
}

// maxName is the longest host name (RFC 1035 §2.3.4).
const maxName = 253

// destination is where a client wants to go: an address, or a name.
type destination struct {
	addr netip.Addr // invalid when name is set
	name string     // lower case, without the final dot
	port uint16
}

// newDestination understands a host as clients write it.
func newDestination(host string, port uint16) (destination, error) {
	if port == 0 {
		return destination{}, fmt.Errorf("%w: port 0", ErrDestination)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return destination{}, fmt.Errorf("%w: address with a zone", ErrDestination)
		}
		return destination{addr: addr.Unmap(), port: port}, nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	}) {
		return destination{}, fmt.Errorf("%w: %q is no address and no host name", ErrDestination, host)
	}
	return destination{name: name, port: port}, nil
}

// parseDestination understands HOST:PORT.
func parseDestination(hostport string) (destination, error) {
	host, portText, err := net.SplitHostPort(hostport)
	if err != nil {
		return destination{}, fmt.Errorf("%w: %w", ErrDestination, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return destination{}, fmt.Errorf("%w: port %q", ErrDestination, portText)
	}
	return newDestination(host, uint16(port))
}

// dial opens a connection to a destination, after the overlay was asked
// whether it is one of its own.
func (cfg *Config) dial(ctx context.Context, to destination) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	addrs := []netip.Addr{to.addr}
	if to.name != "" {
		if cfg.Resolver == nil {
			return nil, fmt.Errorf("%w: %s", ErrUnknownName, to.name)
		}
		var err error
		if addrs, err = cfg.Resolver.Resolve(ctx, to.name); err != nil {
			return nil, fmt.Errorf("proxy: resolving %s: %w", to.name, err)
		}
		if len(addrs) == 0 {
			return nil, fmt.Errorf("%w: %s", ErrUnknownName, to.name)
		}
	}
	var lastErr error
	for _, addr := range addrs {
		// Also what a resolver says is checked: it may answer for names that
		// somebody else chose.
		if addr = addr.Unmap(); !cfg.Contains(addr) {
			if lastErr == nil {
				lastErr = fmt.Errorf("%w: %s", ErrNotOverlay, addr)
			}
			continue
		}
		conn, err := cfg.Dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, to.port).String())
		if err == nil {
			return conn, nil
		}
		lastErr = fmt.Errorf("proxy: connecting to %s: %w", addr, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, lastErr
}
