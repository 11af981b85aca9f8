package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/stun"
)

// ServeTCP echoes every byte on the host's address until the test ends and
// returns how many connections came.
func ServeTCP(t testing.TB, h *Host, address string) *atomic.Int64 {
	l := h.Listen(t, address)
	connections := new(atomic.Int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return connections
}

// ServeUDP echoes every datagram on the host's address until the test ends and
// returns how many came.
func ServeUDP(t testing.TB, h *Host, address string) *atomic.Int64 {
	s := h.ListenPacket(t, address)
	datagrams := new(atomic.Int64)
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, from, err := s.ReadFrom(buffer)
			if err != nil {
				return
			}
			datagrams.Add(1)
			s.WriteTo(buffer[:n], from)
		}
	}()
	return datagrams
}

// ServeSTUN answers STUN requests on the host's IPv4 address until the test ends, and
// returns that address.
func ServeSTUN(t testing.TB, h *Host) string {
	address := netip.AddrPortFrom(h.V4, 3478).String()
	s := h.ListenPacket(t, address)
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, from, err := s.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer, ok := stun.Respond(nil, buffer[:n], from.(*net.UDPAddr).AddrPort()); ok {
				s.WriteTo(answer, from)
			}
		}
	}()
	return address
}

// EchoTCP sends a megabyte to an echo server and compares what comes back.
func EchoTCP(ctx context.Context, h *Host, address string) error {
	c, err := h.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	return Exchange(ctx, c)
}

// Exchange is EchoTCP over a connection that is there already.
func Exchange(ctx context.Context, c net.Conn) error {
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	sent := make([]byte, 1<<20)
	rand.Read(sent)
	failed := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		failed <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("reading the echo: %w", err)
	}
	if err := <-failed; err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("the echo is not what was sent")
	}
	return nil
}

// EchoUDP sends a datagram to an echo server until one comes back.
func EchoUDP(ctx context.Context, h *Host, address string) error {
	c, err := h.Dial(ctx, "udp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	buffer := make([]byte, 64)
	for ctx.Err() == nil {
		if _, err := io.WriteString(c, "warren"); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := c.Read(buffer); err == nil {
			if string(buffer[:n]) != "warren" {
				return fmt.Errorf("the echo is %q", buffer[:n])
			}
			return nil
		}
	}
	return context.Cause(ctx)
}

// Stream is a flow that sends a line every few milliseconds and knows when the
// last one arrived at the other end.
type Stream struct {
	last  atomic.Int64 // when the last line arrived, in nanoseconds since 1970
	lines atomic.Int64
	// longest is the longest time between two lines since LongestGap was called,
	// in nanoseconds.
	longest atomic.Int64
	// Ended gets what the sender was told when its connection ended.
	Ended chan error
}

// StreamInterval is how long a Stream waits between two lines.
const StreamInterval = 5 * time.Millisecond

func (s *Stream) arrived() {
	now := time.Now().UnixNano()
	if gap := now - s.last.Swap(now); gap > s.longest.Load() && s.lines.Load() > 0 {
		s.longest.Store(gap)
	}
	s.lines.Add(1)
}

// LongestGap returns the longest time between two lines since it was called last,
// the silence that goes on included.
func (s *Stream) LongestGap() time.Duration {
	silence := time.Now().UnixNano() - s.last.Load()
	return time.Duration(max(s.longest.Swap(0), silence))
}

// StartTCP opens a connection and waits until lines arrive.
func StartTCP(t testing.TB, from, to *Host, address string) *Stream {
	t.Helper()
	s := &Stream{Ended: make(chan error, 1)}
	l := to.Listen(t, address)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(c); lines.Scan(); {
			s.arrived()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s.send(t, c)
	return s
}

// StartUDP sends datagrams and waits until some arrive.
func StartUDP(t testing.TB, from, to *Host, address string) *Stream {
	t.Helper()
	s := &Stream{Ended: make(chan error, 1)}
	socket := to.ListenPacket(t, address)
	go func() {
		buffer := make([]byte, 64)
		for {
			if _, _, err := socket.ReadFrom(buffer); err != nil {
				return
			}
			s.arrived()
		}
	}()
	c, err := from.Dial(t.Context(), "udp", socket.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s.send(t, c)
	return s
}

func (s *Stream) send(t testing.TB, c net.Conn) {
	t.Helper()
	_, datagrams := c.(*net.UDPConn)
	go func() {
		tick := time.NewTicker(StreamInterval)
		defer tick.Stop()
		for range tick.C {
			// A datagram that is refused is no end: the sender of a revoked
			// device goes on, and it is the receiver that counts.
			if _, err := io.WriteString(c, "line\n"); err != nil && (!datagrams || t.Context().Err() != nil) {
				s.Ended <- err
				return
			}
		}
	}()
	Eventually(t, 5*time.Second, func() error {
		if s.lines.Load() < 10 {
			return fmt.Errorf("%d lines arrived", s.lines.Load())
		}
		return nil
	})
}

// Quiet is for how long nothing must have arrived before a flow counts as cut.
const Quiet = 3 * time.Second

// CutAfter waits until the flow is cut and returns how long after begin its
// last line arrived.
func (s *Stream) CutAfter(t testing.TB, begin time.Time) time.Duration {
	t.Helper()
	Eventually(t, 15*time.Second, func() error {
		if since := time.Since(time.Unix(0, s.last.Load())); since < Quiet {
			return fmt.Errorf("the last line arrived %v ago", since)
		}
		return nil
	})
	return max(0, time.Unix(0, s.last.Load()).Sub(begin))
}

// Last returns when the last line arrived.
func (s *Stream) Last() time.Time { return time.Unix(0, s.last.Load()) }

// Lines returns how many lines have arrived.
func (s *Stream) Lines() int64 { return s.lines.Load() }

// Alive ends the test where nothing arrives any more.
func (s *Stream) Alive(t testing.TB) {
	t.Helper()
	before := s.lines.Load()
	Eventually(t, 2*time.Second, func() error {
		if s.lines.Load() < before+5 {
			return fmt.Errorf("a flow that nobody cut has stopped")
		}
		return nil
	})
}
