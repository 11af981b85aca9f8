package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
)

// Config is all that the engine needs to carry packets.
type Config struct {
	// PrivateKey is this device's WireGuard key. It must be the private half of
	// Self's key.
	PrivateKey ident.NodePrivate
	// Lead is how far this device's clock is ahead of the network's time, by
	// which certificates and rules are judged; negative where it is behind.
	Lead time.Duration
	// Self is this device's own verified certificate.
	Self *authority.Peer
	// Rules are what is allowed; nil denies everything.
	Rules *authority.Rules
	// Candidate is computed beside Rules and reported; nil for none. It allows
	// and denies nothing.
	Candidate *authority.Candidate
	// Peers are the other members that this device may meet.
	Peers []Peer
	// Relays are where peers can be met when there is no direct path. Their order
	// is the same on all devices; no two have one name.
	Relays []Relay
	// RelayToken admits this device to the relays.
	RelayToken []byte
	// STUN lists servers as host:port that tell this device its public
	// address.
	STUN []string
	// PortMapping has the gateway forward the UDP port to this device.
	PortMapping bool
	// Endpoints are addresses outside that the user says lead to this device.
	Endpoints []netip.AddrPort
	// ShieldsUp refuses every flow that a peer opens, whatever the rules.
	ShieldsUp bool
	// Overlay are the network's own ranges: no route leads into them.
	Overlay []netip.Prefix
	// Underlay lists the coordinator and the relays as host:port. What goes
	// there never goes through the tunnel.
	Underlay []string
	// Forward are the routes of Self that this device serves: packets of peers
	// that the rules admit go on to there.
	Forward []netip.Prefix
	// Exit says what becomes of packets that no route is for.
	Exit Exit
}

// Exit says where packets go that no route is for.
type Exit uint8

const (
	// ExitDirect: where the machine sends them by itself.
	ExitDirect Exit = iota
	// ExitTunnel: into the tunnel, those to the local networks too. Where no
	// peer takes them they are dropped: they never go out directly.
	ExitTunnel
	// ExitTunnelButLAN: into the tunnel, except to the local networks.
	ExitTunnelButLAN
)

// Peer is a member and where it may be reached. The endpoints are hearsay: they
// are probed before a packet of the tunnel goes there.
type Peer struct {
	Member    *authority.Peer
	Endpoints []netip.AddrPort
	// HomeRelay is the name of the relay at which the peer is said to listen,
	// empty where that is not known. It need not be one of Relays.
	HomeRelay string
	// Routes are those of the member's approved routes that this device uses.
	// Where several peers have one, the engine uses the one that answers.
	Routes []netip.Prefix
}

// Relay is a relay at which peers can be met.
type Relay struct {
	// Name tells the relay from the others, and is part of what this device
	// proves to it.
	Name string
	// Region says where the relay stands, for people; it may be empty.
	Region string
	// URL is a ws or wss URL.
	URL string
	// UDP is the host:port at which the relay takes packets over UDP, empty where
	// it takes none.
	UDP string
	// STUN is the host:port of the STUN server beside the relay, empty where there
	// is none. It is in Config.STUN, too.
	STUN string
}

// ErrInvalid is wrapped by every error of Validate.
var ErrInvalid = errors.New("config: invalid data-plane configuration")

// Validate reports what cannot be carried out: a missing key, rules made for
// another device, a route that a certificate does not have, two relays of one
// name, or two members that claim one key or address. The error wraps
// ErrInvalid.
func (c *Config) Validate() error {
	switch {
	case c.Self == nil || c.PrivateKey.IsZero():
		return fmt.Errorf("%w: no certificate or key of this device", ErrInvalid)
	case c.PrivateKey.Public() != c.Self.NodeKey():
		return fmt.Errorf("%w: the private key is not that of the certificate", ErrInvalid)
	case c.Rules != nil && c.Rules.Node() != c.Self.Node():
		return fmt.Errorf("%w: rules for %v on %v", ErrInvalid, c.Rules.Node(), c.Self.Node())
	case c.Candidate != nil && c.Candidate.Node() != c.Self.Node():
		return fmt.Errorf("%w: a candidate for %v on %v", ErrInvalid, c.Candidate.Node(), c.Self.Node())
	}
	for _, r := range c.Forward {
		if !slices.Contains(c.Self.Identity().Routes, r) {
			return fmt.Errorf("%w: this device is not approved to route %v", ErrInvalid, r)
		}
	}
	relays := make(map[string]bool)
	for _, r := range c.Relays {
		if r.Name == "" || r.URL == "" {
			return fmt.Errorf("%w: a relay without a name or a URL", ErrInvalid)
		}
		if relays[r.Name] {
			return fmt.Errorf("%w: two relays have the name %s", ErrInvalid, r.Name)
		}
		relays[r.Name] = true
	}
	keys := map[ident.NodeKey]string{c.Self.NodeKey(): c.Self.Name()}
	addresses := make(map[netip.Addr]string)
	for _, a := range c.Self.Identity().Addresses {
		addresses[a] = c.Self.Name()
	}
	for _, p := range c.Peers {
		if p.Member == nil {
			return fmt.Errorf("%w: a peer that was not admitted", ErrInvalid)
		}
		if other, taken := keys[p.Member.NodeKey()]; taken {
			return fmt.Errorf("%w: %s and %s have one key", ErrInvalid, other, p.Member.Name())
		}
		keys[p.Member.NodeKey()] = p.Member.Name()
		for _, r := range p.Routes {
			if !slices.Contains(p.Member.Identity().Routes, r) {
				return fmt.Errorf("%w: %s is not approved to route %v", ErrInvalid, p.Member.Name(), r)
			}
		}
		for _, a := range p.Member.Identity().Addresses {
			if other, taken := addresses[a]; taken {
				return fmt.Errorf("%w: %s and %s both claim %v", ErrInvalid, other, p.Member.Name(), a)
			}
			addresses[a] = p.Member.Name()
		}
	}
	return nil
}
