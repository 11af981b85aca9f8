package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/coordinator/wire"
)

const (
	// maxQueued bounds the messages that wait to be sent. A node sends a few a
	// minute; a connection that takes none is dead.
	maxQueued = 64
	// sendTimeout bounds the sending of one message.
	sendTimeout = 20 * time.Second
	// lingerTime bounds the wait for the coordinator to close.
	lingerTime = 2 * time.Second
)

// connection is an attempt, and then the channel that came of it. The loop
// drops it as soon as it is not the present one any more; what it still says
// then is passed over.
type connection struct {
	ctx    context.Context //nolint:containedctx // ends the attempt
	cancel context.CancelFunc
	queue  chan []byte
	// done is closed when the channel is closed or the attempt has failed.
	done chan struct{}
}

func (l *loop) newConnection() *connection {
	if l.connection != nil {
		l.connection.close()
	}
	c := &connection{queue: make(chan []byte, maxQueued), done: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(l.ctx)
	l.connection = c
	return c
}

// send queues a message, or closes the connection where too many wait.
func (c *connection) send(message []byte) {
	select {
	case c.queue <- message:
	default:
		c.close()
	}
}

// close ends the attempt or the channel at once.
func (c *connection) close() { c.cancel() }

// linger ends the channel when the coordinator has closed it, or after a
// moment.
func (c *connection) linger() {
	time.AfterFunc(lingerTime, c.cancel)
}

// tell hands the loop what came of c, as long as c is the present connection.
func (l *loop) tell(c *connection, f func(m *control.Machine, now time.Time)) {
	select {
	case l.requests <- func(l *loop) {
		if l.connection == c && l.machine != nil {
			f(l.machine, l.cfg.Now())
		}
	}:
	case <-c.ctx.Done():
	}
}

func (l *loop) fetchGenesis(o control.FetchGenesis) {
	c := l.newConnection()
	l.running.Go(func() {
		defer close(c.done)
		defer c.cancel()
		genesis, err := l.cfg.Coordinator.FetchGenesis(c.ctx, o.URL, o.Network)
		l.tell(c, func(m *control.Machine, now time.Time) {
			if err != nil {
				m.HandleClosed(err, now)
				return
			}
			m.HandleGenesis(genesis, now)
		})
	})
}

func (l *loop) dial(o control.Dial) {
	c := l.newConnection()
	keys := l.keys
	l.running.Go(func() {
		defer close(c.done)
		defer c.cancel()
		err := l.converse(c, Dial{URL: o.URL, Coordinator: o.Coordinator, Network: o.Network, Machine: keys.Machine}, keys.Node)
		l.tell(c, func(m *control.Machine, now time.Time) { m.HandleClosed(err, now) })
	})
}

// converse opens the channel, proves there that this device holds its node key,
// and reads and writes it until it ends, and returns why.
func (l *loop) converse(c *connection, d Dial, node ident.NodePrivate) error {
	channel, err := l.cfg.Coordinator.Dial(c.ctx, d)
	if err != nil {
		return err
	}
	var closed sync.Once
	shut := func() { closed.Do(func() { channel.Close() }) }
	defer shut()
	stop := context.AfterFunc(c.ctx, shut)
	defer stop()
	proof, err := wire.ProveNodeKey(node, d.Coordinator, channel.Binding())
	if err != nil {
		return err
	}

	var writing sync.WaitGroup
	defer writing.Wait()
	quit := make(chan struct{})
	defer close(quit)
	writing.Go(func() {
		for {
			select {
			case <-quit:
				return
			case message := <-c.queue:
				// Deadlines are of this machine's clock, not the agent's.
				err := channel.SetWriteDeadline(time.Now().Add(sendTimeout))
				if err == nil {
					err = channel.Send(message)
				}
				if err != nil {
					shut() // the reader finds out, and tells
					return
				}
			}
		}
	})
	l.tell(c, func(m *control.Machine, now time.Time) { m.HandleConnected(proof, now) })
	for {
		frame, err := channel.Receive()
		if err != nil {
			shut()
			return fmt.Errorf("the connection ended: %w", err)
		}
		l.tell(c, func(m *control.Machine, now time.Time) {
			if err := m.HandleFrame(frame, now); err != nil && !errors.Is(err, control.ErrNotConnected) {
				panic("BUG: agent: the machine refuses a frame: " + err.Error())
			}
		})
	}
}

// wrongCoordinator marks an error as "somebody else answered".
func wrongCoordinator(err error) error { return fmt.Errorf("%w: %w", authority.ErrFingerprint, err) }
