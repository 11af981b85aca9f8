package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
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
	"syscall"
	"testing"
	"time"

	xproxy "golang.org/x/net/proxy"
)

var (
	serverAddr = netip.MustParseAddr("100.64.0.9")
	silentAddr = netip.MustParseAddr("100.64.0.66")
	deniedAddr = netip.MustParseAddr("100.64.0.77")
)

// overlay stands for the overlay: whatever is dialled at serverAddr goes to the
// host's loopback, silentAddr never answers, deniedAddr is refused by the rules,
// all others refuse.
type overlay struct{}

func (overlay) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp" {
		return nil, fmt.Errorf("dialled %s %q", network, address)
	}
	switch to.Addr() {
	case serverAddr:
		var d net.Dialer
		return d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", to.Port()))
	case silentAddr:
		<-ctx.Done()
		return nil, ctx.Err()
	case deniedAddr:
		return nil, fmt.Errorf("asked first: %w", &NotAllowedError{Reason: "no rule for tcp:80"})
	}
	return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
}

func (overlay) Resolve(_ context.Context, name string) ([]netip.Addr, error) {
	switch name {
	case "db.example":
		return []netip.Addr{netip.MustParseAddr("fd00::dead"), serverAddr}, nil
	case "evil.example":
		return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
	case "empty.example":
		return nil, nil
	}
	return nil, fmt.Errorf("asked for %q: %w", name, ErrUnknownName)
}

func testConfig() Config { return Config{Dialer: overlay{}, Resolver: overlay{}} }

// start runs a proxy and returns its address; the test ends it and checks that
// nothing is left.
func start(t *testing.T, newServer func(Config) (*Server, error), cfg Config) (*Server, string) {
	t.Helper()
	s, err := newServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), "0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if open := s.Stats().Open; open != 0 {
			t.Errorf("%d connections are open after Run", open)
		}
	})
	return s, l.Addr().String()
}

// echoService answers each connection with what it sent, after the end of it.
func echoService(t *testing.T) (port uint16) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				data, err := io.ReadAll(conn)
				if err == nil {
					conn.Write(append([]byte("re:"), data...))
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// talk sends through a tunnel, ends its side, and wants the answer.
func talk(t *testing.T, conn net.Conn, r io.Reader, payload string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, payload); err != nil {
		t.Fatal(err)
	}
	if err := closeWrite(conn); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "re:"+payload {
		t.Fatalf("%d bytes came back, want %d; %v", len(got), len(payload)+3, err)
	}
}

func TestSOCKSWithOrdinaryClient(t *testing.T) {
	s, addr := start(t, NewSOCKS, testConfig())
	port := echoService(t)
	dialer, err := xproxy.SOCKS5("tcp", addr, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{serverAddr.String(), "db.example", "DB.Example.", "::ffff:100.64.0.9"} {
		conn, err := dialer.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		talk(t, conn, conn, strings.Repeat("x", 1<<20))
		conn.Close()
	}
	for _, host := range []string{"8.8.8.8", "127.0.0.1", "169.254.169.254", "::1", "evil.example", "unknown.example"} {
		if conn, err := dialer.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port))); err == nil {
			conn.Close()
			t.Errorf("%s was dialled", host)
		}
	}
	if stats := s.Stats(); stats.Refused != 6 || stats.Accepted != 10 {
		t.Errorf("%+v", stats)
	}
}

// socksExchange sends raw bytes and returns all that comes back.
func socksExchange(t *testing.T, addr string, request ...byte) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write(request); err != nil {
		t.Fatal(err)
	}
	closeWrite(conn)
	got, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	return got
}

func TestSOCKSReplies(t *testing.T) {
	cfg := testConfig()
	cfg.DialTimeout = 20 * time.Millisecond
	_, addr := start(t, NewSOCKS, cfg)
	greeting := []byte{5, 1, 0}
	name := func(name string) []byte {
		return append(append([]byte{5, 1, 0, 3, byte(len(name))}, name...), 0, 80)
	}
	reply := func(rep socksReply) []byte { return []byte{5, 0, 5, byte(rep), 0, 1, 0, 0, 0, 0, 0, 0} }
	for _, tc := range []struct {
		name    string
		request []byte
		want    []byte
	}{
		{"other version", []byte{4, 1, 0}, nil},
		{"password only", []byte{5, 1, 2}, []byte{5, 0xff}},
		{"no methods", []byte{5, 0}, []byte{5, 0xff}},
		{"cut short", append(greeting, 5, 1, 0), []byte{5, 0, 5, 1, 0, 1, 0, 0, 0, 0, 0, 0}},
		{"BIND", append(greeting, 5, 2, 0, 1, 100, 64, 0, 9, 0, 80), reply(socksCommandUnsupported)},
		{"UDP ASSOCIATE", append(greeting, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0), reply(socksCommandUnsupported)},
		{"address type", append(greeting, 5, 1, 0, 2, 1, 2, 3, 4, 0, 80), reply(socksAddrTypeUnsupported)},
		{"port 0", append(greeting, 5, 1, 0, 1, 100, 64, 0, 9, 0, 0), reply(socksFailure)},
		{"empty name", append(greeting, name("")...), reply(socksFailure)},
		{"odd name", append(greeting, name("a b")...), reply(socksFailure)},
		{"not overlay", append(greeting, 5, 1, 0, 1, 8, 8, 8, 8, 0, 80), reply(socksNotAllowed)},
		{"name leads out", append(greeting, name("evil.example")...), reply(socksNotAllowed)},
		{"unknown name", append(greeting, name("unknown.example")...), reply(socksHostUnreachable)},
		{"name without address", append(greeting, name("empty.example")...), reply(socksHostUnreachable)},
		{"no rule", append(greeting, 5, 1, 0, 1, 100, 64, 0, 77, 0, 80), reply(socksNotAllowed)},
		{"refused", append(greeting, 5, 1, 0, 1, 100, 64, 0, 1, 0, 80), reply(socksConnectionRefused)},
		{"silent", append(greeting, 5, 1, 0, 1, 100, 64, 0, 66, 0, 80), reply(socksHostUnreachable)},
	} {
		if got := socksExchange(t, addr, bytes.Clone(tc.request)...); !bytes.Equal(got, tc.want) {
			t.Errorf("%s: got % x, want % x", tc.name, got, tc.want)
		}
	}
}

func httpClient(t *testing.T, addr string) *http.Client {
	transport := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: addr}),
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the test server's certificate names another host
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func TestHTTPWithOrdinaryClient(t *testing.T) {
	_, addr := start(t, NewHTTP, testConfig())
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, field := range []string{"X-Forwarded-For", "Forwarded", "Via", "Proxy-Connection", "Proxy-Authorization"} {
			if r.Header.Get(field) != "" {
				t.Errorf("the server saw %s: %s", field, r.Header.Get(field))
			}
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.URL, body)
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	client := httpClient(t, addr)
	for _, server := range []*httptest.Server{plain, secure} {
		u, _ := url.Parse(server.URL)
		for _, host := range []string{serverAddr.String(), "db.example"} {
			to := host + ":" + u.Port()
			resp, err := client.Post(u.Scheme+"://"+to+"/path?q=1", "text/plain", strings.NewReader("body"))
			if err != nil {
				t.Fatalf("%s %s: %v", u.Scheme, host, err)
			}
			got, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := "POST " + to + " /path?q=1 body"; string(got) != want {
				t.Errorf("%s %s: got %q, want %q", u.Scheme, host, got, want)
			}
		}
	}
}

// httpExchange sends raw bytes and returns the status and the body of the
// response.
func httpExchange(t *testing.T, addr, request string) (status int, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	go io.WriteString(conn, request) // the answer may come before the end of it
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.40q: %v", request, err)
	}
	defer resp.Body.Close()
	got, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(got)
}

func TestHTTPRefusals(t *testing.T) {
	cfg := testConfig()
	cfg.DialTimeout = 20 * time.Millisecond
	_, addr := start(t, NewHTTP, cfg)
	for _, tc := range []struct {
		name, request string
		status        int
		text          string
	}{
		{"origin form", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400, "Warren HTTP proxy"},
		{"https URI", "GET https://db.example/ HTTP/1.1\r\nHost: db.example\r\n\r\n", 400, "Warren HTTP proxy"},
		{"not overlay", "GET http://8.8.8.8/ HTTP/1.1\r\nHost: 8.8.8.8\r\n\r\n", 403, "not in the overlay"},
		{"metadata service", "GET http://169.254.169.254/latest HTTP/1.1\r\nHost: x\r\n\r\n", 403, "not in the overlay"},
		{"unknown name", "GET http://unknown.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 502, "no such name"},
		{"CONNECT not overlay", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", 403, "not in the overlay"},
		{"CONNECT without port", "CONNECT db.example HTTP/1.1\r\nHost: db.example\r\n\r\n", 400, "destination"},
		{"CONNECT odd port", "CONNECT db.example:http HTTP/1.1\r\nHost: db.example\r\n\r\n", 400, ""},
		{"CONNECT refused", "CONNECT 100.64.0.1:80 HTTP/1.1\r\nHost: 100.64.0.1:80\r\n\r\n", 502, "100.64.0.1"},
		{"CONNECT no rule", "CONNECT 100.64.0.77:80 HTTP/1.1\r\nHost: 100.64.0.77:80\r\n\r\n", 403, "not allowed by the rules: no rule for tcp:80\n"},
		{"GET no rule", "GET http://100.64.0.77/ HTTP/1.1\r\nHost: x\r\n\r\n", 403, "not allowed by the rules: no rule for tcp:80\n"},
		{"CONNECT silent", "CONNECT 100.64.0.66:80 HTTP/1.1\r\nHost: 100.64.0.66:80\r\n\r\n", 504, ""},
		{"long header", "GET http://db.example/ HTTP/1.1\r\nX: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n", 431, ""},
		{"garbage", "\x05\x01\x00\r\n\r\n", 400, ""},
	} {
		status, body := httpExchange(t, addr, tc.request)
		if status != tc.status || !strings.Contains(body, tc.text) {
			t.Errorf("%s: got %d %q, want %d …%s…", tc.name, status, body, tc.status, tc.text)
		}
	}
}

// TestCONNECTKeepsEarlyBytes sends data together with the request, and ends its
// side.
func TestCONNECTKeepsEarlyBytes(t *testing.T) {
	s, addr := start(t, NewHTTP, testConfig())
	port := echoService(t)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "CONNECT db.example:%d HTTP/1.1\r\nHost: x\r\n\r\nearly ", port)
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil || !strings.Contains(line, " 200 ") {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "late")
	closeWrite(conn)
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "re:early late" {
		t.Fatalf("%q, %v", got, err)
	}
	if stats := s.Stats(); stats.Refused+stats.Failed != 0 {
		t.Errorf("%+v", stats)
	}
}

func TestSilentClientIsCutOff(t *testing.T) {
	for name, newServer := range map[string]func(Config) (*Server, error){"SOCKS": NewSOCKS, "HTTP": NewHTTP} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.RequestTimeout = 10 * time.Millisecond
			_, addr := start(t, newServer, cfg)
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
		})
	}
}

func TestCapOnConnections(t *testing.T) {
	cfg := testConfig()
	cfg.MaxConnections = 1
	s, addr := start(t, NewSOCKS, cfg)
	first, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	first.SetDeadline(time.Now().Add(20 * time.Second))
	first.Write([]byte{5, 1, 0})
	if _, err := io.ReadFull(first, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	if got := socksExchange(t, addr); len(got) != 0 || s.Stats().Capped != 1 {
		t.Errorf("answer % x, %+v", got, s.Stats())
	}
}

// TestRunEnds cancels Run while connections wait for everything they can wait
// for.
func TestRunEnds(t *testing.T) {
	port := echoService(t)
	for name, newServer := range map[string]func(Config) (*Server, error){"SOCKS": NewSOCKS, "HTTP": NewHTTP} {
		t.Run(name, func(t *testing.T) {
			s, err := newServer(testConfig())
			if err != nil {
				t.Fatal(err)
			}
			l, err := Listen(t.Context(), "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx, l) }()
			requests := []string{
				"", "\x05\x01\x00", "\x05\x01\x00\x05\x01\x00\x01\x64\x40\x00\x42\x00\x50",
				string(append([]byte("\x05\x01\x00\x05\x01\x00\x01\x64\x40\x00\x09"), byte(port>>8), byte(port))),
			}
			if name == "HTTP" {
				requests = []string{
					"", "GET", "CONNECT 100.64.0.66:80 HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://100.64.0.66/ HTTP/1.1\r\nHost: x\r\n\r\n",
					fmt.Sprintf("CONNECT 100.64.0.9:%d HTTP/1.1\r\nHost: x\r\n\r\n", port),
				}
			}
			for i, request := range requests {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				io.WriteString(conn, request)
				if i == len(requests)-1 { // the tunnel stands
					if _, err := io.ReadFull(conn, []byte("answers")); err != nil {
						t.Fatal(err)
					}
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
			if stats := s.Stats(); stats.Open != 0 || stats.Accepted == 0 {
				t.Errorf("%+v", stats)
			}
		})
	}
}

func TestRunReportsBrokenListener(t *testing.T) {
	s, err := NewSOCKS(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), "0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Run(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}

func TestListenIsLoopbackByDefault(t *testing.T) {
	for _, address := range []string{"0", ":0", "127.0.0.1:0"} {
		l, err := Listen(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
			t.Errorf("Listen(%q) listens on %v", address, l.Addr())
		}
		l.Close()
	}
	if l, err := Listen(t.Context(), "a:b:c"); err == nil {
		l.Close()
		t.Error("a malformed address was accepted")
	}
}

func TestConfigErrors(t *testing.T) {
	for _, cfg := range []Config{{}, {Dialer: overlay{}, MaxConnections: -1}, {Dialer: overlay{}, DialTimeout: -1}} {
		if _, err := NewSOCKS(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func TestWithoutResolverNamesAreUnknown(t *testing.T) {
	cfg, err := Config{Dialer: overlay{}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.dial(t.Context(), destination{name: "db.example", port: 1}); !errors.Is(err, ErrUnknownName) {
		t.Error(err)
	}
}

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte{5, 1, 0, 5, 1, 0, 1, 100, 64, 0, 9, 0, 80})
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x0adb.example\x00\x50"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		if readSOCKSGreeting(r) != nil {
			return
		}
		to, err := readSOCKSRequest(r)
		if err != nil {
			return
		}
		checkDestination(t, to)
	})
}

func FuzzDestination(f *testing.F) {
	for _, s := range []string{"db.example:80", "[fd00::1]:443", "100.64.0.1:1", "[::ffff:1.2.3.4]:80", "[fe80::1%eth0]:80", "DB.:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if to, err := parseDestination(s); err == nil {
			checkDestination(t, to)
		} else if !errors.Is(err, ErrDestination) {
			t.Errorf("%q: %v is no ErrDestination", s, err)
		}
	})
}

// checkDestination wants exactly one of address and name, in its only form.
func checkDestination(t *testing.T, to destination) {
	if to.port == 0 || to.addr.IsValid() == (to.name != "") || to.addr.Is4In6() || to.addr.Zone() != "" ||
		to.name != strings.ToLower(to.name) || strings.ContainsAny(to.name, " /:%@\x00") {
		t.Errorf("%+v", to)
	}
}
