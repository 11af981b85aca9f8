package userstack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warren-overlay/warren/netstack/alarm"
)

const (
	// maxEchoes bounds the echo requests' flows: each has a socket. A quarter
	// is for one peer.
	maxEchoes = 256
	// echoQueue is how many requests of one flow wait to be sent.
	echoQueue = 16
	// echoIdle ends a flow, as in the packet filter (P13).
	echoIdle = 30 * time.Second
	// echoHeader is the part of an echo message in front of its data.
	echoHeader = header.ICMPv4MinimumSize

	protocolICMP, protocolICMPv6 = uint8(header.ICMPv4ProtocolNumber), uint8(header.ICMPv6ProtocolNumber)
)

// echoSocket asks one host. Messages are an ICMP message without an IP header,
// whose checksum the socket makes right. Close unblocks receive.
type echoSocket interface {
	send(message []byte) error
	receive(buf []byte) (int, error)
	SetReadDeadline(t time.Time) error
	Close() error
}

// echoes carries echo requests of peers to hosts behind this one, and their
// replies back. The stack would answer them itself, for hosts that are not
// there.
type echoes struct {
	routed *routed
	open   func(to netip.Addr) (echoSocket, error)
	flows  flows

	mu      sync.Mutex // protects the rest
	stopped bool
	all     map[echoKey]*echoFlow
	running sync.WaitGroup
}

type echoKey struct {
	peer, host netip.Addr
	id         uint16
}

type echoFlow struct {
	requests chan []byte // ICMP messages
	cancel   context.CancelFunc
}

func newEchoes(r *routed) *echoes {
	return &echoes{routed: r, open: r.owner.cfg.openEcho, flows: newFlows(maxEchoes), all: make(map[echoKey]*echoFlow)}
}

// parseEcho returns the message and the end points of an unfragmented echo
// request.
func parseEcho(packet []byte) (k echoKey, message []byte, ok bool) {
	is4 := packet[0]>>4 == 4
	kind := byte(header.ICMPv6EchoRequest)
	switch {
	case is4:
		ip := header.IPv4(packet)
		n := int(ip.HeaderLength())
		if ip.Protocol() != protocolICMP || ip.More() || ip.FragmentOffset() != 0 || n < header.IPv4MinimumSize || len(packet) < n {
			return k, nil, false
		}
		message, kind = packet[n:], byte(header.ICMPv4Echo)
		k.peer, k.host = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
	case header.IPv6(packet).NextHeader() == protocolICMPv6:
		message = packet[header.IPv6MinimumSize:]
		k.peer, k.host = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	}
	if len(message) < echoHeader || message[0] != kind {
		return k, nil, false
	}
	k.id = binary.BigEndian.Uint16(message[4:])
	return k, message, true
}

// handle carries the packet where it is an echo request, and reports whether it
// was one. It does not wait.
func (e *echoes) handle(packet []byte) bool {
	k, message, ok := parseEcho(packet)
	if !ok {
		return false
	}
	if !e.routed.permitted(k.host) {
		e.routed.refused.Add(1)
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.all[k]
	if f == nil {
		owner := e.routed.forward.ownerOf(k.peer)
		if e.stopped || !e.flows.acquire(owner) {
			return true
		}
		ctx, cancel := context.WithCancel(context.Background())
		f = &echoFlow{requests: make(chan []byte, echoQueue), cancel: cancel}
		e.all[k] = f
		e.running.Go(func() {
			defer e.flows.release(owner)
			defer e.forget(k)
			defer cancel()
			e.run(ctx, k, f)
		})
	}
	select {
	case f.requests <- append([]byte(nil), message...):
	default: // the host's network is slower than the peer asks
	}
	return true
}

func (e *echoes) forget(k echoKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.all, k)
}

// run asks the host until nothing was asked for the idle time, or ctx ends.
func (e *echoes) run(ctx context.Context, k echoKey, f *echoFlow) {
	socket, err := e.open(k.host)
	if err != nil {
		e.flows.refused.Add(1)
		return
	}
	e.flows.opened.Add(1)
	var replies sync.WaitGroup
	replies.Go(func() { e.receive(k, socket) })
	defer replies.Wait()
	defer socket.Close()
	idle := alarm.New(echoIdle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-idle.C:
			return
		case message := <-f.requests:
			if err := socket.send(message); err != nil {
				return
			}
			idle.Set(echoIdle)
		}
	}
}

// receive passes replies on until the socket is closed.
func (e *echoes) receive(k echoKey, socket echoSocket) {
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	for {
		n, err := socket.receive(buf[:])
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil && !isTimeout(err):
			return // such as that the host cannot be reached
		case err != nil || n < echoHeader || n > maxEchoMessage:
			continue
		}
		e.routed.link.enqueue(echoReply(k, buf[:n]))
	}
}

// maxEchoMessage is the longest reply that is passed on: what fits into an IP
// packet without fragments on every path is all that pings need.
const maxEchoMessage = 1<<16 - 1 - header.IPv6MinimumSize

// echoReply makes the packet for the peer of a reply's message.
func echoReply(k echoKey, message []byte) *stack.PacketBuffer {
	from, to := tcpip.AddrFromSlice(k.host.AsSlice()), tcpip.AddrFromSlice(k.peer.AsSlice())
	var b []byte
	if k.peer.Is4() {
		b = make([]byte, header.IPv4MinimumSize+len(message))
		header.IPv4(b).Encode(&header.IPv4Fields{
			TotalLength: uint16(len(b)), TTL: 64, Protocol: protocolICMP, SrcAddr: from, DstAddr: to,
		})
		header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
	} else {
		b = make([]byte, header.IPv6MinimumSize+len(message))
		header.IPv6(b).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(message)), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64, SrcAddr: from, DstAddr: to,
		})
	}
	m := b[len(b)-len(message):]
	copy(m, message)
	binary.BigEndian.PutUint16(m[4:], k.id)
	m[2], m[3] = 0, 0
	sum := uint16(0)
	if !k.peer.Is4() {
		sum = header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, from, to, uint16(len(m)))
	}
	binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, sum))
	return stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
}

// endUnless ends the flows to hosts that are not permitted.
func (e *echoes) endUnless(permitted func(netip.Addr) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, f := range e.all {
		if !permitted(k.host) {
			f.cancel()
		}
	}
}

func (e *echoes) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	for _, f := range e.all {
		f.cancel()
	}
}

func (e *echoes) wait() { e.running.Wait() }

// openEcho opens a socket that needs no privileges, where the system permits
// the process that (on Linux net.ipv4.ping_group_range), or else a raw one.
func openEcho(to netip.Addr) (echoSocket, error) {
	s := pingSocket{to: to}
	var err error
	network, raw := "udp4", "ip4:icmp"
	if to.Is6() {
		network, raw = "udp6", "ip6:ipv6-icmp"
	}
	if s.PacketConn, err = icmp.ListenPacket(network, ""); err == nil {
		return &s, nil
	}
	conn, rawErr := net.Dial(raw, to.String())
	if rawErr != nil {
		return nil, fmt.Errorf("userstack: opening a socket for echo requests: %w", errors.Join(err, rawErr))
	}
	return &rawSocket{IPConn: conn.(*net.IPConn), id: uint16(rand.Uint32()), is6: to.Is6()}, nil
}

// pingSocket gets the replies to its own requests only; the system chooses the
// identifier.
type pingSocket struct {
	*icmp.PacketConn
	to netip.Addr
}

func (s *pingSocket) send(message []byte) error {
	_, err := s.WriteTo(message, &net.UDPAddr{IP: s.to.AsSlice()})
	return err
}

func (s *pingSocket) receive(buf []byte) (int, error) {
	n, from, err := s.ReadFrom(buf)
	if err != nil {
		return 0, err
	}
	udp, ok := from.(*net.UDPAddr)
	if !ok || udp.AddrPort().Addr().Unmap().WithZone("") != s.to || n < echoHeader || !isEchoReply(buf[0], s.to.Is6()) {
		return 0, nil
	}
	return n, nil
}

// rawSocket gets every ICMP message of the host; those with its identifier are
// replies.
type rawSocket struct {
	*net.IPConn
	id  uint16
	is6 bool
}

func (s *rawSocket) send(message []byte) error {
	binary.BigEndian.PutUint16(message[4:], s.id)
	if message[2], message[3] = 0, 0; !s.is6 { // the system makes that of ICMPv6 right
		binary.BigEndian.PutUint16(message[2:], ^checksum.Checksum(message, 0))
	}
	_, err := s.Write(message)
	return err
}

func (s *rawSocket) receive(buf []byte) (int, error) {
	n, _, err := s.ReadFrom(buf)
	if err != nil || n < echoHeader || !isEchoReply(buf[0], s.is6) || binary.BigEndian.Uint16(buf[4:]) != s.id {
		return 0, err
	}
	return n, nil
}

func isEchoReply(kind byte, is6 bool) bool {
	if is6 {
		return kind == byte(header.ICMPv6EchoReply)
	}
	return kind == byte(header.ICMPv4EchoReply)
}
