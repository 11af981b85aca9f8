package engine

import (
	"slices"
	"sync"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/relay"
)

// outbox holds what waits for the relay, as whole messages of it.
type outbox struct {
	wake chan struct{} // holds a value while the writer should look

	mu       sync.Mutex // protects all below
	messages []outMessage
	spare    [][]byte
	bytes    int
	ready    bool // whether the relay takes packets
	dropped  uint64
}

type outMessage struct {
	data    []byte
	packets bool // packets may be added to it
}

// add queues packets to a peer, or drops and counts them.
func (o *outbox) add(to ident.NodeKey, packets [][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range packets {
		size := relay.SendFrameSize(len(p))
		if !o.ready || o.bytes+size > maxOutbox {
			o.dropped++
			continue
		}
		m := o.openLocked(size)
		data, err := relay.AppendSendPacket(m.data, to, p)
		if err != nil {
			o.dropped++
			continue
		}
		m.data = data
		o.bytes += size
	}
	o.notify()
}

// openLocked returns the message to which a frame of the given size is added.
func (o *outbox) openLocked(size int) *outMessage {
	if last := len(o.messages) - 1; last >= 0 {
		m := &o.messages[last]
		if m.packets && len(m.data)+size <= relay.MaxMessage {
			return m
		}
	}
	var data []byte
	if last := len(o.spare) - 1; last >= 0 {
		data = o.spare[last]
		o.spare = o.spare[:last]
	}
	o.messages = append(o.messages, outMessage{data: data[:0], packets: true})
	return &o.messages[len(o.messages)-1]
}

// addMessage queues a message of the session's own.
func (o *outbox) addMessage(message []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.messages = append(o.messages, outMessage{data: message})
	o.bytes += len(message)
	o.notify()
}

func (o *outbox) notify() {
	if len(o.messages) == 0 {
		return
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take returns the next message and whether it has packets; nil is none.
func (o *outbox) take() (message []byte, packets bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.messages) == 0 {
		return nil, false
	}
	m := o.messages[0]
	o.messages = slices.Delete(o.messages, 0, 1)
	o.bytes -= len(m.data)
	return m.data, m.packets
}

// free gives the storage of a message back.
func (o *outbox) free(message []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.spare) < spareMessages {
		o.spare = append(o.spare, message)
	}
}

// open lets packets in.
func (o *outbox) open() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ready = true
}

// close keeps packets out.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ready = false
}

// queued returns how many bytes wait.
func (o *outbox) queued() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes
}

func (o *outbox) drops() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.dropped
}
