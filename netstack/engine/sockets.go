package engine

import (
	"net/netip"

	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/wg"
)

// ListenFurther opens a port to guess a peer's with (Config.ListenFurther): IPv4
// only, since nothing is guessed in IPv6, and without coalescing, whose buffers of
// half a megabyte hundreds of sockets cannot have each. The error is sock.Listen's.
func ListenFurther() (sock.Conn, error) {
	return sock.Listen(sock.Config{Addresses: []netip.Addr{netip.IPv4Unspecified()}, DisableOffload: true})
}

// socket returns a further socket of p's that its agent wants to send by, and
// opens it first where it is not; nil where the agent wants it no more, or where it
// can not be opened.
func (c *control) socket(p *peer, number uint32) *wg.Socket {
	if s := p.sockets[number]; s != nil {
		return s
	}
	if kept, first, count := p.agent.Sockets(); number != kept && number-first >= count {
		return nil
	}
	s, err := c.device.OpenSocket(number, func(packet []byte, from netip.AddrPort) {
		c.e.post(datagram{from: from, socket: number}, packet)
	})
	if err != nil {
		c.stats.socketErrors++
		c.e.log.Debug("no further socket", "peer", p.member.Name(), "error", err)
		return nil
	}
	if p.sockets == nil {
		p.sockets = make(map[uint32]*wg.Socket)
	}
	p.sockets[number] = s
	return s
}

// closeSockets closes the sockets that p's agent does not want any more.
func (c *control) closeSockets(p *peer) {
	if len(p.sockets) == 0 {
		return
	}
	kept, first, count := p.agent.Sockets()
	for number, s := range p.sockets {
		if number != kept && number-first >= count {
			s.Close()
			delete(p.sockets, number)
		}
	}
}

// endSockets closes all sockets of a peer that is removed.
func (p *peer) endSockets() {
	for _, s := range p.sockets {
		s.Close()
	}
	p.sockets = nil
}

// setMapping tells p's agent what is known of the NAT in front of this machine. One
// that gives ports in a row has them predicted, which opening sockets would spoil.
func (p *peer) setMapping(c *control, r nat.Report) {
	public := r.Public4
	if r.MappingVaries == nat.Unknown || len(r.Predicted) > 0 {
		public = netip.AddrPort{}
	}
	p.agent.SetLocalMapping(public, r.MappingVaries == nat.Yes, c.now())
}
