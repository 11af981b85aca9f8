package portmap

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/pcp"
)

var (
	loopback6 = netip.IPv6Loopback()
	wanted6   = nat.MapRequest{ID: 1, Internal: loopback6, Port: 41641, Lifetime: 2 * time.Hour}
)

// client6 asks the gateway at ::1. There is none for IPv4.
func client6(pcpPort, ssdpPort uint16) *Client {
	c := New(Config{
		Gateway:  func() (netip.Addr, error) { return netip.Addr{}, ErrNoGateway },
		Gateway6: func() (netip.Addr, error) { return loopback6, nil }, Rand: rand.Reader,
	})
	c.pcpPort, c.ssdpPort, c.group = pcpPort, ssdpPort, netip.Addr{}
	return c
}

// grantPCP6 opens what a request asks for, as a firewall does.
func grantPCP6(request []byte) []byte {
	b := append([]byte{}, request...)
	b[1] |= 0x80
	copy(b[44:60], b[8:24])
	return b
}

// TestPinholePCP: the request comes from the address that is to be reached, and
// the same nonce renews and closes.
func TestPinholePCP(t *testing.T) {
	var mu sync.Mutex
	var lifetimes []uint32
	var nonces [][12]byte
	c := client6(responder(t, "[::1]:0", func(b []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		if !isPCP(b) || b[36] != 17 || [16]byte(b[8:24]) != loopback6.As16() || binary.BigEndian.Uint16(b[40:]) != 41641 {
			t.Errorf("request % x", b)
			return nil
		}
		lifetimes = append(lifetimes, binary.BigEndian.Uint32(b[4:]))
		nonces = append(nonces, [12]byte(b[24:36]))
		other := grantPCP6(b)
		other[30] ^= 1
		port := grantPCP6(b)
		port[40] ^= 1
		return [][]byte{{}, b, other, port, grantPCP6(b)}
	}), closed(t, "[::1]:0"))
	g, err := ask(t, c, wanted6)
	want := nat.Grant{Protocol: nat.MapPCP, Gateway: loopback6, Internal: loopback6, Port: 41641, External: netip.AddrPortFrom(loopback6, 41641), Lifetime: 2 * time.Hour}
	if err != nil || g != want {
		t.Fatalf("%+v, %v", g, err)
	}
	again := wanted6
	again.Wish = g.External
	if g, err = ask(t, c, again); err != nil || g != want {
		t.Errorf("%+v, %v", g, err)
	}
	if err := release(t, c, g); err != nil {
		t.Error(err)
	}
	mu.Lock()
	if !slices.Equal(lifetimes, []uint32{7200, 7200, 0}) || nonces[0] == [12]byte{} || nonces[0] != nonces[1] || nonces[1] != nonces[2] {
		t.Errorf("lifetimes %v, nonces %x", lifetimes, nonces)
	}
	mu.Unlock()

	// Another gateway gets another nonce, and cannot close what the first opened.
	c.cfg.Gateway6 = func() (netip.Addr, error) { return netip.MustParseAddr("::2"), nil }
	first := c.firewall.nonce.value
	ask(t, c, wanted6)
	if c.firewall.nonce.value == first {
		t.Error("two gateways know one nonce")
	}
	if err := release(t, c, g); !errors.Is(err, ErrNoGateway) {
		t.Errorf("closing at another gateway: %v", err)
	}
	if _, err := ask(t, c, wanted); !errors.Is(err, ErrNoGateway) {
		t.Errorf("IPv4, without a gateway: %v", err)
	}
}

// TestPinholeThatStays: a firewall that refuses to close a pinhole is asked to
// let it end soon.
func TestPinholeThatStays(t *testing.T) {
	var mu sync.Mutex
	var lifetimes []uint32
	c := client6(responder(t, "[::1]:0", func(b []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		lifetime := binary.BigEndian.Uint32(b[4:])
		lifetimes = append(lifetimes, lifetime)
		answer := grantPCP6(b)
		switch lifetime {
		case 0:
			answer[3] = codeNotAuthorized
		case 1:
			binary.BigEndian.PutUint32(answer[4:], 120)
		}
		return [][]byte{answer}
	}), closed(t, "[::1]:0"))
	g, err := ask(t, c, wanted6)
	if err != nil {
		t.Fatal(err)
	}
	var refused *pcp.RefusedError
	if err := release(t, c, g); !errors.As(err, &refused) || !strings.Contains(err.Error(), "ends in 2m0s instead") {
		t.Errorf("closing: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(lifetimes, []uint32{7200, 0, 1}) {
		t.Errorf("lifetimes %v", lifetimes)
	}
}

// TestPinholeRefused: what a firewall answers is what is said.
func TestPinholeRefused(t *testing.T) {
	refusing := func(code byte) uint16 {
		return responder(t, "[::1]:0", func(b []byte) [][]byte {
			answer := grantPCP6(b)
			answer[3] = code
			return [][]byte{answer}
		})
	}
	var refused *pcp.RefusedError
	if _, err := ask(t, client6(refusing(8), closed(t, "[::1]:0")), wanted6); !errors.As(err, &refused) || refused.Code != 8 {
		t.Error(err)
	}
	// A gateway that knows NAT-PMP alone cannot open IPv6.
	if _, err := ask(t, client6(refusing(1), closed(t, "[::1]:0")), wanted6); !errors.Is(err, ErrSilent) {
		t.Error(err)
	}
	if _, err := ask(t, client6(closed(t, "[::1]:0"), closed(t, "[::1]:0")), wanted6); !errors.Is(err, ErrSilent) {
		t.Error(err)
	}
	foreign := wanted6
	foreign.Internal = netip.MustParseAddr("2001:db8::1")
	if g, err := ask(t, client6(refusing(0), closed(t, "[::1]:0")), foreign); err == nil {
		t.Errorf("asked from an address that is not this machine's: %+v", g)
	}
}

const firewallDescription = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>1</minor></specVersion>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:2</deviceType><friendlyName>router</friendlyName>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:2</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:2</deviceType>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPv6FirewallControl:1</serviceType>
<serviceId>urn:upnp-org:serviceId:WANIPv6Firewall1</serviceId><controlURL>/ctl6</controlURL><eventSubURL>/evt6</eventSubURL><SCPDURL>/scpd6</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>`

// firewallRouter is a UPnP gateway at ::1 that opens pinholes; it calls itself by
// another address.
type firewallRouter struct {
	t           *testing.T
	server      *httptest.Server
	ssdpPort    uint16
	description string

	mu       sync.Mutex // protects the rest
	location string
	searches int
	opened   map[string]string // leases by id
	refuse   int               // code, 0 for none
}

func newFirewallRouter(t *testing.T) *firewallRouter {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &firewallRouter{t: t, description: firewallDescription, opened: map[string]string{}}
	r.server = httptest.NewUnstartedServer(r)
	r.server.Listener.Close()
	r.server.Listener = l
	r.server.Start()
	t.Cleanup(r.server.Close)
	r.location = fmt.Sprintf("http://[2001:db8::1]:%d/rootDesc.xml", l.Addr().(*net.TCPAddr).Port)
	r.ssdpPort = responder(t, "[::1]:0", func(b []byte) [][]byte {
		if !strings.HasPrefix(string(b), "M-SEARCH * HTTP/1.1\r\nHOST: [ff02::c]:1900\r\n") {
			return nil
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.searches++
		return [][]byte{[]byte("nonsense"), []byte("HTTP/1.1 200 OK\r\nLOCATION: " + r.location + "\r\nEXT:\r\n\r\n")}
	})
	return r
}

// ServeHTTP is the router's web server.
func (r *firewallRouter) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if request.URL.Path == "/rootDesc.xml" {
		io.WriteString(w, r.description)
		return
	}
	body, action, argument := readCall(request)
	if body == "" || request.URL.Path != "/ctl6" {
		http.NotFound(w, request)
		return
	}
	if r.refuse != 0 {
		fault(w, r.refuse)
		return
	}
	result := ""
	switch action {
	case "AddPinhole":
		if argument("InternalClient") != "::1" || argument("InternalPort") != "41641" || argument("Protocol") != "17" || argument("RemoteHost") != "" || argument("RemotePort") != "0" {
			r.t.Errorf("asks for %s", body)
		}
		r.opened["7"] = argument("LeaseTime")
		result = "<UniqueID>7</UniqueID>"
	case "DeletePinhole":
		delete(r.opened, argument("UniqueID"))
	default:
		r.t.Errorf("action %s", action)
	}
	fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:%[1]sResponse xmlns:u="urn:schemas-upnp-org:service:WANIPv6FirewallControl:1">%[2]s</u:%[1]sResponse></s:Body></s:Envelope>`, action, result)
}

// TestPinholeUPnP: the gateway itself is asked, whatever it calls itself, without
// another search to renew.
func TestPinholeUPnP(t *testing.T) {
	r := newFirewallRouter(t)
	c := client6(closed(t, "[::1]:0"), r.ssdpPort)
	want := nat.Grant{Protocol: nat.MapUPnP, Gateway: loopback6, Internal: loopback6, Pinhole: 7, Port: 41641, External: netip.AddrPortFrom(loopback6, 41641), Lifetime: 2 * time.Hour}
	g, err := ask(t, c, wanted6)
	if err != nil || g != want || r.opened["7"] != "7200" {
		t.Fatalf("%+v, %v, opened %v", g, err, r.opened)
	}
	searches := r.searches
	if g, err = ask(t, c, wanted6); err != nil || g != want || r.searches != searches {
		t.Errorf("renewed %+v, %v, %d searches", g, err, r.searches-searches)
	}
	if err := release(t, c, g); err != nil || len(r.opened) != 0 {
		t.Errorf("%v, opened %v", err, r.opened)
	}
	r.mu.Lock()
	r.refuse = 703
	r.mu.Unlock()
	if _, err := ask(t, c, wanted6); !errors.Is(err, ErrUPnP) || !strings.Contains(err.Error(), "code 703") {
		t.Errorf("refused: %v", err)
	}
	if err := release(t, c, g); !errors.Is(err, ErrUPnP) {
		t.Errorf("closing at a device that is forgotten: %v", err)
	}
}

// TestHostileFirewall has who stands in the gateway's place name others: nobody
// else is spoken to.
func TestHostileFirewall(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another machine was asked") }))
	defer elsewhere.Close()
	for _, c := range []struct {
		name, location, description string
		want                        error
	}{
		{"location over IPv4", elsewhere.URL + "/", "", ErrSilent},
		{"location over IPv4 in IPv6", strings.Replace(elsewhere.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1), "", ErrSilent},
		{"location by name", "http://localhost:1/", "", ErrSilent},
		{"location a file", "file:///etc/passwd", "", ErrSilent},
		{"location without a port", "http://[2001:db8::1]/", "", ErrUPnP},
		{"control elsewhere", "", strings.Replace(firewallDescription, "/ctl6", elsewhere.URL+"/ctl6", 1), ErrElsewhere},
		{"control on another port", "", strings.Replace(firewallDescription, "/ctl6", "http://[2001:db8::1]:22/ctl6", 1), ErrElsewhere},
		{"no firewall", "", rootDescription, ErrUPnP},
		{"no XML", "", "<html><body>Welcome<br></html>", ErrUPnP},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newFirewallRouter(t)
			r.mu.Lock()
			if c.location != "" {
				r.location = c.location
			}
			if c.description != "" {
				r.description = c.description
			}
			r.mu.Unlock()
			if g, err := ask(t, client6(closed(t, "[::1]:0"), r.ssdpPort), wanted6); !errors.Is(err, c.want) {
				t.Errorf("%+v, %v, want %v", g, err, c.want)
			}
		})
	}
}

// FuzzFirewallDescription reads any description: nothing panics, and no service
// is anywhere but where the description is.
func FuzzFirewallDescription(f *testing.F) {
	f.Add([]byte(firewallDescription))
	f.Add([]byte(strings.Replace(firewallDescription, "/ctl6", "http://[2001:db8::2]:5000/ctl6", 1)))
	location := &url.URL{Scheme: "http", Host: "[2001:db8::1]:5000", Path: "/"}
	f.Fuzz(func(t *testing.T, b []byte) {
		service, err := parseFirewall(b, location, http.DefaultClient)
		if (err == nil) != (service != nil) || err == nil && (service.SOAPClient.EndpointURL.Host != location.Host || service.SOAPClient.EndpointURL.Scheme != "http") {
			t.Errorf("%+v, %v", service, err)
		}
	})
}

// FuzzSearchReply6 reads any answer to a search on IPv6: what it names is an
// address of IPv6 that is reached over plain HTTP.
func FuzzSearchReply6(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://[2001:db8::1]:5000/rootDesc.xml\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://[::ffff:127.0.0.1]:5000/rootDesc.xml\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		location, err := parseSearchReply6(b, loopback6)
		if err != nil {
			return
		}
		if host, err := netip.ParseAddr(location.Hostname()); err != nil || !host.Is6() || host.Is4In6() || location.Scheme != "http" || location.User != nil {
			t.Errorf("%q leads to %v", b, location)
		}
	})
}
