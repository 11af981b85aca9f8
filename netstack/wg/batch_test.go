package wg

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/sock"
)

// batchConn is a port that hands out batch datagrams at a time, and notes how
// many buffers its reader is given.
type batchConn struct {
	batch  int
	given  chan int
	closed chan struct{}
}

func (c *batchConn) Readers() []sock.Reader                         { return []sock.Reader{c} }
func (c *batchConn) WriteBatch([][]byte, netip.AddrPort) error      { return nil }
func (c *batchConn) WriteFragmented([][]byte, netip.AddrPort) error { return nil }
func (c *batchConn) LocalPort() uint16                              { return 1 }
func (c *batchConn) BatchSize() int                                 { return c.batch }
func (c *batchConn) SetMark(uint32) error                           { return nil }

func (c *batchConn) Close() error {
	close(c.closed)
	return nil
}

func (c *batchConn) ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	if len(sizes) < len(bufs) || len(from) < len(bufs) {
		c.given <- -1
	}
	c.given <- len(bufs)
	<-c.closed
	return 0, net.ErrClosed
}

// TestBuffersAreThePorts: the device keeps as many buffers of 64 KiB for a port as
// the port hands out at once, and few where it hands out one by one, also after
// the port was opened again.
func TestBuffersAreThePorts(t *testing.T) {
	sizes := []int{1, sock.MaxBatchSize, 1, 20}
	given, opened := make(chan int, 2*len(sizes)), 0
	device, err := New(Config{
		TUN: newChannelTUN(), Logger: slog.New(slog.DiscardHandler),
		Control: func([]byte, netip.AddrPort) {},
		Listen: func(uint16) (sock.Conn, error) {
			c := &batchConn{batch: sizes[opened], given: given, closed: make(chan struct{})}
			opened++
			return c, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	for i, size := range sizes {
		if i > 0 {
			if err := device.Rebind(); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case n := <-given:
			if want := max(size, minBatch); n != want {
				t.Errorf("a port that hands out %d at once is given %d buffers, want %d", size, n, want)
			}
		case <-time.After(patience):
			t.Fatal("nobody reads the port")
		}
	}
}
