package lab

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/stun"
)

// hostileBinding is what the front of a hostile relay knows of a node's datagrams.
type hostileBinding struct {
	// number and tag are what the relay offered the node, both 0 for nothing.
	number, tag uint32
	// node is where the node sends from, behind what goes to the relay in its name.
	node   netip.AddrPort
	behind net.Conn
}

// headerOf returns the two parts of a relay's datagram: the tag of the node's
// connection, and the number of the other member.
func headerOf(datagram []byte) (tag, number uint32) {
	return binary.BigEndian.Uint32(datagram) & 0xffffff, binary.BigEndian.Uint32(datagram[4:])
}

// setHeader replaces both.
func setHeader(datagram []byte, tag, number uint32) {
	kind := uint32(datagram[0])
	binary.BigEndian.PutUint32(datagram, kind<<24|tag)
	binary.BigEndian.PutUint32(datagram[4:], number)
}

// offered notes a FrameDatagrams.
func (c *hostileConn) offered(body []byte) {
	if len(body) != 7 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.datagrams.number = binary.BigEndian.Uint32(body)
	c.datagrams.tag = binary.BigEndian.Uint32(body[3:]) & 0xffffff
}

// unbind ends a connection's datagrams.
func (c *hostileConn) unbind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.datagrams.behind != nil {
		c.datagrams.behind.Close()
	}
}

// binding returns a copy of what is known.
func (c *hostileConn) binding() (hostileBinding, ident.NodeKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.datagrams, c.key
}

// find returns the connection of which something holds, nil for none.
func (r *HostileRelay) find(holds func(hostileBinding) bool) *hostileConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		if b, _ := c.binding(); c.ctx.Err() == nil && holds(b) {
			return c
		}
	}
	return nil
}

// serveDatagrams puts the nodes' datagrams through to the honest relay, until the test
// ends. That a node sends from is told by the tag, of which each connection has its
// own.
func (r *HostileRelay) serveDatagrams() {
	buffer := make([]byte, 2048)
	for {
		n, from, err := r.front.ReadFrom(buffer)
		if err != nil {
			return
		}
		datagram, node := buffer[:n], from.(*net.UDPAddr).AddrPort()
		if answer, ok := stun.Respond(nil, datagram, node); ok {
			r.front.WriteTo(answer, from)
			continue
		}
		if !relay.IsDatagram(datagram) {
			continue
		}
		tag, _ := headerOf(datagram)
		c := r.find(func(b hostileBinding) bool { return b.number != 0 && b.tag == tag })
		if c == nil {
			continue // of a connection that is over
		}
		if behind := c.bind(node); behind != nil {
			behind.Write(datagram)
		}
	}
}

// bind notes where the node sends from, and returns what goes to the relay in its
// name, nil where there is none.
func (c *hostileConn) bind(node netip.AddrPort) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.datagrams.node = node
	if c.datagrams.behind == nil {
		to := netip.AddrPortFrom(c.relay.Host.V4, honestDatagramPort).String()
		behind, err := c.relay.Host.Dial(c.ctx, "udp", to)
		if err != nil {
			return nil // the connection is over
		}
		c.datagrams.behind = behind
		go c.serveBehind(behind)
	}
	return c.datagrams.behind
}

// serveBehind takes what the relay sends to the node, until the connection is over.
func (c *hostileConn) serveBehind(behind net.Conn) {
	buffer := make([]byte, 2048)
	for {
		n, err := behind.Read(buffer)
		if err != nil {
			if c.ctx.Err() != nil {
				return
			}
			continue // that nobody listens there: the relay was killed
		}
		p := carried{bytes: append([]byte(nil), buffer[:n]...), datagram: true}
		if !relay.IsDatagramPacket(p.bytes) || n <= relay.DatagramHeader {
			c.writeDatagram(p)
			continue
		}
		_, number := headerOf(p.bytes)
		if source := c.relay.find(func(b hostileBinding) bool { return b.number == number }); source != nil {
			_, p.source = source.binding()
		}
		c.deliver(p)
	}
}

// sayFrom has a packet come from another member by the relay's word.
func (p carried) sayFrom(other *hostileConn) {
	b, key := other.binding()
	if !p.datagram {
		copy(p.bytes[sourceAt:payloadAt], key[:])
		return
	}
	tag, _ := headerOf(p.bytes)
	setHeader(p.bytes, tag, b.number)
}

// writeDatagram sends a datagram to the connection's node, as of this connection, and
// reports whether the node has datagrams.
func (c *hostileConn) writeDatagram(p carried) bool {
	b, _ := c.binding()
	if !b.node.IsValid() {
		return false
	}
	_, number := headerOf(p.bytes)
	setHeader(p.bytes, b.tag, number)
	c.relay.front.WriteTo(p.bytes, net.UDPAddrFromAddrPort(b.node))
	return true
}
