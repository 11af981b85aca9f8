package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/pcp"
)

var (
	// pcpWaits are the waits for an answer, after each of which the request is
	// sent again. RFC 6887, section 8.1.1 begins with 3 s, for gateways that are
	// far away; one in the local network answers within milliseconds, and a busy one
	// is not to take a repetition for a renewal (releaseIPv6).
	pcpWaits = []time.Duration{time.Second, time.Second}
	// natpmpWaits are shorter: who does not answer PCP answers NAT-PMP seldom.
	natpmpWaits = []time.Duration{250 * time.Millisecond, 250 * time.Millisecond}
)

// mapPCP asks in PCP and, where the gateway does not know it, in NAT-PMP.
func (c *Client) mapPCP(ctx context.Context, gateway netip.Addr, r nat.MapRequest) (nat.Grant, error) {
	conn, local, err := c.dial(ctx, netip.Addr{}, netip.AddrPortFrom(gateway, c.pcpPort))
	if err != nil {
		return nat.Grant{}, err
	}
	defer conn.Close()
	m, err := askPCP(ctx, conn, local, pcp.Mapping{Nonce: c.nonce.value, Internal: r.Port, External: wish(r), Lifetime: r.Lifetime})
	if err == nil {
		return nat.Grant{Protocol: nat.MapPCP, Port: m.Internal, External: m.External, Lifetime: m.Lifetime}, nil
	}
	if !errors.Is(err, pcp.ErrVersion) && !errors.Is(err, errMute) {
		return nat.Grant{}, err
	}
	var outside netip.Addr
	err = exchange(ctx, conn, pcp.AppendNATPMPAddress(nil), natpmpWaits, func(b []byte) (bool, error) {
		var err error
		outside, err = pcp.ParseNATPMPAddress(b)
		return settle(err)
	})
	if errors.Is(err, pcp.ErrVersion) {
		return nat.Grant{}, errMute // whatever it speaks, it is neither
	}
	if err != nil {
		return nat.Grant{}, err
	}
	m, err = askNATPMP(ctx, conn, pcp.Mapping{Internal: r.Port, External: wish(r), Lifetime: r.Lifetime})
	if err != nil {
		return nat.Grant{}, err
	}
	return nat.Grant{
		Protocol: nat.MapNATPMP, Port: m.Internal, External: netip.AddrPortFrom(outside, m.External.Port()), Lifetime: m.Lifetime,
	}, nil
}

// wish is what to wish for outside: what was before, or this device's own port.
func wish(r nat.MapRequest) netip.AddrPort {
	if r.Wish.IsValid() {
		return r.Wish
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), r.Port)
}

// settle says what the error of a parser means for an exchange: bytes that are
// no answer are passed over.
func settle(err error) (bool, error) {
	if errors.Is(err, pcp.ErrMalformed) {
		return false, nil
	}
	return true, err
}

func askPCP(ctx context.Context, conn *net.UDPConn, local netip.Addr, want pcp.Mapping) (pcp.Mapping, error) {
	var got pcp.Mapping
	err := exchange(ctx, conn, pcp.AppendMap(nil, local, want), pcpWaits, func(b []byte) (bool, error) {
		m, err := pcp.ParseMap(b)
		if err == nil && (m.Nonce != want.Nonce || m.Internal != want.Internal) {
			return false, nil // about another mapping
		}
		got = m
		return settle(err)
	})
	return got, err
}

func askNATPMP(ctx context.Context, conn *net.UDPConn, want pcp.Mapping) (pcp.Mapping, error) {
	var got pcp.Mapping
	err := exchange(ctx, conn, pcp.AppendNATPMPMap(nil, want), pcpWaits, func(b []byte) (bool, error) {
		m, err := pcp.ParseNATPMPMap(b)
		if err == nil && m.Internal != want.Internal {
			return false, nil
		}
		got = m
		return settle(err)
	})
	return got, err
}

// releasePCP deletes a mapping: a lifetime of zero does. One of PCP that another
// gateway granted is left to end, as this one's nonce is not for it to learn.
func (c *Client) releasePCP(ctx context.Context, g nat.Grant) error {
	if g.Protocol == nat.MapPCP && !c.nonce.isOf(g.Gateway) {
		return fmt.Errorf("%w: it is not the gateway any more that mapped the port", ErrNoGateway)
	}
	conn, local, err := c.dial(ctx, netip.Addr{}, netip.AddrPortFrom(g.Gateway, c.pcpPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	if g.Protocol == nat.MapNATPMP {
		_, err = askNATPMP(ctx, conn, pcp.Mapping{Internal: g.Port})
	} else {
		_, err = askPCP(ctx, conn, local, pcp.Mapping{Nonce: c.nonce.value, Internal: g.Port})
	}
	return err
}
