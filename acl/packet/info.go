package packet

// IP protocol numbers that the parser knows (IANA). Every other number is a
// protocol without ports.
const (
	ICMP   uint8 = 1
	TCP    uint8 = 6
	UDP    uint8 = 17
	ICMPv6 uint8 = 58
	SCTP   uint8 = 132
)

// Fault says why Parse refused a packet; None is not a fault. The values are
// appended to, never reordered.
type Fault uint8

const (
	// None: the packet was accepted.
	None Fault = iota
	// Truncated: shorter than its headers or its length field say.
	Truncated
	// Version: neither IPv4 nor IPv6, or ICMP of the other family.
	Version
	// Options: an IPv4 header with options, or with a length below 20.
	Options
	// Extension: an IPv6 extension header other than one fragment header.
	Extension
	// Embedded4: an IPv6 address that is an IPv4 address in disguise.
	Embedded4
	// Transport: a TCP, UDP, ICMP or SCTP header that is cut off or
	// contradicts the packet's length.
	Transport
	// Fragmented: a fragment that cannot be one, a first fragment without the
	// whole transport header, or an ICMP error in fragments.
	Fragmented
	// Quoted: an ICMP error whose quoted packet does not parse.
	Quoted

	faults
)

// NumFaults is the number of Fault values, None included.
const NumFaults = int(faults)

var faultNames = [NumFaults]string{
	"none", "truncated", "version", "ipopt", "ext6", "embedded4", "transport", "fragment", "quoted",
}

// String returns the stable name of the fault, or "unknown".
func (f Fault) String() string {
	if int(f) < len(faultNames) {
		return faultNames[f]
	}
	return "unknown"
}

// Kind is the part that a packet plays in a flow.
type Kind uint8

const (
	// Other is a protocol without ports.
	Other Kind = iota
	// TCPSegment has ports and Flags.
	TCPSegment
	// Datagram is UDP and has ports.
	Datagram
	// SCTPInit is an SCTP packet that holds one INIT chunk alone, with the
	// verification tag 0: the only one that opens an association (RFC 9260).
	SCTPInit
	// SCTPPacket is any other SCTP packet.
	SCTPPacket
	// EchoRequest and EchoReply have an Identifier.
	EchoRequest
	EchoReply
	// ICMPError is destination unreachable, packet too big, time exceeded or
	// parameter problem; Quoted holds the packet that it is about.
	ICMPError
	// ICMPOther is every other ICMP message.
	ICMPOther
	// LaterFragment is a fragment with an offset above 0: it has no ports.
	LaterFragment
)

// TCPFlags are the flags of a TCP segment.
type TCPFlags uint8

// The flags of RFC 9293.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Info is what Parse reads from a packet. It is a plain value without pointers.
type Info struct {
	Source, Destination Address
	// Sequence and Acknowledgment are those of a TCPSegment.
	Sequence, Acknowledgment uint32
	// FragmentID is the identification of a fragment.
	FragmentID uint32
	// Length is the length of the whole packet in bytes. Bytes of the buffer
	// beyond it are not part of the packet and must be cut off before it goes
	// anywhere.
	Length uint32
	// MTU is the value of a "packet too big" (ICMPv6 type 2, ICMP 3 code 4).
	MTU uint32
	// SourcePort and DestinationPort are those of TCP, UDP and SCTP, else 0.
	SourcePort, DestinationPort uint16
	// Identifier is that of an echo request or reply.
	Identifier uint16
	// FragmentOffset is where the fragment's data belongs, in bytes.
	FragmentOffset uint16
	// PayloadLength is the number of bytes behind the TCP header, for other
	// kinds those behind the IP headers.
	PayloadLength uint16
	// Protocol is the transport protocol's number.
	Protocol uint8
	// Version is 4 or 6.
	Version uint8
	// HeaderLength is where the transport header (of a later fragment: the
	// data) begins, in bytes.
	HeaderLength uint8
	Kind         Kind
	Flags        TCPFlags
	// Type and Code are those of an ICMP message.
	Type, Code uint8
	// MoreFragments is set on every fragment but the last.
	MoreFragments bool
	// Quoted is what an ICMPError is about, else zero.
	Quoted Quote
}

// Quote is the start of the packet that an ICMP error sends back.
type Quote struct {
	Source, Destination         Address
	SourcePort, DestinationPort uint16
	Identifier                  uint16
	Protocol                    uint8
	Kind                        Kind
}

// TooBig reports whether the packet is a "packet too big".
func (i *Info) TooBig() bool {
	return i.Kind == ICMPError && (i.Version == 6 && i.Type == 2 || i.Version == 4 && i.Type == 3 && i.Code == 4)
}

// Fragment reports whether the packet is a fragment of a larger one. An atomic
// IPv6 fragment is not.
func (i *Info) Fragment() bool { return i.MoreFragments || i.FragmentOffset > 0 }
