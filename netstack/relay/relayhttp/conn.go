package relayhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/coder/websocket"

	"github.com/warren-overlay/warren/netstack/relay"
)

// Path is where a relay serves the protocol.
const Path = "/warren/v1/relay"

// Conn carries whole messages of the relay protocol, both ways. One goroutine
// may read while others write.
type Conn interface {
	// ReadMessage blocks until a message has come and returns it, in buf where
	// it fits. The error says that the connection is over; it is io.EOF where
	// the other side closed it in order.
	ReadMessage(ctx context.Context, buf []byte) ([]byte, error)
	// WriteMessage sends one message, which it neither changes nor keeps. An
	// error, the context's included, ends the connection.
	WriteMessage(ctx context.Context, message []byte) error
	// Close ends the connection at once and unblocks both. A second Close does
	// nothing.
	Close() error
}

// ErrMessage is returned by ReadMessage for a message that is not binary or
// larger than relay.MaxMessage.
var ErrMessage = errors.New("relayhttp: not a message of the relay protocol")

// subprotocol names the protocol in the WebSocket handshake. The relay
// protocol has versions of its own inside.
const subprotocol = "warren-relay"

// conn is a Conn over a WebSocket.
type conn struct {
	ws *websocket.Conn
	// binding is what both ends of TLS know; empty without.
	binding []byte
}

// exporterLabel and bindingSize make the keying material to which an admission
// is bound (RFC 9266 has the same for protocols that register one).
const (
	exporterLabel = "EXPORTER-warren-relay"
	bindingSize   = 32
)

// bindingOf returns what the two ends of a TLS connection know and nobody else
// does, empty where there is none: a proof for one connection is worth nothing
// on another.
func bindingOf(state *tls.ConnectionState) []byte {
	if state == nil {
		return nil
	}
	material, err := state.ExportKeyingMaterial(exporterLabel, nil, bindingSize)
	if err != nil {
		return nil // TLS 1.2 without extended master secret: nothing to bind to
	}
	return material
}

// Binding returns what relay.SessionConfig.Binding should be for a connection
// that Dial made, empty for nothing.
func Binding(c Conn) []byte {
	if c, ok := c.(*conn); ok {
		return c.binding
	}
	return nil
}

var _ Conn = (*conn)(nil)

// Dial connects to the relay with the ws or wss URL (http and https will do as
// well), as the system does by default. The error says what refused it.
func Dial(ctx context.Context, url string) (Conn, error) { return Dialer{}.Dial(ctx, url) }

// Dialer connects to relays.
type Dialer struct {
	// Client makes the HTTP request that becomes the WebSocket. Nil means
	// http.DefaultClient. It must have no time-out of its own.
	Client *http.Client
}

// Dial is like the function Dial.
func (d Dialer) Dial(ctx context.Context, url string) (Conn, error) {
	ws, response, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient:      d.Client,
		Subprotocols:    []string{subprotocol},
		CompressionMode: websocket.CompressionDisabled, // everything is sealed
		HTTPHeader:      http.Header{"User-Agent": {"warren"}},
	})
	if err != nil {
		if response != nil {
			return nil, fmt.Errorf("relayhttp: %s answered %s: %w", url, response.Status, err)
		}
		return nil, fmt.Errorf("relayhttp: connecting to %s: %w", url, err)
	}
	if ws.Subprotocol() != subprotocol {
		ws.CloseNow()
		return nil, fmt.Errorf("relayhttp: %s is no relay", url)
	}
	c := newConn(ws)
	c.binding = bindingOf(response.TLS)
	return c, nil
}

func newConn(ws *websocket.Conn) *conn {
	ws.SetReadLimit(relay.MaxMessage)
	return &conn{ws: ws}
}

// ReadMessage implements Conn.
func (c *conn) ReadMessage(ctx context.Context, buf []byte) ([]byte, error) {
	r, err := c.next(ctx)
	if err != nil {
		return nil, err
	}
	return readMessage(r, buf)
}

// next waits until a message begins to come, and returns what readMessage reads
// it from. The errors are ReadMessage's.
func (c *conn) next(ctx context.Context) (io.Reader, error) {
	kind, r, err := c.ws.Reader(ctx)
	if err != nil {
		return nil, readError(err)
	}
	if kind != websocket.MessageBinary {
		return nil, ErrMessage
	}
	return r, nil
}

// readMessage reads the rest of a message, into buf where it fits.
func readMessage(r io.Reader, buf []byte) ([]byte, error) {
	buf = buf[:0]
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return nil, readError(err)
		}
	}
}

func readError(err error) error {
	switch {
	case errors.Is(err, websocket.ErrMessageTooBig):
		return ErrMessage
	case websocket.CloseStatus(err) == websocket.StatusNormalClosure, websocket.CloseStatus(err) == websocket.StatusGoingAway:
		return io.EOF
	}
	return fmt.Errorf("relayhttp: reading: %w", err)
}

// WriteMessage implements Conn.
func (c *conn) WriteMessage(ctx context.Context, message []byte) error {
	if err := c.ws.Write(ctx, websocket.MessageBinary, message); err != nil {
		return fmt.Errorf("relayhttp: writing: %w", err)
	}
	return nil
}

// Close implements Conn.
func (c *conn) Close() error { return c.ws.CloseNow() }
