package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/relay"
)

// Mischief is what a HostileRelay does to the packets that it carries.
type Mischief int32

const (
	// Honest: nothing.
	Honest Mischief = iota
	// Reorder delivers packets in the opposite order, eight at a time.
	Reorder
	// Duplicate delivers every packet twice.
	Duplicate
	// Replay delivers with every packet one of long ago.
	Replay
	// SwapSource says that every packet is another member's.
	SwapSource
	// WrongPeer delivers every packet to another member, and not to its own.
	WrongPeer
	// Corrupt changes a bit of every packet.
	Corrupt
	// DropData drops what is WireGuard's and carries the nodes' questions whether
	// the relay carries something.
	DropData
	// Drop carries nothing, and keeps the connections.
	Drop
	// DropDataOneWay is DropData for packets to the node with the lesser key of two.
	DropDataOneWay
	// DropLong is DropData for packets longer than longPacket.
	DropLong
)

// String returns the name.
func (m Mischief) String() string {
	return [...]string{"honest", "reorder", "duplicate", "replay", "swap source", "wrong peer", "corrupt", "drop data", "drop", "drop one way", "drop long"}[m]
}

const (
	// honestPort is where the relay behind a HostileRelay listens, TCP.
	honestPort = relayPort + 1
	// reordered is how many packets Reorder holds, remembered how many Replay has
	// to choose from.
	reordered = 8
	// longPacket is longer than what carries no more than a few words.
	longPacket = 500
	remembered = 2048
)

// HostileRelay is a relay whose operator is an enemy: a warren-relay, which admits
// nodes as every relay does, and in front of it what does as it likes with the
// frames. Nodes know nothing but the front.
type HostileRelay struct {
	*Relay
	// Done counts the packets that something was done to.
	Done atomic.Int64

	mischief atomic.Int32
	t        testing.TB
	mu       sync.Mutex // protects conns and rand
	conns    []*hostileConn
	rand     *rand.Rand
}

// hostileConn is a node's connection.
type hostileConn struct {
	relay *HostileRelay
	node  *websocket.Conn
	ctx   context.Context

	mu   sync.Mutex // protects all below
	key  ident.NodeKey
	held [][]byte // frames of Reorder
	past [][]byte // frames for Replay
}

// HostileRelay starts a hostile relay on the host, as Relay does an honest one. It
// is honest at first.
func (h *Host) HostileRelay(t testing.TB, c *Coordinator, name string) *HostileRelay {
	t.Helper()
	r := &HostileRelay{Relay: h.relayAt(t, c, name, honestPort), t: t, rand: rand.New(rand.NewPCG(20, 20))}
	l := h.Listen(t, netip.AddrPortFrom(h.V4, relayPort).String())
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return r
}

// Do has the relay do something from now on.
func (r *HostileRelay) Do(m Mischief) {
	r.Done.Store(0)
	r.mischief.Store(int32(m))
}

// ServeHTTP implements http.Handler: it puts a node through to the honest relay.
func (r *HostileRelay) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	protocol := []string{q.Header.Get("Sec-WebSocket-Protocol")}
	behind, _, err := websocket.Dial(ctx, "ws://"+netip.AddrPortFrom(r.Host.V4, honestPort).String()+q.URL.Path, &websocket.DialOptions{
		Subprotocols: protocol, CompressionMode: websocket.CompressionDisabled,
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: r.Host.Dial}},
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer behind.CloseNow()
	node, err := websocket.Accept(w, q, &websocket.AcceptOptions{Subprotocols: protocol, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return
	}
	defer node.CloseNow()
	behind.SetReadLimit(relay.MaxMessage)
	node.SetReadLimit(relay.MaxMessage)
	c := &hostileConn{relay: r, node: node, ctx: ctx}
	go func() {
		defer cancel()
		for {
			_, message, err := node.Read(ctx)
			if err != nil {
				return
			}
			// What a node says of itself in its hello; the relay behind checks it.
			if f, _, err := relay.Next(message); err == nil && f.Type == relay.FrameHello && len(f.Body) > ident.KeySize {
				c.enter(ident.NodeKey(f.Body[:ident.KeySize]))
			}
			if behind.Write(ctx, websocket.MessageBinary, message) != nil {
				return
			}
		}
	}()
	for {
		_, message, err := behind.Read(ctx)
		if err != nil {
			return
		}
		for rest := message; len(rest) > 0; {
			f, next, err := relay.Next(rest)
			if err != nil {
				return
			}
			frame := rest[:len(rest)-len(next)]
			rest = next
			if f.Type != relay.FrameRecv {
				c.write(frame)
				continue
			}
			c.deliver(frame)
		}
	}
}

// enter notes whose connection it is. It takes the place of an older one.
func (c *hostileConn) enter(key ident.NodeKey) {
	c.mu.Lock()
	c.key = key
	c.mu.Unlock()
	c.relay.mu.Lock()
	defer c.relay.mu.Unlock()
	kept := []*hostileConn{c}
	for _, other := range c.relay.conns {
		if other.ctx.Err() == nil && other.key != key {
			kept = append(kept, other)
		}
	}
	c.relay.conns = kept
}

func (c *hostileConn) write(frames ...[]byte) {
	for _, f := range frames {
		c.node.Write(c.ctx, websocket.MessageBinary, f)
	}
}

// other returns the connection of another member than c's and the given one, nil
// where there is none.
func (r *HostileRelay) other(c *hostileConn, not ident.NodeKey) *hostileConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.conns {
		if o != c && o.ctx.Err() == nil && o.key != not {
			return o
		}
	}
	return nil
}

func (r *HostileRelay) intN(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rand.IntN(n)
}

// sourceAt and payloadAt are where the source and the payload of a FrameRecv are.
const (
	sourceAt  = 3
	payloadAt = sourceAt + ident.KeySize
)

// deliver does to one FrameRecv for c's node what is to be done.
func (c *hostileConn) deliver(frame []byte) {
	r, mischief := c.relay, Mischief(c.relay.mischief.Load())
	frame = append([]byte(nil), frame...)
	out := [][]byte{frame}
	c.mu.Lock()
	if mischief != Reorder && len(c.held) > 0 {
		out, c.held = append(c.held, frame), nil
	}
	if len(c.past) < remembered {
		c.past = append(c.past, append([]byte(nil), frame...))
	}
	past, held := c.past, 0
	if mischief == Reorder {
		c.held = append(c.held, frame)
		if held = len(c.held); held == reordered {
			out = nil
			for i := range c.held {
				out = append(out, c.held[reordered-1-i])
			}
			c.held = nil
		} else {
			out = nil
		}
	}
	c.mu.Unlock()
	done := true
	switch mischief {
	case Honest:
		done = false
	case Reorder:
	case Duplicate:
		out = append(out, frame)
	case Replay:
		out = append(out, past[r.intN(len(past))])
	case SwapSource:
		if o := r.other(c, ident.NodeKey(frame[sourceAt:payloadAt])); o != nil {
			copy(frame[sourceAt:payloadAt], o.key[:])
		}
	case WrongPeer:
		out = nil
		if o := r.other(c, ident.NodeKey(frame[sourceAt:payloadAt])); o != nil {
			o.write(frame)
		}
	case Corrupt:
		frame[payloadAt+r.intN(len(frame)-payloadAt)] ^= 1 << r.intN(8)
	case DropData, DropDataOneWay, DropLong:
		kind := binary.LittleEndian.Uint32(append(frame[payloadAt:len(frame):len(frame)], 0, 0, 0, 0))
		done = kind >= 1 && kind <= 4 && (mischief != DropDataOneWay || bytes.Compare(c.key[:], frame[sourceAt:payloadAt]) < 0) &&
			(mischief != DropLong || len(frame) > payloadAt+longPacket)
		if done {
			out = nil
		}
	case Drop:
		out = nil
	default:
		panic(fmt.Sprintf("BUG: lab: mischief %d", mischief))
	}
	if done {
		r.Done.Add(1)
	}
	c.write(out...)
}
