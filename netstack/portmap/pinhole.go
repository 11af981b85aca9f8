package portmap

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"

	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/pcp"
)

const (
	// shortestLifetime is what is asked for where a gateway refuses to close a
	// pinhole; it grants its own least then, such as two minutes (RFC 6887, section
	// 15).
	shortestLifetime = time.Second
	// codeNotAuthorized is PCP's NOT_AUTHORIZED (RFC 6887, section 7.4).
	codeNotAuthorized = 2
	// maxLease is the longest lease of a pinhole (UPnP WANIPv6FirewallControl:1,
	// section 2.4.1, A_ARG_TYPE_LeaseTime).
	maxLease = 24 * time.Hour
	// protocolUDP is UDP's number, as AddPinhole wants it.
	protocolUDP = 17
)

// ssdpGroup6 is where all UPnP devices of a link listen on IPv6 (UPnP Device
// Architecture 1.1, annex A).
var ssdpGroup6 = netip.MustParseAddr("ff02::c")

// searchFor6 are what is searched for on IPv6: the service itself, and the
// device of the kind that has it.
var searchFor6 = []string{"urn:schemas-upnp-org:service:WANIPv6FirewallControl:1", "urn:schemas-upnp-org:device:InternetGatewayDevice:2"}

// firewall is what is remembered of the gateway of the default route of IPv6.
type firewall struct {
	nonce nonce
	// location is where the gateway that granted last in UPnP describes itself, nil
	// for none.
	location *url.URL
}

// mapIPv6 asks the gateway of IPv6 to let in what comes to r.Internal.
func (c *Client) mapIPv6(ctx context.Context, r nat.MapRequest) (nat.Grant, error) {
	c.mu6.Lock()
	defer c.mu6.Unlock()
	gateway, err := c.cfg.Gateway6()
	if err != nil {
		return nat.Grant{}, err
	}
	if fresh, err := c.firewall.nonce.of(gateway, c.cfg.Rand); err != nil {
		return nat.Grant{}, err
	} else if fresh {
		c.firewall.location = nil
	}
	return firstGrant(ctx, gateway, r, c.openPCP, c.openUPnP)
}

// openPCP asks in PCP. There is no NAT-PMP for IPv6.
func (c *Client) openPCP(ctx context.Context, gateway netip.Addr, r nat.MapRequest) (nat.Grant, error) {
	conn, local, err := c.dial(ctx, r.Internal, netip.AddrPortFrom(gateway, c.pcpPort))
	if err != nil {
		return nat.Grant{}, err
	}
	defer conn.Close()
	wish := r.Wish
	if !wish.IsValid() {
		wish = netip.AddrPortFrom(netip.IPv6Unspecified(), r.Port)
	}
	m, err := askPCP(ctx, conn, local, pcp.Mapping{Nonce: c.firewall.nonce.value, Internal: r.Port, External: wish, Lifetime: r.Lifetime})
	if errors.Is(err, pcp.ErrVersion) {
		return nat.Grant{}, errMute
	}
	if err != nil {
		return nat.Grant{}, err
	}
	return nat.Grant{Protocol: nat.MapPCP, Port: m.Internal, External: m.External, Lifetime: m.Lifetime}, nil
}

// releaseIPv6 closes a pinhole.
func (c *Client) releaseIPv6(ctx context.Context, g nat.Grant) error {
	c.mu6.Lock()
	defer c.mu6.Unlock()
	if !c.firewall.nonce.isOf(g.Gateway) {
		return fmt.Errorf("%w: it is not the gateway any more that opened the pinhole", ErrNoGateway)
	}
	if g.Protocol == nat.MapUPnP {
		service, err := c.firewallService(ctx, g.Gateway, g.Internal)
		if err != nil {
			return err
		}
		if err := service.DeletePinholeCtx(ctx, g.Pinhole); err != nil {
			return upnpError("closing a pinhole", err)
		}
		return nil
	}
	conn, local, err := c.dial(ctx, g.Internal, netip.AddrPortFrom(g.Gateway, c.pcpPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	m := pcp.Mapping{Nonce: c.firewall.nonce.value, Internal: g.Port, External: g.External}
	_, err = askPCP(ctx, conn, local, m)
	var refused *pcp.RefusedError
	if !errors.As(err, &refused) || refused.Code != codeNotAuthorized {
		return err
	}
	// miniupnpd 2.3.1 forgets whose a pinhole is when it is renewed, and refuses to
	// close it; but it still changes when it ends.
	m.Lifetime = shortestLifetime
	if m, err = askPCP(ctx, conn, local, m); err != nil {
		return err
	}
	return fmt.Errorf("%w; it ends in %v instead", refused, m.Lifetime)
}

// openUPnP asks a device that controls an IPv6 firewall: the one that granted
// last, or the one that a search finds.
func (c *Client) openUPnP(ctx context.Context, gateway netip.Addr, r nat.MapRequest) (nat.Grant, error) {
	if c.firewall.location != nil {
		if grant, err := c.addPinhole(ctx, gateway, r); err == nil {
			return grant, nil
		}
	}
	var err error
	if c.firewall.location, err = c.search6(ctx, gateway); err != nil {
		return nat.Grant{}, err
	}
	grant, err := c.addPinhole(ctx, gateway, r)
	if err != nil {
		c.firewall.location = nil
	}
	return grant, err
}

// addPinhole asks for a pinhole; asked for again, the same one lasts longer
// (UPnP WANIPv6FirewallControl:1, section 2.6.3).
func (c *Client) addPinhole(ctx context.Context, gateway netip.Addr, r nat.MapRequest) (nat.Grant, error) {
	service, err := c.firewallService(ctx, gateway, r.Internal)
	if err != nil {
		return nat.Grant{}, err
	}
	lease := min(max(r.Lifetime, time.Second), maxLease)
	id, err := service.AddPinholeCtx(ctx, "", 0, r.Internal.String(), r.Port, protocolUDP, uint32(lease/time.Second))
	if err != nil {
		return nat.Grant{}, upnpError("opening a pinhole", err)
	}
	return nat.Grant{Protocol: nat.MapUPnP, Pinhole: id, Port: r.Port, External: netip.AddrPortFrom(r.Internal, r.Port), Lifetime: lease}, nil
}

// search6 returns where the gateway describes itself on IPv6.
func (c *Client) search6(ctx context.Context, gateway netip.Addr) (*url.URL, error) {
	to := []netip.Addr{gateway}
	if gateway.Zone() != "" && c.group.IsValid() {
		to = append(to, ssdpGroup6.WithZone(gateway.Zone()))
	}
	return c.search(ctx, "udp6", gateway, to, searchFor6, parseSearchReply6)
}

// parseSearchReply6 returns where the device that answers is described. It has
// several addresses and names one of them, whereas the gateway is often known by
// its link-local one; what is asked goes to the gateway whatever is named here
// (httpClient).
func parseSearchReply6(b []byte, _ netip.Addr) (*url.URL, error) {
	location, err := parseLocation(b)
	if err != nil {
		return nil, err
	}
	if host, err := netip.ParseAddr(location.Hostname()); err != nil || !host.Is6() || host.Is4In6() {
		return nil, fmt.Errorf("%w: %s", ErrElsewhere, strconv.Quote(location.Host))
	}
	return location, nil
}

// firewallService fetches the gateway's description and returns its service that
// opens pinholes; what is asked of it comes from the given address, since a
// gateway opens one for whoever asks only.
func (c *Client) firewallService(ctx context.Context, gateway, internal netip.Addr) (*internetgateway2.WANIPv6FirewallControl1, error) {
	if c.firewall.location == nil {
		return nil, fmt.Errorf("%w: the device that opened the pinhole is gone", ErrUPnP)
	}
	client := c.httpClient(&net.TCPAddr{IP: internal.AsSlice()}, func(to netip.AddrPort) (netip.AddrPort, error) {
		return netip.AddrPortFrom(gateway, to.Port()), nil
	})
	body, err := fetchDescription(ctx, client, c.firewall.location)
	if err != nil {
		return nil, err
	}
	return parseFirewall(body, c.firewall.location, client)
}

// parseFirewall returns the service of the described device that opens pinholes.
func parseFirewall(body []byte, location *url.URL, client *http.Client) (*internetgateway2.WANIPv6FirewallControl1, error) {
	root := new(goupnp.RootDevice)
	if err := xml.Unmarshal(body, root); err != nil {
		return nil, fmt.Errorf("%w: the description: %w", ErrUPnP, err)
	}
	root.SetURLBase(location)
	all, err := internetgateway2.NewWANIPv6FirewallControl1ClientsFromRootDevice(root, location)
	if err != nil || len(all) == 0 {
		return nil, fmt.Errorf("%w: the gateway opens no pinholes for IPv6", ErrUPnP)
	}
	service := all[0]
	if !sameServer(service.SOAPClient, location) {
		return nil, fmt.Errorf("%w: %s", ErrElsewhere, strconv.Quote(service.SOAPClient.EndpointURL.Host))
	}
	service.SOAPClient.HTTPClient = *client
	return service, nil
}

// sameServer reports whether a service is controlled where the device is
// described.
func sameServer(service *soap.SOAPClient, location *url.URL) bool {
	return service.EndpointURL.Scheme == "http" && service.EndpointURL.Host == location.Host
}
