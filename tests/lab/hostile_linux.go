package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

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
	// SayGone carries everything, and says with every packet that nobody is connected,
	// its sender and all other members.
	SayGone
	// SayRevoked ends a connection at its first packet, as if its admission had been
	// revoked.
	SayRevoked
)

// String returns the name.
func (m Mischief) String() string {
	return [...]string{"honest", "reorder", "duplicate", "replay", "swap source", "wrong peer", "corrupt", "drop data", "drop", "drop one way", "drop long", "say gone", "say revoked"}[m]
}

const (
	// honestPort is where the relay behind a HostileRelay listens, TCP, and
	// honestDatagramPort UDP.
	honestPort         = 8443
	honestDatagramPort = 8478
	// reordered is how many packets Reorder holds, remembered how many Replay has
	// to choose from.
	reordered = 8
	// longPacket is longer than what carries no more than a few words.
	longPacket = 500
	remembered = 2048
)

// HostileRelay is a relay whose operator is an enemy: a warren-relay, which admits
// nodes as every relay does, and in front of it what does as it likes with the
// frames and the datagrams. Nodes know nothing but the front.
type HostileRelay struct {
	*Relay
	// Frames and Datagrams count the packets that something was done to, by how
	// they were on their way to a node.
	Frames, Datagrams atomic.Int64

	mischief atomic.Int32
	t        testing.TB
	front    net.PacketConn // nil without datagrams
	mu       sync.Mutex     // protects conns and rand
	conns    []*hostileConn
	rand     *rand.Rand
}

// hostileConn is a node's connection.
type hostileConn struct {
	relay *HostileRelay
	node  *websocket.Conn
	ctx   context.Context

	mu        sync.Mutex // protects all below
	key       ident.NodeKey
	datagrams hostileBinding
	held      []carried // of Reorder
	past      []carried // for Replay
}

// HostileRelay starts a hostile relay on the host, as Relay does an honest one. It
// is honest at first.
func (h *Host) HostileRelay(t testing.TB, c *Coordinator, cfg RelayConfig) *HostileRelay {
	t.Helper()
	behind := netip.AddrPortFrom(h.V4, honestPort).String()
	r := &HostileRelay{
		Relay: h.newRelay(t, c, cfg, "http://"+behind, behind, netip.AddrPortFrom(h.V4, honestDatagramPort).String()),
		t:     t, rand: rand.New(rand.NewPCG(20, 20)),
	}
	r.Relay.Start()
	h.serveHTTPS(t, r)
	if cfg.Datagrams {
		r.front = h.ListenPacket(t, net.JoinHostPort(h.V4.String(), datagramPort))
		go r.serveDatagrams()
	}
	return r
}

// Do has the relay do something from now on.
func (r *HostileRelay) Do(m Mischief) {
	r.Frames.Store(0)
	r.Datagrams.Store(0)
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
	defer c.unbind()
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
			switch f.Type {
			case relay.FrameRecv:
				c.deliver(carried{bytes: bytes.Clone(frame), source: ident.NodeKey(frame[sourceAt:payloadAt])})
				continue
			case relay.FrameDatagrams:
				c.offered(f.Body)
			default:
			}
			c.node.Write(ctx, websocket.MessageBinary, frame)
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

// members returns the keys of all that are connected.
func (r *HostileRelay) members() (keys []ident.NodeKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		if _, key := c.binding(); c.ctx.Err() == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// say sends the connection's node a frame of the relay's own.
func (c *hostileConn) say(kind relay.FrameType, parts ...[]byte) {
	c.node.Write(c.ctx, websocket.MessageBinary, relay.AppendFrame(nil, kind, parts...))
}

func (r *HostileRelay) intN(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rand.IntN(n)
}

// carried is a packet on its way from the relay to a node: a FrameRecv, or a datagram.
type carried struct {
	bytes    []byte
	datagram bool
	source   ident.NodeKey // whose it is by the relay's word
}

// sourceAt and payloadAt are where the source and the payload of a FrameRecv are.
const (
	sourceAt  = 3
	payloadAt = sourceAt + ident.KeySize
)

// payload aliases the packet.
func (p carried) payload() []byte {
	if p.datagram {
		return p.bytes[relay.DatagramHeader:]
	}
	return p.bytes[payloadAt:]
}

func (p carried) clone() carried {
	p.bytes = bytes.Clone(p.bytes)
	return p
}

// write sends packets to the connection's node.
func (c *hostileConn) write(packets ...carried) {
	for _, p := range packets {
		if p.datagram && c.writeDatagram(p) {
			continue
		}
		frame := p.bytes
		if p.datagram { // of somebody who has datagrams, for somebody who has none
			frame = relay.AppendFrame(nil, relay.FrameRecv, p.source[:], p.payload())
		}
		c.node.Write(c.ctx, websocket.MessageBinary, frame)
	}
}

// deliver does to one packet for c's node what is to be done.
func (c *hostileConn) deliver(p carried) {
	r, mischief := c.relay, Mischief(c.relay.mischief.Load())
	out := []carried{p}
	c.mu.Lock()
	key := c.key
	if mischief != Reorder && len(c.held) > 0 {
		out, c.held = append(c.held, p), nil
	}
	if len(c.past) < remembered {
		c.past = append(c.past, p.clone())
	}
	past := c.past
	if mischief == Reorder {
		out, c.held = nil, append(c.held, p)
		if len(c.held) == reordered {
			slices.Reverse(c.held)
			out, c.held = c.held, nil
		}
	}
	c.mu.Unlock()
	done := true
	switch mischief {
	case Honest:
		done = false
	case Reorder:
	case Duplicate:
		out = append(out, p)
	case Replay:
		out = append(out, past[r.intN(len(past))].clone())
	case SwapSource:
		if o := r.other(c, p.source); o != nil {
			p.sayFrom(o)
		}
	case WrongPeer:
		out = nil
		if o := r.other(c, p.source); o != nil {
			o.write(p)
		}
	case Corrupt:
		payload := p.payload()
		payload[r.intN(len(payload))] ^= 1 << r.intN(8)
	case DropData, DropDataOneWay, DropLong:
		payload := p.payload()
		kind := binary.LittleEndian.Uint32(append(payload[:len(payload):len(payload)], 0, 0, 0, 0))
		done = kind >= 1 && kind <= 4 && (mischief != DropDataOneWay || bytes.Compare(key[:], p.source[:]) < 0) &&
			(mischief != DropLong || len(payload) > longPacket)
		if done {
			out = nil
		}
	case Drop:
		out = nil
	case SayGone:
		for _, gone := range append(r.members(), p.source) {
			c.say(relay.FramePeerGone, gone[:])
			c.say(relay.FramePeer, gone[:], []byte{0, 0, 0, 0})
		}
	case SayRevoked:
		out = nil
		c.say(relay.FrameReject, []byte{byte(relay.ReasonRevoked)})
	default:
		panic(fmt.Sprintf("BUG: lab: mischief %d", mischief))
	}
	if done && p.datagram {
		r.Datagrams.Add(1)
	} else if done {
		r.Frames.Add(1)
	}
	c.write(out...)
}
