package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// proxyServer is an HTTP proxy that answers CONNECT with a line and, where that
// is of success, connects.
func proxyServer(t *testing.T, answer string, asked chan<- *http.Request) *url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				r := bufio.NewReader(in)
				request, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				asked <- request
				io.WriteString(in, answer)
				if !strings.HasPrefix(answer, "HTTP/1.1 2") {
					return
				}
				out, err := net.Dial("tcp", request.Host)
				if err != nil {
					return
				}
				defer out.Close()
				go io.Copy(out, r)
				io.Copy(in, out)
			}()
		}
	}()
	return &url.URL{Scheme: "http", Host: l.Addr().String(), User: url.UserPassword("warren", "secret")}
}

// TestProxy: requests of both schemes go through the proxy of the environment by
// CONNECT, with its user; where there is none they go straight; and a refusal is
// an error that says who refuses what.
func TestProxy(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.Method) })
	plain, secure := httptest.NewServer(page), httptest.NewTLSServer(page)
	defer plain.Close()
	defer secure.Close()
	const connected = "HTTP/1.1 200 Connection established\r\n\r\n"
	for _, c := range []struct {
		name, target, answer string // no answer is no proxy
		want                 string // in the error
	}{
		{"http straight", plain.URL, "", ""},
		{"https straight", secure.URL, "", ""},
		{"http", plain.URL, connected, ""},
		{"https", secure.URL, connected, ""},
		{"any success", plain.URL, "HTTP/1.1 204 Fine\r\n\r\n", ""},
		{"http refused", plain.URL, "HTTP/1.1 403 Not to there\r\nContent-Length: 0\r\n\r\n", `it answers "403 Not to there"`},
		{"https refused", secure.URL, "HTTP/1.1 403 Not to there\r\nContent-Length: 0\r\n\r\n", "Not to there"},
		{"no HTTP", plain.URL, "SSH-2.0-OpenSSH\r\n", "reading its answer"},
		{"it closes", plain.URL, "\r", "reading its answer"},
		{"it speaks", plain.URL, "HTTP/1.1 200 Fine\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", errProxySpeaks.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := make(chan *http.Request, 8)
			var proxy *url.URL
			if c.answer != "" {
				proxy = proxyServer(t, c.answer, asked)
			}
			tr := makeTransport(func(*http.Request) (*url.URL, error) { return proxy, nil }, (&net.Dialer{}).DialContext)
			defer tr.CloseIdleConnections()
			roots := x509.NewCertPool()
			roots.AddCert(secure.Certificate())
			tr.secure.TLSClientConfig = &tls.Config{RootCAs: roots}
			response, err := (&http.Client{Transport: tr}).Get(c.target)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want one with %q", err, c.want)
				}
				if err != nil && strings.Contains(err.Error(), "secret") {
					t.Errorf("the password is in %q", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if text, err := io.ReadAll(response.Body); string(text) != "hello GET" {
				t.Errorf("%q, %v", text, err)
			}
			if proxy == nil {
				return
			}
			r := <-asked
			user, password, _ := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
			if r.Method != http.MethodConnect || !strings.HasSuffix(c.target, "//"+r.Host) || user != "warren" || password != "secret" {
				t.Errorf("%s %s by %s:%s", r.Method, r.Host, user, password)
			}
		})
	}
}

// TestProxyCancelled: a proxy that does not answer holds nobody up for longer
// than they wait.
func TestProxyCancelled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		bufio.NewReader(c).ReadString('\n') // it has been asked
		cancel()
		io.Copy(io.Discard, c)
	}()
	proxy := &url.URL{Scheme: "http", Host: l.Addr().String()}
	if _, err := dialThrough(ctx, (&net.Dialer{}).DialContext, proxy, "192.0.2.1:80"); err == nil {
		t.Error("connected")
	}
}
