package userstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segmenter turns what the stack sends into packets. Most are packets already;
// a TCP segment may be as long as an IP packet can be, and is cut into segments
// of the connection's size here. To hand long segments down once costs the stack
// far less than to make each one.
type segmenter struct {
	packet *stack.PacketBuffer // what is being cut, nil for nothing
	parts  [][]byte            // what is left of it, after the headers

	// The rest is about a TCP segment; size is zero for any other packet.
	size    int // payload of each segment but the last
	left    int // payload not yet written
	headers [header.IPv6MinimumSize + header.TCPHeaderMaximumSize]byte
	length  int    // of headers
	ip      int    // of the IP header in them
	index   uint16 // of the next segment
	seq     uint32 // of the next segment
	sum     uint16 // checksum of the pseudo header without the length
}

// begin takes over a reference to packet; the previous one must be done.
func (s *segmenter) begin(packet *stack.PacketBuffer) {
	s.packet, s.parts, s.size = packet, packet.AsSlices(), 0
	gso := packet.GSOOptions
	if gso.Type != stack.GSOTCPv4 && gso.Type != stack.GSOTCPv6 {
		return
	}
	// The headers of a packet that the stack made are what it says they are:
	// IP without options or extensions, then TCP.
	s.ip = copy(s.headers[:], packet.NetworkHeader().Slice())
	s.length = s.ip + copy(s.headers[s.ip:], packet.TransportHeader().Slice())
	s.left = packet.Size() - s.length
	s.size = int(gso.MSS)
	if s.size == 0 || s.left < s.size {
		s.size = max(s.left, 1)
	}
	s.index = 0
	s.seq = header.TCP(s.headers[s.ip:s.length]).SequenceNumber()
	network := packet.Network()
	s.sum = header.PseudoHeaderChecksum(header.TCPProtocolNumber, network.SourceAddress(), network.DestinationAddress(), 0)
	s.skip(s.length)
}

// skip forgets the first n bytes of parts.
func (s *segmenter) skip(n int) {
	for n > 0 && n >= len(s.parts[0]) {
		n -= len(s.parts[0])
		s.parts = s.parts[1:]
	}
	if n > 0 {
		s.parts[0] = s.parts[0][n:]
	}
}

// next writes a packet to dst, returns its length, and whether it was the last.
// What does not fit into dst is cut off.
func (s *segmenter) next(dst []byte) (n int, last bool) {
	if s.size == 0 {
		for _, part := range s.parts {
			n += copy(dst[n:], part)
		}
		s.end()
		return n, true
	}
	payload := min(s.size, s.left)
	if len(dst) < s.length+payload {
		s.end()
		return 0, true
	}
	dst = dst[:s.length+payload]
	copy(dst, s.headers[:s.length])
	for at := s.length; at < len(dst); {
		n := copy(dst[at:], s.parts[0])
		s.skip(n)
		at += n
	}
	s.left -= payload
	last = s.left == 0
	s.finish(dst, last)
	s.index++
	s.seq += uint32(payload)
	if last {
		s.end()
	}
	return len(dst), last
}

// finish makes the copied headers those of one segment.
func (s *segmenter) finish(packet []byte, last bool) {
	if ip := packet[:s.ip]; ip[0]>>4 == 4 {
		v4 := header.IPv4(ip)
		v4.SetTotalLength(uint16(len(packet)))
		v4.SetID(v4.ID() + s.index)
		v4.SetChecksum(0)
		v4.SetChecksum(^v4.CalculateChecksum())
	} else {
		header.IPv6(ip).SetPayloadLength(uint16(len(packet) - s.ip))
	}
	tcp := header.TCP(packet[s.ip:s.length])
	flags := tcp.Flags()
	if !last {
		flags &^= header.TCPFlagFin | header.TCPFlagPsh
	}
	if s.index > 0 {
		flags &^= header.TCPFlagCwr // RFC 3168 §6.1.2: once
	}
	tcp.SetFlags(uint8(flags))
	tcp.SetSequenceNumber(s.seq)
	tcp.SetChecksum(0)
	var length [2]byte
	binary.BigEndian.PutUint16(length[:], uint16(len(packet)-s.ip))
	sum := checksum.Checksum(length[:], s.sum)
	tcp.SetChecksum(^checksum.Checksum(packet[s.ip:], sum))
}

// end gives the packet back.
func (s *segmenter) end() {
	if s.packet != nil {
		s.packet.DecRef()
	}
	s.packet, s.parts = nil, nil
}
