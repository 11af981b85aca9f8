package portmap

import (
	"context"
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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/pcp"
)

var (
	loopback = netip.MustParseAddr("127.0.0.1")
	outside  = netip.MustParseAddr("5.5.0.1")
	wanted   = nat.MapRequest{ID: 1, Port: 41641, Lifetime: 2 * time.Hour}
)

// patience bounds a request to a gateway: all waits of all protocols, and a slow
// machine.
const patience = 30 * time.Second

// ipv4 is where gateways of IPv4 listen in tests, each on a port of its own.
const ipv4 = "127.0.0.1:0"

// responder is one UDP port of a gateway; answer returns what it sends back.
func responder(t *testing.T, address string, answer func(request []byte) [][]byte) uint16 {
	t.Helper()
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, b := range answer(buf[:n]) {
				conn.WriteTo(b, from)
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// closed is a port at which nobody listens.
func closed(t *testing.T, address string) uint16 {
	t.Helper()
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// client asks the gateway on the loopback interface.
func client(pcpPort, ssdpPort uint16) *Client {
	c := New(Config{Gateway: func() (netip.Addr, error) { return loopback, nil }, Rand: rand.Reader})
	c.pcpPort, c.ssdpPort, c.group = pcpPort, ssdpPort, netip.Addr{}
	return c
}

func ask(t *testing.T, c *Client, r nat.MapRequest) (nat.Grant, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return c.Map(ctx, r)
}

func release(t *testing.T, c *Client, g nat.Grant) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return c.Release(ctx, g)
}

// grantPCP answers a MAP request as a gateway would, with the port outside.
func grantPCP(request []byte, external uint16) []byte {
	b := append([]byte{}, request[:60]...)
	b[1] |= 0x80
	b[3] = 0
	binary.BigEndian.PutUint16(b[42:], external)
	raw := outside.As16()
	copy(b[44:], raw[:])
	return b
}

func isPCP(b []byte) bool { return len(b) == 60 && b[0] == 2 && b[1] == 1 }

func TestPCP(t *testing.T) {
	var mu sync.Mutex
	var lifetimes []uint32
	c := client(responder(t, ipv4, func(b []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		if !isPCP(b) || b[36] != 17 || [4]byte(b[20:24]) != loopback.As4() {
			t.Errorf("request % x", b)
			return nil
		}
		lifetimes = append(lifetimes, binary.BigEndian.Uint32(b[4:]))
		other := append([]byte{}, grantPCP(b, 1)...)
		other[30] ^= 1 // of another nonce
		port := append([]byte{}, grantPCP(b, 2)...)
		port[40] ^= 1 // of another port of ours
		return [][]byte{{}, {1, 2, 3}, b, other, port, grantPCP(b, binary.BigEndian.Uint16(b[42:]))}
	}), closed(t, ipv4))
	g, err := ask(t, c, wanted)
	want := nat.Grant{Protocol: nat.MapPCP, Gateway: loopback, Port: 41641, External: netip.AddrPortFrom(outside, 41641), Lifetime: 2 * time.Hour}
	if err != nil || g != want {
		t.Fatalf("%+v, %v", g, err)
	}
	again := wanted
	again.Wish = netip.AddrPortFrom(outside, 7000)
	if g, err = ask(t, c, again); err != nil || g.External.Port() != 7000 {
		t.Errorf("%+v, %v", g, err)
	}
	if err := release(t, c, g); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(lifetimes) != 3 || lifetimes[0] != 7200 || lifetimes[2] != 0 {
		t.Errorf("lifetimes %v", lifetimes)
	}
}

// TestPCPNonceStays: a gateway that is not the one of the moment any more is not
// told the nonce of the one that is.
func TestPCPNonceStays(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	c := client(responder(t, ipv4, func(b []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return [][]byte{grantPCP(b, 41641)}
	}), closed(t, ipv4))
	g, err := ask(t, c, wanted)
	if err != nil {
		t.Fatal(err)
	}
	first := c.nonce.value
	c.cfg.Gateway = func() (netip.Addr, error) { return netip.MustParseAddr("127.0.0.2"), nil } // where nobody listens
	if _, err := ask(t, c, wanted); err == nil || c.nonce.value == first {
		t.Fatalf("%v, and two gateways know one nonce: %v", err, c.nonce.value == first)
	}
	if err := release(t, c, g); !errors.Is(err, ErrNoGateway) {
		t.Errorf("releasing at another gateway: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if asked != 1 {
		t.Errorf("the first gateway was asked %d times", asked)
	}
}

// TestNATPMP: a gateway that does not know PCP says so, and is asked again.
func TestNATPMP(t *testing.T) {
	var mu sync.Mutex
	deleted := 0
	c := client(responder(t, ipv4, func(b []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case isPCP(b):
			return [][]byte{{0, 0x81, 0, 1, 0, 0, 0, 9}}
		case len(b) == 2:
			return [][]byte{{0, 0x80, 0, 0, 0, 0, 0, 9, 5, 5, 0, 1}}
		case len(b) == 12 && b[1] == 1:
			if binary.BigEndian.Uint32(b[8:]) == 0 {
				deleted++
			}
			wrong := []byte{0, 0x81, 0, 0, 0, 0, 0, 9, b[4], b[5] ^ 1, 0, 9, 0, 0, 0, 60}
			right := append([]byte{0, 0x81, 0, 0, 0, 0, 0, 9, b[4], b[5]}, 0x20, 0, 0, 0, 0x0e, 0x10)
			return [][]byte{wrong, right}
		}
		t.Errorf("request % x", b)
		return nil
	}), closed(t, ipv4))
	g, err := ask(t, c, wanted)
	want := nat.Grant{Protocol: nat.MapNATPMP, Gateway: loopback, Port: 41641, External: netip.AddrPortFrom(outside, 0x2000), Lifetime: time.Hour}
	if err != nil || g != want {
		t.Fatalf("%+v, %v", g, err)
	}
	if err := release(t, c, g); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if deleted != 1 {
		t.Errorf("deleted %d times", deleted)
	}
}

// router is a UPnP gateway; override answers before it does.
type router struct {
	t        *testing.T
	server   *httptest.Server
	ssdpPort uint16
	override func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex // protects the rest
	location string     // of its description
	mappings map[string]string
	// permanent has it refuse leases that end, taken are ports that are
	// somebody else's.
	permanent bool
	taken     map[string]bool
	external  string
}

const rootDescription = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>router</friendlyName>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><controlURL>/ctl</controlURL><eventSubURL>/evt</eventSubURL><SCPDURL>/scpd</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>`

func newRouter(t *testing.T) *router {
	t.Helper()
	r := &router{t: t, mappings: map[string]string{}, taken: map[string]bool{}, external: outside.String()}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	r.location = r.server.URL + "/rootDesc.xml"
	r.ssdpPort = responder(t, ipv4, func(b []byte) [][]byte {
		if !strings.HasPrefix(string(b), "M-SEARCH * HTTP/1.1\r\n") {
			return nil // of a test beside this one, whose closed port this was
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return [][]byte{
			[]byte("nonsense"),
			[]byte("HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: " + r.location + "\r\nEXT:\r\n\r\n"),
		}
	})
	return r
}

// readCall reads a call of UPnP: all of it, the action, and the arguments by name.
func readCall(request *http.Request) (body, action string, argument func(name string) string) {
	raw, err := io.ReadAll(request.Body)
	if err != nil {
		return "", "", nil
	}
	body = string(raw)
	_, action, _ = strings.Cut(strings.Trim(request.Header.Get("SOAPAction"), `"`), "#")
	return body, action, func(name string) string {
		_, rest, _ := strings.Cut(body, "<"+name+">")
		value, _, _ := strings.Cut(rest, "</"+name+">")
		return value
	}
}

// ServeHTTP is the router's web server.
func (r *router) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	override := r.override
	r.mu.Unlock()
	if override != nil && override(w, request) {
		return
	}
	if request.URL.Path == "/rootDesc.xml" {
		io.WriteString(w, rootDescription)
		return
	}
	body, action, argument := readCall(request)
	if body == "" || request.URL.Path != "/ctl" {
		http.NotFound(w, request)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	result := ""
	switch action {
	case "GetExternalIPAddress":
		result = "<NewExternalIPAddress>" + r.external + "</NewExternalIPAddress>"
	case "AddPortMapping":
		port := argument("NewExternalPort")
		if argument("NewInternalClient") != loopback.String() || argument("NewInternalPort") != "41641" || argument("NewProtocol") != "UDP" || argument("NewRemoteHost") != "" {
			r.t.Errorf("asks for %s", body)
		}
		switch {
		case r.taken[port]:
			fault(w, 718)
			return
		case r.permanent && argument("NewLeaseDuration") != "0":
			fault(w, 725)
			return
		}
		r.mappings[port] = argument("NewLeaseDuration")
	case "DeletePortMapping":
		delete(r.mappings, argument("NewExternalPort"))
	default:
		r.t.Errorf("action %s", action)
	}
	fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:%[1]sResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">%[2]s</u:%[1]sResponse></s:Body></s:Envelope>`, action, result)
}

func fault(w http.ResponseWriter, code int) {
	w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>no</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`, code)
}

func TestUPnP(t *testing.T) {
	r := newRouter(t)
	r.taken["41641"] = true
	c := client(closed(t, ipv4), r.ssdpPort)
	g, err := ask(t, c, wanted)
	if err != nil || g.Protocol != nat.MapUPnP || g.Gateway != loopback || g.Port != 41641 || g.External.Addr() != outside || g.External.Port() < firstPort || g.External.Port() == 41641 || g.Lifetime != 2*time.Hour {
		t.Fatalf("%+v, %v", g, err)
	}
	if lease := r.mappings[fmt.Sprint(g.External.Port())]; lease != "7200" || len(r.mappings) != 1 {
		t.Errorf("mappings %v", r.mappings)
	}
	// A renewal asks the same device for the same port, without a search.
	r.mu.Lock()
	r.location, r.permanent = "http://192.0.2.1/", true
	r.mu.Unlock()
	again := wanted
	again.Wish = g.External
	renewed, err := ask(t, c, again)
	if err != nil || renewed.External != g.External || renewed.Lifetime != 0 {
		t.Errorf("%+v, %v", renewed, err)
	}
	if err := release(t, c, renewed); err != nil || len(r.mappings) != 0 {
		t.Errorf("%v, mappings %v", err, r.mappings)
	}
}

// TestEveryPortTaken: it ends, and says so.
func TestEveryPortTaken(t *testing.T) {
	r := newRouter(t)
	asked := 0
	r.override = func(w http.ResponseWriter, request *http.Request) bool {
		if strings.Contains(request.Header.Get("SOAPAction"), "AddPortMapping") {
			asked++
			fault(w, 718)
			return true
		}
		return false
	}
	_, err := ask(t, client(closed(t, ipv4), r.ssdpPort), wanted)
	if !errors.Is(err, ErrUPnP) || !strings.Contains(err.Error(), "code 718") || asked != 1+maxPorts {
		t.Errorf("after %d: %v", asked, err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	c := client(closed(t, ipv4), closed(t, ipv4))
	began := time.Now()
	if _, err := ask(t, c, wanted); !errors.Is(err, ErrSilent) {
		t.Error(err)
	}
	mute := func([]byte) [][]byte { return nil }
	c = client(responder(t, ipv4, mute), responder(t, ipv4, mute))
	if _, err := ask(t, c, wanted); !errors.Is(err, ErrSilent) {
		t.Error(err)
	}
	if d := time.Since(began); d > patience {
		t.Errorf("took %v", d)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := c.Map(ctx, wanted); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("cancelled: %v", err)
	}
	c = New(Config{Gateway: func() (netip.Addr, error) { return netip.Addr{}, ErrNoGateway }, Rand: rand.Reader})
	if _, err := ask(t, c, wanted); !errors.Is(err, ErrNoGateway) {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	c := client(responder(t, ipv4, func(b []byte) [][]byte {
		answer := grantPCP(b, 1)
		answer[3] = 2 // not authorized
		return [][]byte{answer}
	}), closed(t, ipv4))
	var refused *pcp.RefusedError
	if _, err := ask(t, c, wanted); !errors.As(err, &refused) || refused.Code != 2 {
		t.Error(err)
	}
	c = client(responder(t, ipv4, func(b []byte) [][]byte {
		if len(b) == 2 {
			return [][]byte{{0, 0x80, 0, 3, 0, 0, 0, 9}}
		}
		return [][]byte{{0, 0x81, 0, 1, 0, 0, 0, 9}}
	}), closed(t, ipv4))
	if _, err := ask(t, c, wanted); !errors.As(err, &refused) || !refused.NATPMP || refused.Code != 3 {
		t.Error(err)
	}
}

// TestHostileRouter has the gateway, or who stands in its place, do its worst.
// Each time there is no grant, soon, and nobody else is spoken to.
func TestHostileRouter(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("another machine was asked")
	}))
	defer elsewhere.Close()
	other, err := url.Parse(elsewhere.URL)
	if err != nil {
		t.Fatal(err)
	}
	otherHost := "127.0.0.2:" + other.Port() // loopback all the same, and not the gateway
	endless := func(w http.ResponseWriter, r *http.Request, chunk string) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	}
	describe := func(description string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/rootDesc.xml" {
				return false
			}
			io.WriteString(w, description)
			return true
		}
	}
	soap := func(answer string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/ctl" {
				return false
			}
			io.WriteString(w, answer)
			return true
		}
	}
	for _, c := range []struct {
		name     string
		location string
		override func(w http.ResponseWriter, r *http.Request) bool
		want     error
	}{
		{"location elsewhere", "http://" + otherHost + "/", nil, ErrSilent},
		{"location by name", "http://localhost:1/", nil, ErrSilent},
		{"location a file", "file:///etc/passwd", nil, ErrSilent},
		{"location over TLS", "https://127.0.0.1:1/", nil, ErrSilent},
		{"redirect", "", func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://"+otherHost+"/", http.StatusFound)
			return true
		}, ErrUPnP},
		{"control elsewhere", "", describe(strings.Replace(rootDescription, "/ctl", "http://"+otherHost+"/ctl", 1)), ErrElsewhere},
		{"base elsewhere", "", func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/rootDesc.xml" {
				io.WriteString(w, strings.Replace(rootDescription, "<device>", "<URLBase>http://"+otherHost+"/</URLBase><device>", 1))
				return true
			}
			fault(w, 501) // asked here, not there
			return true
		}, ErrUPnP},
		{"no services", "", describe(`<root xmlns="urn:schemas-upnp-org:device-1-0"><device></device></root>`), ErrUPnP},
		{"no XML", "", describe("<html><body>Welcome<br></html>"), ErrUPnP},
		{"nested without end", "", describe(strings.Repeat("<a>", maxDescription/4)), ErrUPnP},
		{"nested devices", "", describe(`<root xmlns="urn:schemas-upnp-org:device-1-0">` + strings.Repeat("<device><deviceList>", 5000)), ErrUPnP},
		{"entities", "", describe(`<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]>` + strings.Replace(rootDescription[21:], "router", "&b;&b;", 1)), ErrUPnP},
		{"endless description", "", func(w http.ResponseWriter, r *http.Request) bool { endless(w, r, rootDescription); return true }, ErrUPnP},
		{"endless answer", "", func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/ctl" {
				return false
			}
			endless(w, r, "<s:Envelope>")
			return true
		}, ErrUPnP},
		{"endless header", "", func(w http.ResponseWriter, r *http.Request) bool {
			for i := range 5000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), "aaaaaaaaaa")
			}
			return true
		}, ErrUPnP},
		{"compressed", "", func(w http.ResponseWriter, r *http.Request) bool {
			if got := r.Header.Get("Accept-Encoding"); got != "" {
				t.Errorf("accepts %q", got)
			}
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "\x1f\x8b\x08")
			return true
		}, ErrUPnP},
		{"no address", "", soap(`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:GetExternalIPAddressResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewExternalIPAddress>` + strings.Repeat("x", 10_000) + `</NewExternalIPAddress></u:GetExternalIPAddressResponse></s:Body></s:Envelope>`), ErrUPnP},
		{"no answer in the answer", "", soap("<a/>"), ErrUPnP},
		{"not found", "", func(w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true }, ErrUPnP},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t)
			r.mu.Lock()
			r.override = c.override
			if c.location != "" {
				r.location = c.location
			}
			r.mu.Unlock()
			g, err := ask(t, client(closed(t, ipv4), r.ssdpPort), wanted)
			if !errors.Is(err, c.want) {
				t.Errorf("%+v, %v, want %v", g, err, c.want)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

// TestDatagramsWithoutEnd: a flood of answers that say nothing ends.
func TestDatagramsWithoutEnd(t *testing.T) {
	flood := func(b []byte) [][]byte {
		out := make([][]byte, 200)
		for i := range out {
			out[i] = append([]byte{2, 0x81}, b...)
		}
		return out
	}
	if _, err := ask(t, client(responder(t, ipv4, flood), responder(t, ipv4, flood)), wanted); !errors.Is(err, ErrSilent) {
		t.Error(err)
	}
}

// FuzzDescription reads any description: nothing panics, and no service is
// anywhere but at the gateway.
func FuzzDescription(f *testing.F) {
	f.Add([]byte(rootDescription))
	f.Add([]byte(strings.Replace(rootDescription, "/ctl", "http://192.0.2.1/ctl", 1)))
	f.Add([]byte(`<root xmlns="urn:schemas-upnp-org:device-1-0"><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><controlURL>//x/</controlURL></service></serviceList></device></root>`))
	location := &url.URL{Scheme: "http", Host: "127.0.0.1:5000", Path: "/"}
	f.Fuzz(func(t *testing.T, b []byte) {
		services, err := parseDescription(b, location, loopback, http.DefaultClient)
		if (err == nil) != (len(services) > 0) || len(services) > maxServices {
			t.Errorf("%d services, %v", len(services), err)
		}
	})
}

// FuzzSearchReply reads any answer to a search: a location is on the gateway.
func FuzzSearchReply(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://127.0.0.1:5000/rootDesc.xml\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://127.0.0.1@192.0.2.1/\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nLOCATION: http://[::ffff:127.0.0.1]/\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		location, err := parseSearchReply(b, loopback)
		if err == nil && (location.Hostname() != "127.0.0.1" || location.Scheme != "http" || location.User != nil) {
			t.Errorf("%q leads to %v", b, location)
		}
	})
}
