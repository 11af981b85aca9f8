package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/coder/websocket"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
)

// Paths below a coordinator's base URL.
const (
	// ControlPath is where the channel is: a WebSocket of binary messages,
	// whose borders mean nothing.
	ControlPath = "/warren/v1/control"
	// GenesisPath is where the network's genesis record is, as
	// authority.DecodeGenesis reads it.
	GenesisPath = "/warren/v1/genesis"
	// RevocationsPath is where relays learn which node keys they must not admit
	// any longer, as authority.VerifyRelayRevocations reads it.
	RevocationsPath = "/warren/v1/relay-revocations"
)

// maxGenesis is the longest genesis record in bytes: 16 signers at 40 bytes
// and the rest fit three times over.
const maxGenesis = 4 << 10

// maxRevocations is the longest list of revoked keys in bytes: at 34 bytes a
// key, and the envelope.
const maxRevocations = authority.MaxRelayRevocations*34 + 1<<10

// DialConfig is what a node needs to know to reach its coordinator.
type DialConfig struct {
	// URL is the coordinator's base URL, http or https, with or without a
	// path below which it is served.
	URL string
	// HTTPClient is used to connect; nil is http.DefaultClient. It decides
	// about proxies and TLS. Its Timeout, where set, would end the channel
	// and must be zero.
	HTTPClient *http.Client

	Machine     ident.MachinePrivate
	Coordinator ident.ChannelKey
	Network     ident.Fingerprint
	// Rand gives 32 bytes for each handshake.
	Rand io.Reader
}

// Dial connects to a coordinator. The context bounds dialing and handshake
// only. The error wraps ErrHandshake where who answers is not the coordinator
// that cfg names.
func Dial(ctx context.Context, cfg DialConfig) (*Conn, error) {
	target, err := join(cfg.URL, ControlPath)
	if err != nil {
		return nil, err
	}
	ws, response, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: cfg.HTTPClient})
	if err != nil {
		if response != nil {
			return nil, fmt.Errorf("channel: %s answers %s where a coordinator has its control channel: %w", target, response.Status, err)
		}
		return nil, fmt.Errorf("channel: connecting to %s: %w", target, err)
	}
	return Client(ctx, newStream(context.WithoutCancel(ctx), ws), ClientConfig{
		Machine: cfg.Machine, Coordinator: cfg.Coordinator, Network: cfg.Network, Rand: cfg.Rand,
	})
}

// Accept answers a request for ControlPath and makes the channel. On error it
// has answered and closed. It waits no longer than the handshake timeout and
// the request's context.
//
// A browser's cross-origin request is refused, though it could do nothing
// without a machine key.
func Accept(w http.ResponseWriter, r *http.Request, cfg ServerConfig) (*Conn, error) {
	ws, err := websocket.Accept(w, r, nil)
	if err != nil {
		return nil, fmt.Errorf("channel: accepting: %w", err)
	}
	ctx := context.WithoutCancel(r.Context())
	return Server(ctx, newStream(ctx, ws), cfg)
}

// stream is a WebSocket as a stream of bytes. Its Close does not wait for the
// other side: that one may be dead, or hold on to what it has lost.
type stream struct {
	net.Conn
	ws *websocket.Conn
}

func newStream(ctx context.Context, ws *websocket.Conn) net.Conn {
	return &stream{Conn: websocket.NetConn(ctx, ws, websocket.MessageBinary), ws: ws}
}

// Close closes at once; a second call returns an error that tells so.
func (s *stream) Close() error { return s.ws.CloseNow() }

// FetchGenesis reads the genesis record from a coordinator's base URL and
// checks that it is the one that want names. A nil client is
// http.DefaultClient. The error wraps authority.ErrFingerprint where the
// coordinator serves another network, or somebody stands in between;
// authority.ErrMalformed; or is the HTTP client's.
func FetchGenesis(ctx context.Context, client *http.Client, baseURL string, want ident.Fingerprint) (*authority.Genesis, error) {
	body, err := fetch(ctx, client, baseURL, GenesisPath, maxGenesis)
	if err != nil {
		return nil, fmt.Errorf("fetching the genesis record: %w", err)
	}
	return authority.DecodeGenesis(body, want)
}

// FetchRevocations asks a coordinator for the node keys that relays must not
// admit any longer, and verifies the answer. How old it may be is the caller's
// to say. Errors are those of FetchGenesis and of
// authority.VerifyRelayRevocations.
func FetchRevocations(ctx context.Context, client *http.Client, baseURL string, g *authority.Genesis) (authority.RelayRevocations, error) {
	body, err := fetch(ctx, client, baseURL, RevocationsPath, maxRevocations)
	if err != nil {
		return authority.RelayRevocations{}, fmt.Errorf("fetching revocations: %w", err)
	}
	return authority.VerifyRelayRevocations(g, body)
}

// fetch returns what a coordinator has at a path.
func fetch(ctx context.Context, client *http.Client, baseURL, path string, limit int) ([]byte, error) {
	target, err := join(baseURL, path)
	if err != nil {
		return nil, err
	}
	if client == nil {
		client = http.DefaultClient
	}
	ctx, cancel := context.WithTimeout(ctx, 2*DefaultHandshakeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, fmt.Errorf("channel: asking the coordinator: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("channel: asking the coordinator: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("channel: %s answers %s; is it a Warren coordinator?", target, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("channel: asking the coordinator: %w", err)
	}
	if len(body) > limit {
		return nil, fmt.Errorf("%w: an answer of more than %d bytes", authority.ErrMalformed, limit)
	}
	return body, nil
}

// ErrURL is wrapped by the error for a base URL of no use.
var ErrURL = errors.New("channel: not the URL of a coordinator")

func join(base, path string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", fmt.Errorf("%w: %q; want something like http://host:8080", ErrURL, base)
	}
	return u.Scheme + "://" + u.Host + strings.TrimSuffix(u.EscapedPath(), "/") + path, nil
}
