package channel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/flynn/noise"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire"
)

const (
	// protocol begins the prologue, so that a handshake of another protocol
	// with the same keys fails. It changes with the format of the channel.
	protocol = "warren control channel v1\x00"

	// maxHandshake is the longest handshake message in bytes; the first has 96
	// (32 key, 48 sealed key, 16 tag), the second 48.
	maxHandshake = 128

	// UnregisteredLimit is the longest message in bytes that a Server takes at
	// first: a registration with 64 tags fits, and little else. Anyone can make
	// a key and reach this point (pre-auth abuse, F21).
	UnregisteredLimit = 8 << 10

	// DefaultHandshakeTimeout is how long a handshake may take where the
	// configuration says nothing: two round trips over a bad line.
	DefaultHandshakeTimeout = 10 * time.Second
)

var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)

// ClientConfig is what a node needs to know for a handshake.
type ClientConfig struct {
	// Machine is the node's identity.
	Machine ident.MachinePrivate
	// Coordinator is the key that the other side must hold.
	Coordinator ident.ChannelKey
	// Network is the network that the other side must serve.
	Network ident.Fingerprint
	// Rand gives 32 bytes for each handshake.
	Rand io.Reader
}

// ServerConfig is what a coordinator needs to know for a handshake.
type ServerConfig struct {
	Channel ident.ChannelPrivate
	Network ident.Fingerprint
	// Rand gives 32 bytes for each handshake. It is used from the goroutines
	// of all callers.
	Rand io.Reader
	// HandshakeTimeout bounds the handshake; zero is DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration
}

// Client makes a node's channel of stream, which it owns from then on, and
// closes on error. The context bounds the handshake only. The error wraps
// ErrHandshake where the other side is not the coordinator that cfg names.
func Client(ctx context.Context, stream net.Conn, cfg ClientConfig) (*Conn, error) {
	if cfg.Machine.IsZero() || cfg.Coordinator.IsZero() {
		stream.Close()
		return nil, fmt.Errorf("%w: a key of our own is missing", ErrHandshake)
	}
	public := cfg.Machine.Public()
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: suite, Random: cfg.Rand, Pattern: noise.HandshakeIK, Initiator: true, Prologue: prologue(cfg.Network),
		StaticKeypair: noise.DHKey{Private: cfg.Machine.SecretBytes(), Public: public[:]}, PeerStatic: cfg.Coordinator[:],
	})
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("channel: beginning a handshake: %w", err)
	}
	return handshake(ctx, stream, DefaultHandshakeTimeout, func() (*Conn, error) {
		first, _, _, err := state.WriteMessage(nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w: the coordinator's key is of no use: %w", ErrHandshake, err)
		}
		if err := writeHandshake(stream, first); err != nil {
			return nil, err
		}
		second, err := readHandshake(stream)
		switch {
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%w: the coordinator closed the connection; it does not hold the key that it is known by, or serves another network", ErrHandshake)
		case err != nil:
			return nil, err
		}
		payload, out, in, err := state.ReadMessage(nil, second)
		if err != nil || len(payload) > 0 {
			return nil, fmt.Errorf("%w: the coordinator does not hold the key that it is known by", ErrHandshake)
		}
		return newConn(stream, ident.MachineKey{}, wire.Binding(state.ChannelBinding()), in, out, wire.MaxServerMessage, wire.MaxClientMessage), nil
	})
}

// Server makes a coordinator's channel of stream, which it owns from then on,
// and closes on error. The context bounds the handshake only. The error wraps
// ErrHandshake where the node does not speak to this coordinator and network.
func Server(ctx context.Context, stream net.Conn, cfg ServerConfig) (*Conn, error) {
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = DefaultHandshakeTimeout
	}
	public := cfg.Channel.Public()
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: suite, Random: cfg.Rand, Pattern: noise.HandshakeIK, Prologue: prologue(cfg.Network),
		StaticKeypair: noise.DHKey{Private: cfg.Channel.SecretBytes(), Public: public[:]},
	})
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("channel: beginning a handshake: %w", err)
	}
	return handshake(ctx, stream, cfg.HandshakeTimeout, func() (*Conn, error) {
		first, err := readHandshake(stream)
		if err != nil {
			return nil, err
		}
		payload, _, _, err := state.ReadMessage(nil, first)
		if err != nil || len(payload) > 0 {
			return nil, fmt.Errorf("%w: the node expects another coordinator or network", ErrHandshake)
		}
		peer := ident.MachineKey(state.PeerStatic())
		second, in, out, err := state.WriteMessage(nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w: the node's key is of no use: %w", ErrHandshake, err)
		}
		if err := writeHandshake(stream, second); err != nil {
			return nil, err
		}
		return newConn(stream, peer, wire.Binding(state.ChannelBinding()), in, out, UnregisteredLimit, wire.MaxServerMessage), nil
	})
}

func newConn(stream net.Conn, peer ident.MachineKey, binding wire.Binding, in, out *noise.CipherState, receiveLimit, sendLimit int) *Conn {
	return &Conn{
		stream: stream, peer: peer, binding: binding, sendLimit: sendLimit, receiveLimit: receiveLimit,
		in: cipher{state: in, rekeyEvery: rekeyRecords}, out: cipher{state: out, rekeyEvery: rekeyRecords},
	}
}

// handshake runs exchange under the timeout and the context, and closes stream
// where it fails.
func handshake(ctx context.Context, stream net.Conn, timeout time.Duration, exchange func() (*Conn, error)) (*Conn, error) {
	deadline := time.Now().Add(timeout)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	if err := stream.SetDeadline(deadline); err != nil {
		stream.Close()
		return nil, fmt.Errorf("channel: beginning a handshake: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	c, err := exchange()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = stream.SetDeadline(time.Time{})
	}
	if err == nil {
		return c, nil
	}
	stream.Close()
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("channel: handshake: %w", context.Cause(ctx))
	case !time.Now().Before(deadline) && !errors.Is(err, ErrHandshake):
		err = fmt.Errorf("channel: no handshake within %v: %w", timeout, os.ErrDeadlineExceeded)
	}
	return nil, err
}

func prologue(network ident.Fingerprint) []byte { return append([]byte(protocol), network[:]...) }

func writeHandshake(w io.Writer, message []byte) error {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(message)))
	if _, err := w.Write(append(b, message...)); err != nil {
		return fmt.Errorf("channel: handshake: %w", err)
	}
	return nil
}

func readHandshake(r io.Reader) ([]byte, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("channel: handshake: %w", err)
	}
	size := binary.BigEndian.Uint16(head[:])
	if size > maxHandshake {
		return nil, fmt.Errorf("%w: a first message of %d bytes is not of this protocol", ErrHandshake, size)
	}
	message := make([]byte, size)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, fmt.Errorf("channel: handshake: %w", err)
	}
	return message, nil
}
