package portmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/pcp"
)

var (
	// ErrNoGateway means that this machine has no default route over a gateway,
	// or that the system does not say which.
	ErrNoGateway = errors.New("portmap: no gateway")
	// ErrSilent means that the gateway answers in none of the protocols.
	ErrSilent = errors.New("portmap: the gateway speaks neither PCP nor NAT-PMP nor UPnP")
	// ErrElsewhere means that a gateway's answer leads to another machine.
	ErrElsewhere = errors.New("portmap: the gateway names another machine")
	// ErrUPnP is wrapped by errors about what a UPnP device said.
	ErrUPnP = errors.New("portmap: UPnP")
)

// ssdpPort is where UPnP devices are searched for (UPnP Device Architecture 1.1,
// section 1.3).
const ssdpPort = 1900

// ssdpGroup is where all of them listen.
var ssdpGroup = netip.MustParseAddr("239.255.255.250")

// Config is what a Client needs; the zero value will do.
type Config struct {
	// Control is given every socket, as net.Dialer.Control; nil for nothing.
	Control func(network, address string, c syscall.RawConn) error
	// Gateway and Gateway6 return the gateways of IPv4 and IPv6; nil means that of
	// the system's default route. A link-local address has its zone. The error
	// should wrap ErrNoGateway where there is none.
	Gateway, Gateway6 func() (netip.Addr, error)
	// Rand is the source of nonces and ports, safe for concurrent use.
	Rand io.Reader
}

// Client asks gateways for mappings. Its methods may be called concurrently;
// those of one address family wait for each other.
type Client struct {
	cfg Config
	// pcpPort, ssdpPort and group are replaced in tests; no group is searched
	// where that is the zero Addr.
	pcpPort, ssdpPort uint16
	group             netip.Addr

	mu    sync.Mutex // protects nonce and upnp, and is held while the gateway is asked
	nonce nonce
	// upnp is the device that granted last, nil for none.
	upnp *gatewayDevice

	mu6      sync.Mutex // protects firewall, and is held while its gateway is asked
	firewall firewall
}

// nonce is that of this device's mappings at one gateway: another one must not
// learn it (RFC 6887, section 11.2).
type nonce struct {
	gateway netip.Addr // zero for none yet
	value   pcp.Nonce
}

// of draws a nonce where the gateway is another one than before, and says so.
func (n *nonce) of(gateway netip.Addr, random io.Reader) (fresh bool, err error) {
	if n.isOf(gateway) {
		return false, nil
	}
	var value pcp.Nonce
	if _, err := io.ReadFull(random, value[:]); err != nil {
		return false, fmt.Errorf("portmap: drawing a nonce: %w", err)
	}
	n.gateway, n.value = gateway, value
	return true, nil
}

func (n *nonce) isOf(gateway netip.Addr) bool { return n.gateway.IsValid() && n.gateway == gateway }

// New returns a Client.
func New(cfg Config) *Client {
	if cfg.Gateway == nil {
		cfg.Gateway = defaultGateway
	}
	if cfg.Gateway6 == nil {
		cfg.Gateway6 = defaultGateway6
	}
	return &Client{cfg: cfg, pcpPort: pcp.Port, ssdpPort: ssdpPort, group: ssdpGroup}
}

// Map asks the gateway of the moment for what r says, in each protocol until one
// is granted, which takes some seconds where it is mute. The grant is what the
// gateway says, and no more.
//
// Errors: the context's; one that wraps ErrNoGateway; ErrSilent; or why the
// gateway refuses in each protocol that it speaks, such as a *pcp.RefusedError
// or one that wraps ErrUPnP or ErrElsewhere.
func (c *Client) Map(ctx context.Context, r nat.MapRequest) (nat.Grant, error) {
	if r.Internal.IsValid() {
		return c.mapIPv6(ctx, r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	gateway, err := c.cfg.Gateway()
	if err != nil {
		return nat.Grant{}, err
	}
	if _, err := c.nonce.of(gateway, c.cfg.Rand); err != nil {
		return nat.Grant{}, err
	}
	return firstGrant(ctx, gateway, r, c.mapPCP, c.mapUPnP)
}

// firstGrant asks the gateway in one way after the other.
func firstGrant(ctx context.Context, gateway netip.Addr, r nat.MapRequest, ways ...func(context.Context, netip.Addr, nat.MapRequest) (nat.Grant, error)) (nat.Grant, error) {
	var failures []error
	for _, ask := range ways {
		grant, err := ask(ctx, gateway, r)
		if err == nil {
			grant.Gateway, grant.Internal = gateway, r.Internal
			return grant, nil
		}
		if ctx.Err() != nil {
			return nat.Grant{}, context.Cause(ctx)
		}
		if !errors.Is(err, errMute) {
			failures = append(failures, err)
		}
	}
	if len(failures) == 0 {
		return nat.Grant{}, ErrSilent
	}
	return nat.Grant{}, errors.Join(failures...)
}

// Release deletes what was granted. Nothing is lost where it fails: it ends by
// itself.
func (c *Client) Release(ctx context.Context, g nat.Grant) error {
	if g.Internal.IsValid() {
		return c.releaseIPv6(ctx, g)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch g.Protocol {
	case nat.MapPCP, nat.MapNATPMP:
		return c.releasePCP(ctx, g)
	case nat.MapUPnP:
		return c.releaseUPnP(ctx, g)
	case nat.MapNone:
	}
	return nil
}

// errMute means that the gateway did not answer in a protocol.
var errMute = errors.New("portmap: no answer")

// dial opens a UDP socket that sends to, and receives from, one address only;
// from is the address of this machine to send from, the zero Addr for the
// system's choice.
func (c *Client) dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.UDPConn, netip.Addr, error) {
	dialer, network := net.Dialer{Control: c.cfg.Control}, "udp4"
	if from.IsValid() {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	if to.Addr().Is6() {
		network = "udp6"
	}
	conn, err := dialer.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, netip.Addr{}, fmt.Errorf("portmap: asking the gateway: %w", err)
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		panic("BUG: portmap: a UDP connection is no *net.UDPConn")
	}
	return udp, udp.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// maxAnswers bounds the datagrams that are read for one try: whoever can forge
// the gateway's address can send as many as it likes, and all but one say
// nothing.
const maxAnswers = 32

// exchange sends a request, again after each of the waits, until accept says
// that a datagram was the answer, or fails. The last wait is for the answer
// alone.
//
// Errors: errMute; accept's; the context's; a socket's.
func exchange(ctx context.Context, conn *net.UDPConn, request []byte, waits []time.Duration, accept func([]byte) (bool, error)) error {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, pcp.MaxSize+1)
	for _, wait := range waits {
		if _, err := conn.Write(request); err != nil && !refused(err) {
			return fmt.Errorf("portmap: asking the gateway: %w", err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return fmt.Errorf("portmap: asking the gateway: %w", err)
		}
		for range maxAnswers {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n, err := conn.Read(buf)
			if refused(err) {
				return errMute // nobody listens there
			}
			if err != nil {
				break // mostly the deadline
			}
			if done, err := accept(buf[:n]); done || err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errMute
}

// refused reports whether an ICMP error said that nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

const (
	// maxDescription bounds the description of a UPnP device; those of real ones
	// have 2 to 20 KB.
	maxDescription = 128 << 10
	// maxHTTPHeader bounds the header of an answer.
	maxHTTPHeader = 16 << 10
	// httpTime bounds one request over HTTP to a machine in the local network.
	httpTime = 4 * time.Second
)

// boundedTransport speaks HTTP with one machine, and reads no more than
// maxDescription of any answer.
type boundedTransport struct{ inner *http.Transport }

// RoundTrip implements http.RoundTripper.
func (b boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.inner.RoundTrip(r)
	if err == nil {
		response.Body = http.MaxBytesReader(nil, response.Body, maxDescription)
	}
	return response, err
}

// httpClient returns an HTTP client that follows no redirects, uses no proxy and
// unpacks nothing. target says where a connection to an address goes, or why
// there is none; from is the address of this machine that it comes from, nil for
// the system's choice.
func (c *Client) httpClient(from *net.TCPAddr, target func(netip.AddrPort) (netip.AddrPort, error)) *http.Client {
	dialer := &net.Dialer{Control: c.cfg.Control, Timeout: httpTime}
	if from != nil {
		dialer.LocalAddr = from
	}
	return &http.Client{
		Timeout:       httpTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: boundedTransport{&http.Transport{
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				to, err := netip.ParseAddrPort(address)
				if err != nil {
					return nil, fmt.Errorf("%w: %s", ErrElsewhere, strconv.Quote(address))
				}
				if to, err = target(to); err != nil {
					return nil, err
				}
				return dialer.DialContext(ctx, "tcp", to.String())
			},
			DisableKeepAlives: true, DisableCompression: true,
			ResponseHeaderTimeout: httpTime, MaxResponseHeaderBytes: maxHTTPHeader,
		}},
	}
}

// only lets connections go to one machine.
func only(gateway netip.Addr) func(netip.AddrPort) (netip.AddrPort, error) {
	return func(to netip.AddrPort) (netip.AddrPort, error) {
		if to.Addr() != gateway {
			return netip.AddrPort{}, fmt.Errorf("%w: %v", ErrElsewhere, to)
		}
		return to, nil
	}
}
