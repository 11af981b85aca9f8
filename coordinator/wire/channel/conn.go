package channel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"github.com/flynn/noise"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire"
)

const (
	// maxRecord is the longest ciphertext of a record in bytes: Noise's
	// longest message.
	maxRecord = noise.MaxMsgLen
	// tagSize is the authenticator that ends every ciphertext.
	tagSize = 16
	// headSize is the length in front of every record.
	headSize = 2
	// lengthSize is the length in front of every message.
	lengthSize = 4
	// rekeyRecords is how many records of one direction have the same key. At
	// 64 KiB a record it is 4 GiB, far below what ChaChaPoly allows; it exists
	// so that a key stolen from memory opens no older record.
	rekeyRecords = 1 << 16
)

// Errors of a Conn and of handshakes, compared with errors.Is.
var (
	// ErrTooLarge means a message longer than the limit of its direction.
	ErrTooLarge = errors.New("channel: message too large")
	// ErrCorrupt means bytes that the other side did not send: the connection
	// is of no more use.
	ErrCorrupt = errors.New("channel: corrupt record")
	// ErrClosed means that the connection was closed or has failed before.
	ErrClosed = errors.New("channel: connection closed")
	// ErrHandshake means that the other side is not who it should be: another
	// key or another network.
	ErrHandshake = errors.New("channel: handshake refused")
)

// Conn is one channel after its handshake. One goroutine may call Receive while
// others call Send; Close and the setters may be called at any time. After an
// error of Send or Receive that is not ErrTooLarge of Send, the Conn is of no
// more use and must be closed.
type Conn struct {
	stream net.Conn
	peer   ident.MachineKey
	// binding is the hash of the handshake.
	binding wire.Binding
	// sendLimit is the longest message that the other side takes.
	sendLimit int

	in cipher // owned by the caller of Receive

	sendMu sync.Mutex // protects out and failed
	out    cipher
	failed error

	limitMu      sync.Mutex // protects receiveLimit
	receiveLimit int
}

// cipher is one direction's key and how many records it has sealed or opened.
type cipher struct {
	state      *noise.CipherState
	records    uint64
	rekeyEvery uint64
}

// next counts a record and changes the key where it is time.
func (c *cipher) next() {
	c.records++
	if c.records%c.rekeyEvery == 0 {
		c.state.Rekey()
	}
}

// records holds buffers of one record with its head: an idle connection has
// none. small holds those that are enough while the receive limit is
// UnregisteredLimit, so that a stranger who sends half a record does not hold
// 64 KiB.
var (
	records = sync.Pool{New: func() any { return new([headSize + maxRecord]byte) }}
	small   = sync.Pool{New: func() any { return new([smallRecord]byte) }}
)

// smallRecord is the longest ciphertext in bytes of a record that a Server
// takes from a node that it does not know.
const smallRecord = lengthSize + UnregisteredLimit + tagSize

// Peer returns the machine key that the node proved to hold; the zero key on
// the node's own side.
func (c *Conn) Peer() ident.MachineKey { return c.peer }

// Binding returns the hash of the handshake, which is the same on both sides
// and that of no other channel.
func (c *Conn) Binding() wire.Binding { return c.binding }

// SetReceiveLimit sets the longest message in bytes that Receive takes from now
// on.
func (c *Conn) SetReceiveLimit(bytes int) {
	c.limitMu.Lock()
	defer c.limitMu.Unlock()
	c.receiveLimit = bytes
}

// SetReadDeadline bounds Receive; the zero time is no bound. A Receive that
// runs over it fails, and the connection with it.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.stream.SetReadDeadline(t) }

// SetWriteDeadline bounds Send; the zero time is no bound. A Send that runs over
// it fails, and the connection with it.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.stream.SetWriteDeadline(t) }

// Close ends the connection and every call that waits on it. It may be called
// more than once.
func (c *Conn) Close() error { return c.stream.Close() }

// Send writes one message. It returns ErrTooLarge, and has sent nothing, for
// one that the other side would refuse; ErrClosed after an earlier error; else
// the error of the stream. The slice is not kept.
func (c *Conn) Send(message []byte) error {
	if len(message) > c.sendLimit || uint64(len(message)) > math.MaxUint32 {
		return fmt.Errorf("%w: %d bytes to send, at most %d are allowed", ErrTooLarge, len(message), c.sendLimit)
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if c.failed != nil {
		return fmt.Errorf("%w: %w", ErrClosed, c.failed)
	}
	buffer := records.Get().(*[headSize + maxRecord]byte)
	defer records.Put(buffer)
	head := binary.BigEndian.AppendUint32(nil, uint32(len(message)))
	for first := true; first || len(message) > 0; first = false {
		// The plaintext lies where the ciphertext goes: it is sealed in place.
		plain := buffer[headSize:headSize]
		if first {
			plain = append(plain, head...)
		}
		n := min(len(message), maxRecord-tagSize-len(plain))
		plain = append(plain, message[:n]...)
		message = message[n:]
		sealed, err := c.out.state.Encrypt(buffer[headSize:headSize], nil, plain)
		if err == nil {
			c.out.next()
			binary.BigEndian.PutUint16(buffer[:], uint16(len(sealed)))
			_, err = c.stream.Write(buffer[:headSize+len(sealed)])
		}
		if err != nil {
			c.failed = err
			return fmt.Errorf("channel: sending: %w", err)
		}
	}
	return nil
}

// Receive waits for one whole message, which the caller owns. It returns io.EOF
// where the other side closed between two messages, an error that wraps
// ErrTooLarge or ErrCorrupt, or the error of the stream.
func (c *Conn) Receive() ([]byte, error) {
	size, err := c.receiveHead()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, err
	}
	// The limit is that of the moment when the message begins: it may have
	// been raised since the call.
	c.limitMu.Lock()
	limit := c.receiveLimit
	c.limitMu.Unlock()
	part, err := c.receiveRecord(nil, size, lengthSize+limit)
	if err != nil {
		return nil, err
	}
	if len(part) < lengthSize {
		return nil, fmt.Errorf("%w: it begins no message", ErrCorrupt)
	}
	length := uint64(binary.BigEndian.Uint32(part))
	if length > uint64(limit) {
		return nil, fmt.Errorf("%w: %d bytes to receive, at most %d are allowed", ErrTooLarge, length, limit)
	}
	message := part[lengthSize:]
	for uint64(len(message)) < length {
		before := len(message)
		if size, err = c.receiveHead(); err == nil {
			message, err = c.receiveRecord(message, size, int(length)-before)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if len(message) == before {
			return nil, fmt.Errorf("%w: it is empty", ErrCorrupt)
		}
	}
	if uint64(len(message)) > length {
		return nil, fmt.Errorf("%w: %d bytes of a message of %d", ErrCorrupt, len(message), length)
	}
	return message, nil
}

// receiveHead returns the length of the next record's ciphertext.
func (c *Conn) receiveHead() (int, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(c.stream, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		return 0, fmt.Errorf("channel: receiving: %w", err)
	}
	size := int(binary.BigEndian.Uint16(head[:]))
	if size <= tagSize {
		return 0, fmt.Errorf("%w: %d bytes", ErrCorrupt, size)
	}
	return size, nil
}

// receiveRecord appends the plaintext of one record, whose ciphertext has size
// bytes, to dst. One that holds more than most bytes is refused before anything
// is held for it.
func (c *Conn) receiveRecord(dst []byte, size, most int) ([]byte, error) {
	if size > most+tagSize {
		return nil, fmt.Errorf("%w: a record of %d bytes where at most %d are allowed", ErrTooLarge, size, most+tagSize)
	}
	var buffer []byte
	if size <= smallRecord {
		held := small.Get().(*[smallRecord]byte)
		defer small.Put(held)
		buffer = held[:]
	} else {
		held := records.Get().(*[headSize + maxRecord]byte)
		defer records.Put(held)
		buffer = held[:]
	}
	if _, err := io.ReadFull(c.stream, buffer[:size]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("channel: receiving: %w", err)
	}
	plain, err := c.in.state.Decrypt(buffer[:0], nil, buffer[:size])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	c.in.next()
	return append(dst, plain...), nil
}
