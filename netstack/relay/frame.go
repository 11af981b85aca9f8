package relay

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/warren-overlay/warren/acl/ident"
)

// FrameType says what a frame is. Values are wire-stable.
type FrameType uint8

const (
	// FrameChallenge is the server's first frame.
	FrameChallenge FrameType = 1
	// FrameHello is the client's answer to it.
	FrameHello FrameType = 2
	// FrameWelcome says that the client is admitted.
	FrameWelcome FrameType = 3
	// FrameReject says why the server ends the connection.
	FrameReject FrameType = 4
	// FrameSend is a packet on its way to the relay: destination, payload.
	FrameSend FrameType = 5
	// FrameRecv is a packet on its way from the relay: source, payload.
	FrameRecv FrameType = 6
	// FramePeerGone says that the destination of a packet is not connected.
	FramePeerGone FrameType = 7
	// FramePing asks for a FramePong with the same eight bytes.
	FramePing FrameType = 8
	// FramePong answers a FramePing.
	FramePong FrameType = 9
	// FrameDatagrams offers datagrams to a client: the number that it has for
	// others, and the tag of its headers.
	FrameDatagrams FrameType = 10
	// FrameResolve asks for the number of the member with a key.
	FrameResolve FrameType = 11
	// FramePeer says which number the member with a key has: the answer to
	// FrameResolve, and news for that member about who asked. The number is zero
	// where the member is not connected; the key is zero where a number that was
	// used is nobody's.
	FramePeer FrameType = 12
	// FrameStream says that the client hears no datagrams: its packets are to go
	// by this connection until it binds an address again.
	FrameStream FrameType = 13
	// FrameToken is a newer admission token, so that the connection may last.
	FrameToken FrameType = 14
	// FrameLeaving says that the relay is about to stop: the client should be
	// elsewhere within a second.
	FrameLeaving FrameType = 15
)

// Frame is one frame of a message.
type Frame struct {
	Type FrameType
	// Body aliases the message that it was read from.
	Body []byte
}

const (
	frameHeaderSize = 3

	// MaxPacket is the largest payload of a SendPacket: a jumbo Ethernet frame
	// and WireGuard's overhead, with room to spare.
	MaxPacket = 9216
	// MaxToken is the largest admission token: one that names 64 relays by names
	// of 63 bytes fits.
	MaxToken = 5 << 10
	// MaxMessage is the largest transport message either side sends or takes. It
	// bounds what one connection can make its peer hold at once, and is what a
	// WebSocket's read limit should be.
	MaxMessage = 64 << 10
	// MaxHelloMessage is the largest transport message of a connection that is
	// not yet admitted.
	MaxHelloMessage = frameHeaderSize + ident.KeySize + proofSize + MaxToken

	maxBody = ident.KeySize + MaxPacket
)

var (
	// ErrFrame is wrapped by errors about a message that is not made of whole
	// frames within the limits.
	ErrFrame = errors.New("relay: malformed frame")
	// ErrTooLarge is wrapped by errors about a packet or token over its limit.
	ErrTooLarge = errors.New("relay: over the size limit")
)

// AppendFrame appends a frame with the given parts as its body. It panics where
// the body is over the limit.
func AppendFrame(dst []byte, kind FrameType, parts ...[]byte) []byte {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > maxBody {
		panic("BUG: relay: frame over the size limit")
	}
	dst = append(dst, byte(kind), byte(size>>8), byte(size))
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return dst
}

// Next splits the first frame off a message; rest is empty after the last one.
// The error wraps ErrFrame; an empty message is one.
func Next(message []byte) (f Frame, rest []byte, err error) {
	if len(message) < frameHeaderSize {
		return Frame{}, nil, fmt.Errorf("%w: cut header", ErrFrame)
	}
	size := int(binary.BigEndian.Uint16(message[1:]))
	if size > maxBody {
		return Frame{}, nil, fmt.Errorf("%w: body of %d bytes", ErrFrame, size)
	}
	if len(message)-frameHeaderSize < size {
		return Frame{}, nil, fmt.Errorf("%w: cut body", ErrFrame)
	}
	end := frameHeaderSize + size
	return Frame{FrameType(message[0]), message[frameHeaderSize:end:end]}, message[end:], nil
}

// SendFrameSize is how much AppendSendPacket appends for a payload of n bytes.
func SendFrameSize(n int) int { return frameHeaderSize + ident.KeySize + n }

// AppendSendPacket appends a frame that asks the relay to carry payload to the
// node with the given key. It may be called for several packets of one message
// and needs no Session, so that the data path need not wait for one. The error
// wraps ErrTooLarge, for an empty payload or one over MaxPacket.
func AppendSendPacket(dst []byte, to ident.NodeKey, payload []byte) ([]byte, error) {
	if len(payload) == 0 || len(payload) > MaxPacket {
		return dst, fmt.Errorf("%w: packet of %d bytes", ErrTooLarge, len(payload))
	}
	return AppendFrame(dst, FrameSend, to[:], payload), nil
}

// ParsePacket returns the key and the payload of a FrameSend or FrameRecv. The
// payload aliases the frame. The error wraps ErrFrame.
func ParsePacket(f Frame) (key ident.NodeKey, payload []byte, err error) {
	if f.Type != FrameSend && f.Type != FrameRecv || len(f.Body) <= ident.KeySize {
		return key, nil, fmt.Errorf("%w: no packet", ErrFrame)
	}
	return ident.NodeKey(f.Body[:ident.KeySize]), f.Body[ident.KeySize:], nil
}

// Reason says why a server rejects or ends a connection. Values are
// wire-stable.
type Reason uint8

const (
	// ReasonNone means that no reason was given: the connection just ended.
	ReasonNone Reason = 0
	// ReasonProtocol means that the client sent what no client sends.
	ReasonProtocol Reason = 1
	// ReasonProof means that the client did not prove its node key.
	ReasonProof Reason = 2
	// ReasonToken means that the token admits this key to no network, or no
	// longer.
	ReasonToken Reason = 3
	// ReasonReplaced means that the same key was admitted on a newer connection.
	ReasonReplaced Reason = 4
	// ReasonTimeout means that the client was silent for too long.
	ReasonTimeout Reason = 5
	// ReasonFull means that the relay is at its limit of connections.
	ReasonFull Reason = 6
	// ReasonRevoked means that the relay's owner ended the admission.
	ReasonRevoked Reason = 7
	// ReasonLeaving means that the relay stops.
	ReasonLeaving Reason = 8
	// ReasonExpired means that the admission ended, and that no newer token came.
	ReasonExpired Reason = 9
)

// String returns the reason as a metric label.
func (r Reason) String() string {
	switch r {
	case ReasonNone:
		return "none"
	case ReasonProtocol:
		return "protocol"
	case ReasonProof:
		return "proof"
	case ReasonToken:
		return "token"
	case ReasonReplaced:
		return "replaced"
	case ReasonTimeout:
		return "timeout"
	case ReasonFull:
		return "full"
	case ReasonRevoked:
		return "revoked"
	case ReasonLeaving:
		return "leaving"
	case ReasonExpired:
		return "expired"
	}
	return "unknown"
}
