package router

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// Mark is the routing mark (SO_MARK) of the sockets that carry the overlay, or
// speak with its coordinator and relays: they never lead into the overlay. Its
// bits are none of those of Kubernetes (0xc000) or of the overlays that mark in
// 0xff0000.
const Mark uint32 = 0x77000000

var (
	// ErrUnsupported is returned on systems for which nothing of this package
	// is built yet.
	ErrUnsupported = errors.New("router: routing between networks is not supported on this operating system yet")
	// ErrGuard is wrapped by errors of Configure where only the guard of the
	// interface of a node that routes nothing failed, or of any node the check
	// of sources: the node works, but neighbours on its networks can send it
	// packets in the name of peers and, in the first case, other programs could
	// have the kernel forward into the overlay.
	ErrGuard = errors.New("router: the interface is not fully guarded")
	// ErrForwarding is wrapped where the kernel's forwarding is off and may not
	// be turned on.
	ErrForwarding = errors.New("router: IP forwarding is off and cannot be turned on from here")
	// ErrInvalid is wrapped by errors about Settings that make no sense.
	ErrInvalid = errors.New("router: invalid settings")
)

// Settings say what the kernel is to do. The zero value is nothing at all.
type Settings struct {
	// Own are the node's own overlay addresses. With none of them there is no
	// network, and everything else is passed over.
	Own []netip.Addr
	// Overlay are the network's own ranges.
	Overlay []netip.Prefix
	// Forward are the prefixes that peers may reach through this node.
	Forward []netip.Prefix
	// Accept are the prefixes that are led into the overlay, besides the
	// addresses of peers.
	Accept []netip.Prefix
	// Exit leads everything into the overlay that no route of the machine's own
	// is for, in both families, whether or not anyone takes it there.
	Exit bool
	// KeepLAN lets the machine's own routes go before Exit; Accept they always
	// go before.
	KeepLAN bool
	// Except are addresses that are never led into the overlay.
	Except []netip.Addr
}

// Validate reports prefixes and addresses that are none. The error wraps
// ErrInvalid.
func (s *Settings) Validate() error {
	for _, p := range slices.Concat(s.Overlay, s.Forward, s.Accept) {
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
			return fmt.Errorf("%w: prefix %v", ErrInvalid, p)
		}
	}
	for _, a := range slices.Concat(s.Own, s.Except) {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("%w: address %v", ErrInvalid, a)
		}
	}
	return nil
}

// equal reports whether both ask for the same.
func (s *Settings) equal(t *Settings) bool {
	return slices.Equal(s.Own, t.Own) && slices.Equal(s.Overlay, t.Overlay) && slices.Equal(s.Forward, t.Forward) &&
		slices.Equal(s.Accept, t.Accept) && s.Exit == t.Exit && s.KeepLAN == t.KeepLAN && slices.Equal(s.Except, t.Except)
}

// clone returns a copy that shares nothing.
func (s *Settings) clone() Settings {
	c := *s
	c.Own, c.Except = slices.Clone(s.Own), slices.Clone(s.Except)
	c.Overlay, c.Forward, c.Accept = slices.Clone(s.Overlay), slices.Clone(s.Forward), slices.Clone(s.Accept)
	return c
}

// Router routes between the overlay's interface and the machine's networks.
// Its methods may be called concurrently.
type Router interface {
	// Configure makes the kernel do what s says, and undoes what was set
	// before and is not in s. Where a part fails, the parts that could be done
	// are done and the errors are returned joined; but Forward is served only
	// where its guard stands. The zero Settings undo everything. The error
	// wraps ErrGuard where nothing failed but the guard of a node that routes
	// nothing, or the guard's check of sources.
	Configure(s Settings) error
	// Close undoes everything. A second Close does nothing.
	Close() error
}

// Unavailable returns a Router that refuses, with the error, to forward or to
// lead anything into the overlay, and is content with everything else.
func Unavailable(err error) Router { return unavailable{err} }

type unavailable struct{ err error }

var _ Router = unavailable{}

// Configure implements Router.
func (u unavailable) Configure(s Settings) error {
	if len(s.Own) > 0 && (len(s.Forward) > 0 || len(s.Accept) > 0 || s.Exit) {
		return u.err
	}
	return nil
}

// Close implements Router.
func (u unavailable) Close() error { return nil }

// metadata are the addresses at which clouds serve machines their credentials:
// no peer is let to one through this machine, whatever it serves.
var metadata = []netip.Addr{
	netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("192.0.0.192"),
	netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("fd00:ec2::254"),
}

// Metadata returns the addresses at which clouds serve machines their
// credentials, which no router leads a peer to.
func Metadata() []netip.Addr { return slices.Clone(metadata) }

// Control gives a socket the Mark, as net.Dialer.Control and
// net.ListenConfig.Control. Where that is not permitted the socket has none: a
// process that may not mark may not route either.
func Control(_, _ string, c syscall.RawConn) error { return c.Control(mark) }
