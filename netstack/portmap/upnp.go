package portmap

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"

	"github.com/warren-overlay/warren/netstack/nat"
)

const (
	// searchTime is how long devices have to answer a search, of which they are
	// told one second (MX).
	searchTime = 1500 * time.Millisecond
	// maxSearchReply bounds an answer to a search.
	maxSearchReply = 2 << 10
	// maxServices bounds the services of a device that are tried: a router has
	// one for each way out.
	maxServices = 4
	// maxPorts is how many ports outside are tried where one is taken.
	maxPorts = 4
	// firstPort and portRange are the ports that are tried: those above the
	// well-known ones, of which many routers map none.
	firstPort, portRange = 1024, 1<<16 - 1024
	// description is what the router's owner sees in its list.
	description = "warren"
)

// The error codes of WANIPConnection (UPnP IGD 2.0, section 2.5.16).
const (
	codeConflict      = 718 // somebody else has the port
	codePermanentOnly = 725 // leases have no end here
)

// connection is what all services of a router have that map ports.
type connection interface {
	AddPortMappingCtx(ctx context.Context, remoteHost string, external uint16, protocol string, internal uint16, client string, enabled bool, description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remoteHost string, external uint16, protocol string) error
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
}

// gatewayDevice is a service of a router that granted a mapping.
type gatewayDevice struct {
	gateway netip.Addr
	connection
}

// mapUPnP asks over UPnP: the device that granted last, where it is still the
// gateway, or the one that a search finds.
func (c *Client) mapUPnP(ctx context.Context, gateway netip.Addr, r nat.MapRequest) (nat.Grant, error) {
	if c.upnp != nil && c.upnp.gateway == gateway {
		if grant, err := c.addMapping(ctx, gateway, c.upnp, r); err == nil {
			return grant, nil
		}
	}
	c.upnp = nil
	location, err := c.search(ctx, "udp4", gateway, []netip.Addr{gateway, c.group}, searchFor, parseSearchReply)
	if err != nil {
		return nat.Grant{}, err
	}
	services, err := c.services(ctx, gateway, location)
	if err != nil {
		return nat.Grant{}, err
	}
	var failures []error
	for _, service := range services {
		grant, err := c.addMapping(ctx, gateway, service, r)
		if err == nil {
			c.upnp = &gatewayDevice{gateway, service}
			return grant, nil
		}
		failures = append(failures, err)
	}
	return nat.Grant{}, errors.Join(failures...)
}

// searchFor are what is searched for: gateways of both versions.
var searchFor = []string{"urn:schemas-upnp-org:device:InternetGatewayDevice:1", "urn:schemas-upnp-org:device:InternetGatewayDevice:2"}

// search returns where the gateway describes itself. It asks the gateway alone
// and, since some listen there only, the group of all devices; what others
// answer does not count.
func (c *Client) search(ctx context.Context, network string, gateway netip.Addr, ask []netip.Addr, targets []string, parse func([]byte, netip.Addr) (*url.URL, error)) (*url.URL, error) {
	lc := net.ListenConfig{Control: c.cfg.Control}
	conn, err := lc.ListenPacket(ctx, network, ":0")
	if err != nil {
		return nil, fmt.Errorf("portmap: searching for UPnP devices: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetReadDeadline(time.Now().Add(searchTime)); err != nil {
		return nil, fmt.Errorf("portmap: searching for UPnP devices: %w", err)
	}
	host := netip.AddrPortFrom(ssdpGroup, ssdpPort)
	if gateway.Is6() {
		host = netip.AddrPortFrom(ssdpGroup6, ssdpPort)
	}
	for _, to := range ask {
		if !to.IsValid() {
			continue
		}
		for _, target := range targets {
			request := "M-SEARCH * HTTP/1.1\r\nHOST: " + host.String() + "\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: " + target + "\r\n\r\n"
			// One that cannot be sent is as good as one without an answer.
			_, _ = conn.WriteTo([]byte(request), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, c.ssdpPort)))
		}
	}
	buf := make([]byte, maxSearchReply)
	for range maxAnswers {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			break // mostly the deadline
		}
		if sender, ok := from.(*net.UDPAddr); !ok || sender.AddrPort().Addr().Unmap() != gateway {
			continue
		}
		if location, err := parse(buf[:n], gateway); err == nil {
			return location, nil
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, errMute
}

// parseSearchReply returns where the device that answers is described: on the
// gateway itself, over plain HTTP.
func parseSearchReply(b []byte, gateway netip.Addr) (*url.URL, error) {
	location, err := parseLocation(b)
	if err != nil {
		return nil, err
	}
	if host, err := netip.ParseAddr(location.Hostname()); err != nil || host != gateway {
		return nil, fmt.Errorf("%w: %s", ErrElsewhere, strconv.Quote(location.Host))
	}
	return location, nil
}

// parseLocation returns where an answer says that its device is described: by
// plain HTTP, wherever it is.
func parseLocation(b []byte) (*url.URL, error) {
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: answer to a search: %w", ErrUPnP, err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: answer to a search: status %d", ErrUPnP, response.StatusCode)
	}
	location, err := url.Parse(response.Header.Get("Location"))
	if err != nil || location.Scheme != "http" || location.User != nil {
		return nil, fmt.Errorf("%w: answer to a search: no location over HTTP", ErrUPnP)
	}
	return location, nil
}

// services fetches a description and returns the services that map ports, the
// newer kinds first.
func (c *Client) services(ctx context.Context, gateway netip.Addr, location *url.URL) ([]connection, error) {
	client := c.httpClient(nil, only(gateway))
	body, err := fetchDescription(ctx, client, location)
	if err != nil {
		return nil, err
	}
	return parseDescription(body, location, gateway, client)
}

// fetchDescription fetches the description of a device.
func fetchDescription(ctx context.Context, client *http.Client, location *url.URL) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: fetching the description: %w", ErrUPnP, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w: fetching the description: %w", ErrUPnP, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: the description: status %d", ErrUPnP, response.StatusCode)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: fetching the description: %w", ErrUPnP, err)
	}
	return body, nil
}

// parseDescription returns the services that map ports of the device that is
// described, maxServices of them at most, and none that is not on the gateway.
func parseDescription(body []byte, location *url.URL, gateway netip.Addr, client *http.Client) ([]connection, error) {
	root := new(goupnp.RootDevice)
	if err := xml.Unmarshal(body, root); err != nil {
		return nil, fmt.Errorf("%w: the description: %w", ErrUPnP, err)
	}
	// URLBase is left out: it was dropped from UPnP 1.1, and could only lead
	// elsewhere.
	root.SetURLBase(location)
	var found []connection
	none := fmt.Errorf("%w: the gateway maps no ports", ErrUPnP)
	add := func(soap *soap.SOAPClient, service connection) {
		control := soap.EndpointURL
		if host, err := netip.ParseAddr(control.Hostname()); err != nil || host != gateway || control.Scheme != "http" {
			none = fmt.Errorf("%w: %s", ErrElsewhere, strconv.Quote(control.Host))
			return
		}
		if len(found) < maxServices {
			soap.HTTPClient = *client
			found = append(found, service)
		}
	}
	// An error means that there is none of the kind.
	if all, err := internetgateway2.NewWANIPConnection2ClientsFromRootDevice(root, location); err == nil {
		for _, s := range all {
			add(s.SOAPClient, s)
		}
	}
	if all, err := internetgateway2.NewWANIPConnection1ClientsFromRootDevice(root, location); err == nil {
		for _, s := range all {
			add(s.SOAPClient, s)
		}
	}
	if all, err := internetgateway2.NewWANPPPConnection1ClientsFromRootDevice(root, location); err == nil {
		for _, s := range all {
			add(s.SOAPClient, s)
		}
	}
	if len(found) == 0 {
		return nil, none
	}
	return found, nil
}

// addMapping asks one service: for the port of before or our own first, then for
// others where that is somebody else's.
func (c *Client) addMapping(ctx context.Context, gateway netip.Addr, service connection, r nat.MapRequest) (nat.Grant, error) {
	local, err := c.localAddress(ctx, gateway)
	if err != nil {
		return nat.Grant{}, err
	}
	text, err := service.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return nat.Grant{}, upnpError("asking for the address outside", err)
	}
	outside, err := netip.ParseAddr(text)
	if err != nil {
		return nat.Grant{}, fmt.Errorf("%w: the address outside is %s", ErrUPnP, strconv.Quote(text[:min(len(text), 40)]))
	}
	lifetime := r.Lifetime
	external := wish(r).Port()
	tried := []uint16{}
	for {
		err := service.AddPortMappingCtx(ctx, "", external, "UDP", r.Port, local.String(), true, description, uint32(lifetime/time.Second))
		switch code := upnpCode(err); {
		case err == nil:
			return nat.Grant{Protocol: nat.MapUPnP, Port: r.Port, External: netip.AddrPortFrom(outside, external), Lifetime: lifetime}, nil
		case code == codePermanentOnly && lifetime > 0:
			lifetime = 0
		case code == codeConflict && len(tried) < maxPorts:
			tried = append(tried, external)
			for slices.Contains(tried, external) {
				var raw [4]byte
				if _, err := io.ReadFull(c.cfg.Rand, raw[:]); err != nil {
					return nat.Grant{}, fmt.Errorf("portmap: drawing a port: %w", err)
				}
				external = uint16(firstPort + binary.BigEndian.Uint32(raw[:])%portRange)
			}
		default:
			return nat.Grant{}, upnpError("mapping a port", err)
		}
	}
}

// localAddress returns this machine's address towards the gateway.
func (c *Client) localAddress(ctx context.Context, gateway netip.Addr) (netip.Addr, error) {
	conn, local, err := c.dial(ctx, netip.Addr{}, netip.AddrPortFrom(gateway, c.ssdpPort))
	if err != nil {
		return netip.Addr{}, err
	}
	conn.Close()
	return local, nil
}

// releaseUPnP deletes a mapping at the device that granted it.
func (c *Client) releaseUPnP(ctx context.Context, g nat.Grant) error {
	if c.upnp == nil || c.upnp.gateway != g.Gateway {
		return fmt.Errorf("%w: the device that mapped the port is gone", ErrUPnP)
	}
	if err := c.upnp.DeletePortMappingCtx(ctx, "", g.External.Port(), "UDP"); err != nil {
		return upnpError("deleting a mapping", err)
	}
	return nil
}

// upnpCode returns the code of a device's refusal, 0 for any other error.
func upnpCode(err error) int {
	var fault *soap.SOAPFaultError
	if errors.As(err, &fault) {
		return fault.Detail.UPnPError.Errorcode
	}
	return 0
}

// maxErrorText bounds what of a device's words stands in an error.
const maxErrorText = 200

// upnpError describes an error without the device's own words where it refused,
// and bounded where not.
func upnpError(doing string, err error) error {
	if code := upnpCode(err); code != 0 {
		return fmt.Errorf("%w: %s: the gateway refuses with code %d", ErrUPnP, doing, code)
	}
	text := strconv.Quote(err.Error())
	return fmt.Errorf("%w: %s: %s", ErrUPnP, doing, text[:min(len(text), maxErrorText)])
}
