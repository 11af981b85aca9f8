package userstack

import (
	"bytes"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxPacket is the longest that the length field of IPv4 can say.
const maxPacket = 1<<16 - 1

// coalescer gives packets to the stack and joins consecutive TCP segments of
// one connection on the way, which the stack then takes as one. Joined are only
// packets that carry data and differ in nothing but sequence number, IP
// identification, push flag, checksums and data. So nothing is lost that a
// header says: gvisor's own coalescing drops changes of the window, and stalls
// connections. The checksums of a joined packet are not made right, as nobody
// looks at them (see link.Capabilities).
type coalescer struct {
	dispatcher stack.NetworkDispatcher

	// The packet held back, to which others may be joined; first is nil for
	// none. It is flushed before anything else is delivered, so that the
	// order stays.
	first    *buffer.View // headers and data of the first packet
	data     buffer.Buffer
	headers  int    // length of the headers in first
	ip       int    // length of the IP header in them
	payload  int    // length of the data in first
	joined   int    // packets in data
	next     uint32 // sequence number that continues it
	complete bool   // nothing may follow
}

// deliver takes a copy of one packet. It returns false for what is no IP packet.
func (c *coalescer) deliver(packet []byte) bool {
	var protocol tcpip.NetworkProtocolNumber
	switch {
	case len(packet) >= header.IPv4MinimumSize && packet[0]>>4 == 4:
		protocol = ipv4.ProtocolNumber
	case len(packet) >= header.IPv6MinimumSize && packet[0]>>4 == 6:
		protocol = ipv6.ProtocolNumber
	default:
		return false
	}
	ip, headers, ok := coalescible(packet)
	if !ok {
		c.flush()
		c.pass(protocol, buffer.MakeWithData(packet))
		return true
	}
	if c.first != nil && c.continues(packet, ip, headers) {
		c.join(packet)
		return true
	}
	c.flush()
	c.first = buffer.NewViewWithData(packet)
	c.data = buffer.MakeWithView(c.first)
	c.ip, c.headers, c.payload, c.joined = ip, headers, len(packet)-headers, 1
	tcp := header.TCP(packet[ip:])
	c.next = tcp.SequenceNumber() + uint32(c.payload)
	c.complete = tcp.Flags()&header.TCPFlagPsh != 0
	return true
}

// coalescible reports whether packet may be joined with others, and the lengths
// of its IP header and of all its headers.
func coalescible(packet []byte) (ip, headers int, ok bool) {
	if packet[0]>>4 == 4 {
		v4 := header.IPv4(packet)
		ip = header.IPv4MinimumSize
		if v4.HeaderLength() != header.IPv4MinimumSize || v4.Protocol() != uint8(header.TCPProtocolNumber) ||
			int(v4.TotalLength()) != len(packet) || v4.More() || v4.FragmentOffset() != 0 {
			return 0, 0, false
		}
	} else {
		v6 := header.IPv6(packet)
		ip = header.IPv6MinimumSize
		if v6.NextHeader() != uint8(header.TCPProtocolNumber) || int(v6.PayloadLength())+header.IPv6MinimumSize != len(packet) {
			return 0, 0, false
		}
	}
	if len(packet) < ip+header.TCPMinimumSize {
		return 0, 0, false
	}
	tcp := header.TCP(packet[ip:])
	headers = ip + int(tcp.DataOffset())
	if headers < ip+header.TCPMinimumSize || headers >= len(packet) || tcp.Flags()&^header.TCPFlagPsh != header.TCPFlagAck {
		return 0, 0, false
	}
	return ip, headers, true
}

// continues reports whether a coalescible packet follows the one held back.
func (c *coalescer) continues(packet []byte, ip, headers int) bool {
	payload := len(packet) - headers
	if c.complete || ip != c.ip || headers != c.headers || payload > c.payload || int(c.data.Size())+payload > maxPacket {
		return false
	}
	held := c.first.AsSlice()
	tcp, heldTCP := packet[ip:headers], held[ip:headers]
	if header.TCP(tcp).SequenceNumber() != c.next ||
		!bytes.Equal(tcp[:4], heldTCP[:4]) || // ports
		!bytes.Equal(tcp[8:12], heldTCP[8:12]) || // acknowledgement
		!bytes.Equal(tcp[14:16], heldTCP[14:16]) || // window
		!bytes.Equal(tcp[20:], heldTCP[20:]) { // options
		return false
	}
	if ip == header.IPv4MinimumSize {
		return packet[1] == held[1] && // type of service
			bytes.Equal(packet[6:10], held[6:10]) && // flags, time to live, protocol
			bytes.Equal(packet[12:20], held[12:20]) // addresses
	}
	return bytes.Equal(packet[:4], held[:4]) && // traffic class, flow label
		bytes.Equal(packet[6:40], held[6:40]) // next header, hop limit, addresses
}

// join appends the data of a packet that continues the one held back.
func (c *coalescer) join(packet []byte) {
	payload := packet[c.headers:]
	_ = c.data.Append(buffer.NewViewWithData(payload))
	c.joined++
	c.next += uint32(len(payload))
	flags := header.TCP(packet[c.ip:]).Flags()
	if flags&header.TCPFlagPsh != 0 {
		tcp := header.TCP(c.first.AsSlice()[c.ip:])
		tcp.SetFlags(uint8(tcp.Flags() | header.TCPFlagPsh))
	}
	c.complete = len(payload) < c.payload || flags&header.TCPFlagPsh != 0
}

// flush delivers the packet held back.
func (c *coalescer) flush() {
	if c.first == nil {
		return
	}
	protocol := ipv4.ProtocolNumber
	if c.ip == header.IPv6MinimumSize {
		protocol = ipv6.ProtocolNumber
	}
	if c.joined > 1 {
		if c.ip == header.IPv4MinimumSize {
			header.IPv4(c.first.AsSlice()).SetTotalLength(uint16(c.data.Size()))
		} else {
			header.IPv6(c.first.AsSlice()).SetPayloadLength(uint16(int(c.data.Size()) - c.ip))
		}
	}
	data := c.data
	c.first, c.data = nil, buffer.Buffer{}
	c.pass(protocol, data)
}

// pass delivers a packet.
func (c *coalescer) pass(protocol tcpip.NetworkProtocolNumber, data buffer.Buffer) {
	packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: data})
	c.dispatcher.DeliverNetworkPacket(protocol, packet)
	packet.DecRef()
}
