package packet

import "slices"

// slowParse says what Parse must say, read off the RFCs field by field, with no
// regard for speed: every field is cut out of a string of bits.
func slowParse(b []byte) (Info, Fault) {
	var i Info
	if len(b) == 0 {
		return i, Truncated
	}
	bits := func(from, n int) uint64 {
		var v uint64
		for k := from; k < from+n; k++ {
			v = v<<1 | uint64(b[k/8]>>(7-k%8)&1)
		}
		return v
	}
	address := func(from, n int) Address {
		if n == 32 {
			return Address{0, 0xffff<<32 | bits(from, 32)}
		}
		return Address{bits(from, 64), bits(from+64, 64)}
	}
	switch bits(0, 4) {
	case 4:
		i.Version = 4
		if len(b) < 20 {
			return i, Truncated
		}
		if bits(4, 4) != 5 {
			return i, Options
		}
		total := int(bits(16, 16))
		if total < 20 || total > len(b) {
			return i, Truncated
		}
		dontFragment, more, offset := bits(49, 1), bits(50, 1), bits(51, 13)
		if dontFragment == 1 && more == 1 {
			return i, Fragmented
		}
		i.Length, i.HeaderLength, i.Protocol = uint32(total), 20, uint8(bits(72, 8))
		i.Source, i.Destination = address(96, 32), address(128, 32)
		i.MoreFragments, i.FragmentOffset = more == 1, uint16(offset*8)
		if i.Fragment() {
			i.FragmentID = uint32(bits(32, 16))
		}
		if i.Protocol == 58 {
			return i, Version
		}
	case 6:
		i.Version = 6
		if len(b) < 40 {
			return i, Truncated
		}
		total := 40 + int(bits(32, 16))
		if total > len(b) {
			return i, Truncated
		}
		i.Length, i.HeaderLength, i.Protocol = uint32(total), 40, uint8(bits(48, 8))
		i.Source, i.Destination = address(64, 128), address(192, 128)
		for _, a := range []Address{i.Source, i.Destination} {
			if a.Addr().Is4() || a.Hi == 0 && a.Lo < 1<<32 && a.Lo != 0 && a.Lo != 1 {
				return i, Embedded4
			}
		}
		if i.Protocol == 44 {
			if total < 48 {
				return i, Truncated
			}
			i.Protocol, i.HeaderLength = uint8(bits(320, 8)), 48
			i.FragmentOffset, i.MoreFragments = uint16(bits(336, 13)*8), bits(351, 1) == 1
			i.FragmentID = uint32(bits(352, 32))
		}
		if slices.Contains([]uint8{0, 43, 44, 50, 51, 59, 60, 135, 139, 140}, i.Protocol) {
			return i, Extension
		}
		if i.Protocol == 1 {
			return i, Version
		}
	default:
		return i, Version
	}

	b = b[i.HeaderLength:i.Length]
	size := len(b)
	i.PayloadLength = uint16(size)
	if i.FragmentOffset > 0 {
		i.Kind = LaterFragment
		if size == 0 {
			return i, Fragmented
		}
		return i, None
	}
	short := Transport
	if i.MoreFragments {
		short = Fragmented
		if size == 0 || size%8 != 0 {
			return i, Fragmented
		}
	}
	least := map[uint8]int{6: 20, 17: 8, 1: 8, 58: 8, 132: 16}[i.Protocol]
	if size < least {
		return i, short
	}
	if least > 8 || i.Protocol == 17 {
		i.SourcePort, i.DestinationPort = uint16(bits(0, 16)), uint16(bits(16, 16))
	}
	switch i.Protocol {
	case 6:
		i.Kind = TCPSegment
		i.Sequence, i.Acknowledgment = uint32(bits(32, 32)), uint32(bits(64, 32))
		header := 4 * int(bits(96, 4))
		if header < 20 || header > size {
			return i, short
		}
		i.PayloadLength = uint16(size - header)
		i.Flags = TCPFlags(bits(104, 8))
	case 17:
		i.Kind = Datagram
		length := int(bits(32, 16))
		if length < 8 || !i.MoreFragments && length > size {
			return i, Transport
		}
	case 132:
		i.Kind = SCTPPacket
		chunk := int(bits(112, 16))
		padded := chunk
		for padded%4 != 0 {
			padded++
		}
		if bits(32, 32) == 0 && bits(96, 8) == 1 && chunk >= 20 && 12+padded == size && !i.MoreFragments {
			i.Kind = SCTPInit
		}
	case 1, 58:
		i.Type, i.Code = uint8(bits(0, 8)), uint8(bits(8, 8))
		kinds := map[uint8]Kind{8: EchoRequest, 0: EchoReply, 3: ICMPError, 11: ICMPError, 12: ICMPError}
		if i.Version == 6 {
			kinds = map[uint8]Kind{128: EchoRequest, 129: EchoReply, 1: ICMPError, 2: ICMPError, 3: ICMPError, 4: ICMPError}
		}
		kind, known := kinds[i.Type]
		if !known {
			i.Kind = ICMPOther
			return i, None
		}
		i.Kind = kind
		if kind != ICMPError {
			i.Identifier = uint16(bits(32, 16))
			return i, None
		}
		if i.MoreFragments {
			return i, Fragmented
		}
		if i.Version == 4 && i.Type == 3 && i.Code == 4 {
			i.MTU = uint32(bits(48, 16))
		}
		if i.Version == 6 && i.Type == 2 {
			i.MTU = uint32(bits(32, 32))
		}
		quote, ok := slowQuote(b[8:], i.Version)
		if !ok {
			return i, Quoted
		}
		i.Quoted = quote
	}
	return i, None
}

// slowQuote completes the quoted packet with zeros to what its length field
// says, so that slowParse can read it, and takes from it what is really there.
func slowQuote(b []byte, version uint8) (Quote, bool) {
	if len(b) < 20 || b[0]>>4 != version {
		return Quote{}, false
	}
	header, transport := 20, b[9]
	total := int(b[2])<<8 | int(b[3])
	if version == 6 {
		if len(b) < 40 {
			return Quote{}, false
		}
		header, transport = 40, b[6]
		total = 40 + (int(b[4])<<8 | int(b[5]))
		if transport == 44 {
			if len(b) < 48 {
				return Quote{}, false
			}
			header, transport = 48, b[40]
			if b[42] != 0 || b[43]&0xf8 != 0 {
				return Quote{}, false
			}
		}
	} else if b[0] != 0x45 || b[6]&0x1f != 0 || b[7] != 0 {
		return Quote{}, false
	}
	if len(b) < header+8 || total < header+8 {
		return Quote{}, false
	}
	// The header alone, as one of a packet with a protocol that has no ports.
	whole := append(slices.Clone(b[:header]), make([]byte, 8)...)
	if version == 4 {
		whole[2], whole[3], whole[6], whole[7] = 0, 28, 0, 0
	} else {
		whole[4], whole[5] = 0, byte(header-40+8)
		if header == 48 {
			whole[42], whole[43] = 0, 0
		}
	}
	protocolAt := map[int]int{20: 9, 40: 6, 48: 40}[header]
	if slices.Contains([]uint8{6, 17, 132, 1, 58}, transport) {
		if transport == 1 && version == 6 || transport == 58 && version == 4 {
			return Quote{}, false
		}
		whole[protocolAt] = 47
	}
	i, fault := slowParse(whole)
	if fault != None {
		return Quote{}, false
	}
	q := Quote{Source: i.Source, Destination: i.Destination, Protocol: transport}
	p := b[header:]
	switch transport {
	case 6, 17, 132:
		q.Kind = map[uint8]Kind{6: TCPSegment, 17: Datagram, 132: SCTPPacket}[transport]
		q.SourcePort, q.DestinationPort = uint16(p[0])<<8|uint16(p[1]), uint16(p[2])<<8|uint16(p[3])
	case 1, 58:
		q.Kind = map[[2]uint8]Kind{{1, 8}: EchoRequest, {1, 0}: EchoReply, {58, 128}: EchoRequest, {58, 129}: EchoReply}[[2]uint8{transport, p[0]}]
		q.Identifier = uint16(p[4])<<8 | uint16(p[5])
		return q, q.Kind != Other
	}
	return q, true
}
