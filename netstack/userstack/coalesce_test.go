package userstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warren-overlay/warren/netstack/tun"
)

// tcpPacket writes a TCP packet by hand, without gvisor's help. Checksums are
// right only in IPv4 headers; nobody looks at the others.
type tcpPacket struct {
	src, dst     netip.Addr
	sport, dport uint16
	seq, ack     uint32
	flags        byte
	window       uint16
	options      string // a multiple of 4 bytes
	payload      string
	tos, ttl     byte
	id           uint16
}

const flagACK, flagPSH, flagFIN = 0x10, 0x08, 0x01

func (p tcpPacket) bytes() []byte {
	tcp := binary.BigEndian.AppendUint16(nil, p.sport)
	tcp = binary.BigEndian.AppendUint16(tcp, p.dport)
	tcp = binary.BigEndian.AppendUint32(tcp, p.seq)
	tcp = binary.BigEndian.AppendUint32(tcp, p.ack)
	tcp = append(tcp, byte(20+len(p.options))/4<<4, p.flags)
	tcp = binary.BigEndian.AppendUint16(tcp, p.window)
	tcp = append(tcp, 0, 0, 0, 0)
	tcp = append(append(tcp, p.options...), p.payload...)
	if p.src.Is4() {
		ip := []byte{0x45, p.tos, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
		ip = binary.BigEndian.AppendUint16(ip, p.id)
		ip = append(ip, 0x40, 0, p.ttl, 6, 0, 0)
		ip = append(append(ip, p.src.AsSlice()...), p.dst.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], onesComplement(ip))
		return append(ip, tcp...)
	}
	ip := []byte{0x60 | p.tos>>4, p.tos << 4, 0, 0, 0, 0, 6, p.ttl}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
	ip = append(append(ip, p.src.AsSlice()...), p.dst.AsSlice()...)
	return append(ip, tcp...)
}

// sink keeps what is delivered to the stack.
type sink struct{ packets [][]byte }

func (s *sink) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, packet *stack.PacketBuffer) {
	s.packets = append(s.packets, bytes.Join(packet.AsSlices(), nil))
}
func (s *sink) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// coalesce returns what becomes of a batch.
func coalesce(packets ...[]byte) [][]byte {
	var got sink
	c := coalescer{dispatcher: &got}
	for _, p := range packets {
		c.deliver(p)
	}
	c.flush()
	return got.packets
}

func TestCoalesce(t *testing.T) {
	for _, family := range [][2]netip.Addr{{addrA4, addrB4}, {addrA6, addrB6}} {
		base := tcpPacket{src: family[0], dst: family[1], sport: 1, dport: 2, seq: 0xfffffffe, ack: 9, flags: flagACK, window: 100, options: "\x01\x01\x08\x0aTIMEstmp", payload: "abcd", ttl: 64, id: 5}
		after := base
		after.seq, after.id, after.payload = base.seq+4, 6, "efgh"
		for _, tc := range []struct {
			name   string
			change func(p *tcpPacket)
			want   string // payload of the joined packet, empty for two packets
		}{
			{"continues", func(*tcpPacket) {}, "abcdefgh"},
			{"shorter", func(p *tcpPacket) { p.payload = "e" }, "abcde"},
			{"push", func(p *tcpPacket) { p.flags |= flagPSH }, "abcdefgh"},
			{"longer", func(p *tcpPacket) { p.payload = "efghi" }, ""},
			{"no data", func(p *tcpPacket) { p.payload = "" }, ""},
			{"gap", func(p *tcpPacket) { p.seq++ }, ""},
			{"repeated", func(p *tcpPacket) { p.seq -= 4 }, ""},
			{"acknowledgement", func(p *tcpPacket) { p.ack++ }, ""},
			{"window", func(p *tcpPacket) { p.window++ }, ""},
			{"options", func(p *tcpPacket) { p.options = "\x01\x01\x08\x0aTIMEstmq" }, ""},
			{"options length", func(p *tcpPacket) { p.options = "" }, ""},
			{"FIN", func(p *tcpPacket) { p.flags |= flagFIN }, ""},
			{"URG", func(p *tcpPacket) { p.flags |= 0x20 }, ""},
			{"CWR", func(p *tcpPacket) { p.flags |= 0x80 }, ""},
			{"other port", func(p *tcpPacket) { p.sport++ }, ""},
			{"other host", func(p *tcpPacket) { p.src = p.src.Next() }, ""},
			{"congestion mark", func(p *tcpPacket) { p.tos = 3 }, ""},
			{"time to live", func(p *tcpPacket) { p.ttl-- }, ""},
		} {
			second := after
			tc.change(&second)
			want := [][]byte{base.bytes(), second.bytes()}
			if tc.want != "" {
				joined := base
				joined.payload = tc.want
				joined.flags |= second.flags
				want = [][]byte{joined.bytes()}
				if base.src.Is4() { // the checksum is left as it was
					copy(want[0][10:12], base.bytes()[10:12])
				}
			}
			if got := coalesce(base.bytes(), second.bytes()); !slicesEqual(got, want) {
				t.Errorf("%v %s: got %d packets\n% x\nwant\n% x", base.src, tc.name, len(got), got, want)
			}
			// After a short or pushed packet comes something new.
			third := second
			third.seq += uint32(len(second.payload))
			if (tc.name == "shorter" || tc.name == "push") && len(coalesce(base.bytes(), second.bytes(), third.bytes())) != 2 {
				t.Errorf("%v %s: a third packet was joined", base.src, tc.name)
			}
		}
	}
}

func slicesEqual(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func TestCoalesceStopsAtLongestPacket(t *testing.T) {
	p := tcpPacket{src: addrA4, dst: addrB4, flags: flagACK, payload: string(make([]byte, 1400)), ttl: 64}
	var batch [][]byte
	for range 100 {
		batch = append(batch, p.bytes())
		p.seq += 1400
	}
	total := 0
	for _, packet := range coalesce(batch...) {
		if int(binary.BigEndian.Uint16(packet[2:])) != len(packet) {
			t.Errorf("packet of %d bytes says %d", len(packet), binary.BigEndian.Uint16(packet[2:]))
		}
		total += len(packet) - 40
	}
	if total != 140000 {
		t.Errorf("%d bytes of payload came out", total)
	}
}

// TestCoalesceKeepsStreams mixes streams at random and compares, for each, what
// came out with what went in.
func TestCoalesceKeepsStreams(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		flows := make([]tcpPacket, 3)
		in, out := make(map[string]string), make(map[string]string)
		for i := range flows {
			flows[i] = tcpPacket{src: addrA4, dst: addrB4, sport: uint16(i), flags: flagACK, ttl: 64}
			if i == 2 {
				flows[i].src, flows[i].dst = addrA6, addrB6
			}
		}
		var batch [][]byte
		for range rng.IntN(40) {
			p := &flows[rng.IntN(len(flows))]
			p.payload = string(make([]byte, rng.IntN(3))) + fmt.Sprint(rng.IntN(1000))
			if rng.IntN(8) == 0 {
				p.window++
			}
			batch = append(batch, p.bytes())
			// What is acknowledged, offered and said belongs to the stream.
			in[fmt.Sprint(p.sport, p.window)] += p.payload
			p.seq += uint32(len(p.payload))
		}
		next := map[uint16]uint32{}
		for _, packet := range coalesce(batch...) {
			tcp := packet[20:]
			if packet[0]>>4 == 6 {
				tcp = packet[40:]
			}
			port, seq := binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint32(tcp[4:])
			if seq != next[port] {
				t.Fatalf("seed %d: sequence number %d, want %d", seed, seq, next[port])
			}
			next[port] += uint32(len(tcp) - 20)
			out[fmt.Sprint(port, binary.BigEndian.Uint16(tcp[14:]))] += string(tcp[20:])
		}
		if fmt.Sprint(in) != fmt.Sprint(out) {
			t.Fatalf("seed %d: in %q, out %q", seed, in, out)
		}
	}
}

// TestSegments looks at every packet of a transfer: none is longer than the
// MTU, the checksums are right, and the data is in order.
func TestSegments(t *testing.T) {
	for _, to := range []netip.Addr{addrB4, addrB6} {
		a := newStack(t, Config{Addresses: []netip.Addr{addrA4, addrA6}, MTU: 1280})
		b := newStack(t, Config{Addresses: []netip.Addr{addrB4, addrB6}})
		data := make([]byte, 300000)
		rand.NewChaCha8([32]byte{3}).Read(data)
		var mu sync.Mutex // protects the three counters
		var first, longest, full uint32
		check := func(packet []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			ip := 20
			pseudo := append(bytes.Clone(packet[12:20]), 0, 6, byte((len(packet)-20)>>8), byte(len(packet)-20))
			if packet[0]>>4 == 6 {
				ip = 40
				pseudo = append(bytes.Clone(packet[8:40]), 0, 6, byte((len(packet)-40)>>8), byte(len(packet)-40))
			} else if onesComplement(packet[:20]) != 0 || int(binary.BigEndian.Uint16(packet[2:])) != len(packet) {
				t.Errorf("wrong IPv4 header % x", packet[:20])
			}
			tcp := packet[ip:]
			summed := append(pseudo, tcp...)
			if len(summed)%2 == 1 {
				summed = append(summed, 0)
			}
			if onesComplement(summed) != 0 {
				t.Errorf("wrong TCP checksum in a packet of %d bytes", len(packet))
			}
			seq, payload := binary.BigEndian.Uint32(tcp[4:]), tcp[tcp[12]>>4*4:]
			if tcp[13]&2 != 0 { // SYN
				first = seq + 1
				return false
			}
			if len(payload) == 0 {
				return false
			}
			if at := int(seq - first); at+len(payload) > len(data) || !bytes.Equal(payload, data[at:at+len(payload)]) {
				t.Errorf("%d bytes at %d are not those of the stream", len(payload), seq-first)
			}
			longest = max(longest, uint32(len(packet)))
			// The stack leaves room for options that it may need later.
			if len(packet) > 1280-40 {
				full++
			}
			return false
		}
		connect(t, a, b, check)
		connect(t, b, a, nil)
		l, err := b.ListenTCP(netip.AddrPortFrom(to, 0))
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				close(got)
				return
			}
			all, _ := io.ReadAll(conn)
			got <- all
			conn.Close()
		}()
		conn, err := a.DialContext(testContext(t), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Write(data); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if !bytes.Equal(<-got, data) {
			t.Error("other data arrived")
		}
		l.Close()
		mu.Lock()
		if longest > 1280 || full < 200 {
			t.Errorf("longest packet %d, %d full ones", longest, full)
		}
		mu.Unlock()
	}
}

// TestSegmentsOverSmallBatches reads one packet at a time, so that a long
// segment takes many calls.
func TestSegmentsOverSmallBatches(t *testing.T) {
	a := newStack(t, Config{Addresses: []netip.Addr{addrA4}})
	b := newStack(t, Config{Addresses: []netip.Addr{addrB4}})
	connect(t, oneByOne{a}, b, nil)
	connect(t, oneByOne{b}, a, nil)
	port := localService(t, "127.0.0.1", echo)
	conn, err := a.DialContext(testContext(t), "tcp", netip.AddrPortFrom(addrB4, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data := make([]byte, 500000)
	rand.NewChaCha8([32]byte{4}).Read(data)
	if got := roundTrip(t, conn, data); !bytes.Equal(got, data) {
		t.Error("other data came back")
	}
}

type oneByOne struct{ tun.Device }

func (oneByOne) BatchSize() int { return 1 }

// TestOwnAddress reaches the host's service without leaving the stack.
func TestOwnAddress(t *testing.T) {
	s := newStack(t, Config{Addresses: []netip.Addr{addrA4, addrA6}})
	port := localService(t, "127.0.0.1", echo)
	for _, addr := range []netip.Addr{addrA4, addrA6} {
		conn, err := s.DialContext(testContext(t), "tcp", netip.AddrPortFrom(addr, port).String())
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 200000)
		rand.NewChaCha8([32]byte{5}).Read(data)
		if got := roundTrip(t, conn, data); !bytes.Equal(got, data) {
			t.Errorf("%v: other data came back", addr)
		}
		conn.Close()
	}
}
