package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/warren-overlay/warren/netstack/router"
)

// underlay returns what dials, and looks names up, past the overlay: what the
// overlay needs must not go through it.
func underlay() *net.Dialer {
	return &net.Dialer{
		Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, Control: router.Control,
		Resolver: &net.Resolver{
			PreferGo: true,
			Dial:     (&net.Dialer{Timeout: 5 * time.Second, Control: router.Control}).DialContext,
		},
	}
}

// transport carries the requests of the control channel and of the relay. The
// proxies of the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) are honoured.
type transport struct {
	// secure is for https: net/http asks an HTTP proxy to CONNECT.
	secure *http.Transport
	// plain is for http. Both channels leave HTTP after one request, so that a
	// proxy that forwards requests is of no use, and it, too, is asked to CONNECT
	// (RFC 6455, section 4.1).
	plain *http.Transport
}

var _ http.RoundTripper = (*transport)(nil)

func newTransport() *transport {
	return makeTransport(http.ProxyFromEnvironment, underlay().DialContext)
}

// makeTransport keeps no connections for later, because there is only one.
func makeTransport(proxy func(*http.Request) (*url.URL, error), dial func(ctx context.Context, network, address string) (net.Conn, error)) *transport {
	base := func() *http.Transport {
		return &http.Transport{
			Proxy: proxy, DialContext: dial,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 15 * time.Second,
			MaxIdleConns:          1,
			IdleConnTimeout:       5 * time.Second,
		}
	}
	t := &transport{secure: base(), plain: base()}
	connects := func(u *url.URL) bool { return u != nil && (u.Scheme == "http" || u.Scheme == "https") }
	t.plain.Proxy = func(r *http.Request) (*url.URL, error) {
		u, err := proxy(r)
		if connects(u) {
			return nil, err // dialed below
		}
		return u, err
	}
	t.plain.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		u, err := proxy(&http.Request{URL: &url.URL{Scheme: "http", Host: address}})
		if err != nil {
			return nil, err
		}
		if !connects(u) {
			return dial(ctx, network, address)
		}
		return dialThrough(ctx, dial, u, address)
	}
	return t
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" {
		return t.plain.RoundTrip(r)
	}
	return t.secure.RoundTrip(r)
}

// CloseIdleConnections is called by http.Client.
func (t *transport) CloseIdleConnections() {
	t.secure.CloseIdleConnections()
	t.plain.CloseIdleConnections()
}

const (
	// connectTimeout bounds a proxy's answer, its own connecting included: as
	// long as for an answer that does not go through a proxy.
	connectTimeout = 15 * time.Second
	// maxConnectAnswer bounds the header that a proxy answers with; net/http
	// allows its own as much.
	maxConnectAnswer = 1 << 20
)

// errProxySpeaks means that a proxy sent more than the answer: nobody has asked
// the other end for anything yet.
var errProxySpeaks = errors.New("it goes on speaking after its answer")

// dialThrough connects to an address by CONNECT to an HTTP proxy (RFC 9110,
// section 9.3.6). The error says what the proxy answered.
func dialThrough(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), proxy *url.URL, address string) (net.Conn, error) {
	port := proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := dial(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("agent: connecting to the proxy %s: %w", proxy.Host, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	if proxy.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{ServerName: proxy.Hostname()})
	}
	err = connect(conn, proxy, address)
	if !stop() && err == nil {
		err = context.Cause(ctx) // the deadline is set, or about to be
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("agent: asking the proxy %s to connect to %s: %w", proxy.Host, address, err)
	}
	return conn, nil
}

func connect(conn net.Conn, proxy *url.URL, address string) error {
	request := &http.Request{
		Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address,
		Header: http.Header{"User-Agent": {"warren"}},
	}
	if user := proxy.User; user != nil {
		password, _ := user.Password()
		request.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := request.Write(conn); err != nil {
		return err
	}
	r := bufio.NewReader(io.LimitReader(conn, maxConnectAnswer))
	response, err := http.ReadResponse(r, request)
	if err != nil {
		return fmt.Errorf("reading its answer: %w", err)
	}
	if response.StatusCode/100 != 2 {
		response.Body.Close()
		return fmt.Errorf("it answers %q", response.Status)
	}
	if r.Buffered() > 0 {
		return errProxySpeaks
	}
	return nil
}
