package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/acltest"
	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/tests/lab"
)

const (
	// relayed is a full packet of a tunnel over Ethernet: 1,420 bytes inside.
	relayed = 1452
	// burst is what a node hands to its socket at once.
	burst = 64
	// inFlight bounds what was sent and not yet received: a sender that is told
	// nothing of losses would only measure how cheaply packets are dropped.
	inFlight = 4096
	// idleSessions and idleBound are how many nodes are connected and do nothing:
	// the second with a UDP address of their own. One process may have 20,000
	// files.
	idleSessions = 10_000
	idleBound    = 9_000
)

// relaySite is a warren-relay in a process of its own, on the loopback interface.
type relaySite struct {
	b       *testing.B
	network *acltest.Network
	url     string
	udp     netip.AddrPort
	pid     int
	client  *http.Client
}

// newRelaySite starts a relay, which takes TLS where it is to.
func newRelaySite(b *testing.B, secure bool) *relaySite {
	b.Helper()
	s := &relaySite{b: b, network: acltest.NewNetwork(1, time.Now()), client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	dir := b.TempDir()
	var flags []string
	scheme := "ws://"
	if secure {
		certificate, key, trusting := lab.ServerCertificate(b, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		s.client.Transport = &http.Transport{DisableKeepAlives: true, TLSClientConfig: trusting}
		flags, scheme = []string{"--tls-cert", certificate, "--tls-key", key}, "wss://"
	}
	if err := os.WriteFile(filepath.Join(dir, "genesis"), s.network.Genesis.AppendBinary(nil), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(lab.Program(b, "warren-relay"), append([]string{
		"serve", "--name", "bench", "--genesis", filepath.Join(dir, "genesis"), "--fingerprint", s.network.Genesis.Fingerprint().String(),
		"--listen", "127.0.0.1:0", "--udp-listen", "127.0.0.1:0", "--metrics-listen", "off", "--rate", "12500000000", "--max-clients", "20000",
	}, flags...)...)
	out, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	s.pid = cmd.Process.Pid
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		m := regexp.MustCompile(`msg=relaying .*address=(\S+) .*udp=(\d+)`).FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		s.url = scheme + m[1] + relayhttp.Path
		s.udp = netip.MustParseAddrPort("127.0.0.1:" + m[2])
		return s
	}
	b.Fatal("the relay did not start")
	return nil
}

// cpu returns what processor time the relay took until now.
func (s *relaySite) cpu() time.Duration { return processorTime(s.b, [2]int{s.pid, s.pid}) / 2 }

// resident returns the relay's resident memory in bytes.
func (s *relaySite) resident() int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		s.b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		s.b.Fatal(err)
	}
	return n << 10
}

// relayNode is one node at the relay, without a tunnel.
type relayNode struct {
	b   *testing.B
	key ident.NodePrivate
	ws  relayhttp.Conn
	udp sock.Conn

	mu      sync.Mutex // protects session
	session *relay.Session
	link    atomic.Pointer[relay.Link]
}

// join connects a node, with datagrams from a socket of its own or without.
func (s *relaySite) join(datagrams bool) *relayNode {
	s.b.Helper()
	n := s.enter(datagrams)
	go n.read()
	if !datagrams {
		return n
	}
	var err error
	if n.udp, err = sock.Listen(sock.Config{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}); err != nil {
		s.b.Fatal(err)
	}
	s.b.Cleanup(func() { n.udp.Close() })
	go n.drive(s.udp)
	return n
}

// enter connects a node as far as the admission.
func (s *relaySite) enter(datagrams bool) *relayNode {
	s.b.Helper()
	n := &relayNode{b: s.b, key: s.network.NodeKey()}
	token, err := authority.IssueRelayToken(s.network.Genesis, authority.RelayToken{
		NodeKey: n.key.Public(), NotAfter: time.Now().Add(authority.RelayTokenValidity), Relays: []string{"bench"},
	}, s.network.Signer)
	if err != nil {
		s.b.Fatal(err)
	}
	if n.ws, err = (relayhttp.Dialer{Client: s.client}).Dial(s.b.Context(), s.url); err != nil {
		s.b.Fatal(err)
	}
	s.b.Cleanup(func() { n.ws.Close() })
	cfg := relay.SessionConfig{Key: n.key, Relay: "bench", Token: token, Binding: relayhttp.Binding(n.ws)}
	if datagrams {
		cfg.Datagrams = s.udp
	}
	if n.session, err = relay.NewSession(cfg, time.Now()); err != nil {
		s.b.Fatal(err)
	}
	for !n.session.Ready() {
		message, err := n.ws.ReadMessage(s.b.Context(), nil)
		if err != nil {
			s.b.Fatal(err)
		}
		n.handle(message)
	}
	return n
}

func (n *relayNode) handle(message []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.session.HandleMessage(message, time.Now()); err != nil {
		n.b.Error(err)
	}
	n.drainLocked()
}

func (n *relayNode) drainLocked() {
	for out, ok := n.session.NextTransmit(); ok; out, ok = n.session.NextTransmit() {
		if err := n.ws.WriteMessage(context.Background(), out); err != nil {
			return
		}
	}
	for _, ok := n.session.NextEvent(); ok; _, ok = n.session.NextEvent() {
		n.link.Store(n.session.Link())
	}
}

func (n *relayNode) read() {
	for {
		message, err := n.ws.ReadMessage(context.Background(), nil)
		if err != nil {
			return
		}
		n.handle(message)
	}
}

// drive keeps the node's address bound until its socket is closed.
func (n *relayNode) drive(to netip.AddrPort) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		n.mu.Lock()
		n.session.HandleTimeout(time.Now())
		n.drainLocked()
		out, ok := n.session.NextDatagram()
		n.mu.Unlock()
		if ok && errors.Is(n.udp.WriteBatch([][]byte{out}, to), net.ErrClosed) {
			return
		}
	}
}

// receive counts the packets that come as datagrams, and hands them to heard where
// that is not nil, until the socket is closed.
func (n *relayNode) receive(count *atomic.Int64, heard func(payload []byte)) {
	size := n.udp.BatchSize()
	bufs, sizes, from := make([][]byte, size), make([]int, size), make([]netip.AddrPort, size)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	reader := n.udp.Readers()[0]
	for {
		got, err := reader.ReadBatch(bufs, sizes, from)
		if err != nil {
			return
		}
		for i := range got {
			b := bufs[i][:sizes[i]]
			if relay.IsDatagramPacket(b) {
				count.Add(1)
				if heard != nil {
					heard(b[relay.DatagramHeader:])
				}
				continue
			}
			n.mu.Lock()
			n.session.HandleDatagram(b, time.Now())
			n.drainLocked()
			out, ok := n.session.NextDatagram()
			n.mu.Unlock()
			if ok {
				_ = n.udp.WriteBatch([][]byte{out}, from[i])
			}
		}
	}
}

// linked waits until a node may send datagrams to another.
func (n *relayNode) linked(to *relayNode) [relay.DatagramHeader]byte {
	n.b.Helper()
	var header [relay.DatagramHeader]byte
	lab.Eventually(n.b, 30*time.Second, func() error {
		if link := n.link.Load(); link != nil {
			var ok bool
			if header, ok = link.Header(to.key.Public()); ok {
				return nil
			}
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.session.HandleWanted(to.key.Public(), time.Now())
		n.drainLocked()
		return errors.New("no datagrams yet")
	})
	return header
}

// flow is one measurement of a way through the relay.
type flow struct {
	send     func() // one burst
	received atomic.Int64
}

// measure sends for a time, no faster than what arrives, and returns how many
// bytes a processor second of the relay carried, and the rate.
func (s *relaySite) measure(f *flow, forTime time.Duration) (bytesPerSecond, gigabits float64) {
	began, before, start := time.Now(), s.cpu(), f.received.Load()
	sent := int64(0)
	stalled := time.Now()
	for time.Since(began) < forTime {
		got := f.received.Load() - start
		if sent-got >= inFlight {
			// What was lost does not come any more.
			if time.Since(stalled) > 50*time.Millisecond {
				sent = got
			}
			<-time.After(50 * time.Microsecond)
			continue
		}
		stalled = time.Now()
		f.send()
		sent += burst
	}
	took := time.Since(began)
	carried := float64((f.received.Load() - start) * relayed)
	used := (s.cpu() - before).Seconds()
	if carried == 0 || used == 0 {
		s.b.Fatal("the relay carried nothing")
	}
	return carried / used, carried * 8 / took.Seconds() / 1e9
}

// datagramFlow is packets of one node to another as datagrams.
func (s *relaySite) datagramFlow() *flow {
	from, to := s.join(true), s.join(true)
	f := new(flow)
	var ignored atomic.Int64
	go from.receive(&ignored, nil)
	go to.receive(&f.received, nil)
	header := from.linked(to)
	packets := make([][]byte, burst)
	for i := range packets {
		packets[i] = append(header[:], make([]byte, relayed)...)
	}
	f.send = func() {
		if err := from.udp.WriteBatch(packets, s.udp); err != nil {
			s.b.Fatal(err)
		}
	}
	return f
}

// streamFlow is the same by the WebSocket.
func (s *relaySite) streamFlow() *flow {
	from, to := s.enter(false), s.enter(false)
	f := new(flow)
	go func() {
		buf := make([]byte, 0, relay.MaxMessage)
		for {
			message, err := to.ws.ReadMessage(context.Background(), buf)
			if err != nil {
				return
			}
			for len(message) > 0 {
				var frame relay.Frame
				if frame, message, err = relay.Next(message); err != nil {
					return
				}
				if frame.Type == relay.FrameRecv {
					f.received.Add(1)
				}
			}
		}
	}()
	var messages [2][]byte
	for i := range burst {
		m := &messages[i%2]
		*m, _ = relay.AppendSendPacket(*m, to.key.Public(), make([]byte, relayed))
	}
	f.send = func() {
		for _, m := range messages {
			if err := from.ws.WriteMessage(context.Background(), m); err != nil {
				s.b.Fatal(err)
			}
		}
	}
	return f
}

// BenchmarkRelay measures what forwarding costs the relay, by a WebSocket, by one
// over TLS, and as datagrams, which take turns in one run; and again while 10,000
// nodes are connected that do nothing, and what memory those take, with TLS and
// without.
func BenchmarkRelay(b *testing.B) {
	s, secure := newRelaySite(b, false), newRelaySite(b, true)
	ways := []struct {
		name string
		site *relaySite
		flow *flow
		cost []float64
	}{
		{name: "WebSocket", site: s, flow: s.streamFlow()},
		{name: "TLS", site: secure, flow: secure.streamFlow()},
		{name: "datagram", site: s, flow: s.datagramFlow()},
	}
	ratios := make([][]float64, len(ways))
	var rate, crowded []float64
	for b.Loop() {
		var carried [3]float64
		for i := range ways {
			var gigabits float64
			carried[i], gigabits = ways[i].site.measure(ways[i].flow, roundTime)
			ways[i].cost = append(ways[i].cost, 1e9/carried[i])
			rate = append(rate, gigabits)
		}
		for i := range ways {
			ratios[i] = append(ratios[i], carried[2]/carried[i])
		}
	}
	plain, leave := s.crowd()
	carried, _ := s.measure(ways[2].flow, roundTime)
	crowded = append(crowded, 1e9/carried)
	leave() // the next crowd needs their files
	sealed, leave := secure.crowd()
	leave()
	for i, w := range ways {
		b.ReportMetric(median(w.cost), w.name+"-CPU-s/GB")
		if i < 2 {
			b.ReportMetric(median(ratios[i]), "times-"+w.name)
		}
	}
	b.ReportMetric(rate[len(rate)-1], "datagram-Gbit/s")
	b.ReportMetric(median(crowded), "datagram-CPU-s/GB-with-10k")
	b.ReportMetric(plain, "KB/idle-session")
	b.ReportMetric(sealed, "KB/idle-TLS-session")
	b.ReportMetric(0, "ns/op")
}

// crowd connects nodes that do nothing until leave is called, and returns how many
// KB of the relay's resident memory each takes.
func (s *relaySite) crowd() (each float64, leave func()) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < idleSessions+idleBound+500 {
		s.b.Fatalf("this process may have only %d files, %v", limit.Cur, err)
	}
	before := s.resident()
	var files []io.Closer
	for i := range idleSessions {
		n := s.enter(i < idleBound)
		files = append(files, n.ws)
		if i < idleBound {
			files = append(files, s.bindOnce(n))
		}
	}
	return float64(s.resident()-before) / idleSessions / 1024, func() {
		for _, f := range files {
			f.Close()
		}
	}
}

// bindOnce binds the address of a node that is going to do nothing, and returns its
// socket.
func (s *relaySite) bindOnce(n *relayNode) io.Closer {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(s.udp))
	if err != nil {
		s.b.Fatal(err)
	}
	s.b.Cleanup(func() { conn.Close() })
	for !n.session.Snapshot().Datagrams.Bound {
		n.session.HandleTimeout(time.Now())
		out, ok := n.session.NextDatagram()
		if !ok {
			// The offer comes after the admission.
			message, err := n.ws.ReadMessage(s.b.Context(), nil)
			if err != nil {
				s.b.Fatal(err)
			}
			n.handle(message)
			continue
		}
		if _, err := conn.Write(out); err != nil {
			s.b.Fatal(err)
		}
		answer := make([]byte, 2048)
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			s.b.Fatal(err)
		}
		got, err := conn.Read(answer)
		if err != nil {
			s.b.Fatal(err)
		}
		n.session.HandleDatagram(answer[:got], time.Now())
	}
	return conn
}

// delays are those of packets that bear the time at which they were sent.
type delays struct {
	began time.Time

	mu    sync.Mutex // protects all below
	times []time.Duration
}

func (d *delays) stamp(payload []byte) {
	binary.NativeEndian.PutUint64(payload, uint64(time.Since(d.began)))
}

func (d *delays) heard(payload []byte) {
	took := time.Since(d.began) - time.Duration(binary.NativeEndian.Uint64(payload))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.times = append(d.times, took)
}

// take returns the delays since the last call.
func (d *delays) take() []time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	times := d.times
	d.times = nil
	return times
}

// BenchmarkRelayFlood measures what ten nodes lose that send 10 Mbit/s each while
// another sends as fast as it can, and how long their packets take meanwhile.
func BenchmarkRelayFlood(b *testing.B) {
	s := newRelaySite(b, false)
	const modest = 10
	var got [modest]atomic.Int64
	late := &delays{began: time.Now()}
	var senders [modest]func()
	for i := range senders {
		from, to := s.join(true), s.join(true)
		var ignored atomic.Int64
		go from.receive(&ignored, nil)
		go to.receive(&got[i], late.heard)
		header := from.linked(to)
		packet := [][]byte{append(header[:], make([]byte, relayed)...)}
		senders[i] = func() {
			late.stamp(packet[0][relay.DatagramHeader:])
			_ = from.udp.WriteBatch(packet, s.udp)
		}
	}
	flood := s.datagramFlow()
	// run sends for a while and returns which part of the modest nodes' packets
	// arrived.
	run := func(flooding bool) float64 {
		var sent, before int64
		for i := range got {
			before += got[i].Load()
		}
		stop := make(chan struct{})
		var flooder sync.WaitGroup
		if flooding {
			flooder.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						flood.send()
					}
				}
			})
		}
		// 860 packets a second each are 10 Mbit/s.
		tick := time.NewTicker(time.Second / 860)
		for began := time.Now(); time.Since(began) < roundTime; {
			<-tick.C
			for _, send := range senders {
				send()
				sent++
			}
		}
		tick.Stop()
		close(stop)
		flooder.Wait()
		<-time.After(200 * time.Millisecond) // what is under way arrives
		var after int64
		for i := range got {
			after += got[i].Load()
		}
		return float64(after-before) / float64(sent)
	}
	var lost []float64
	var quietly, flooded []time.Duration
	for b.Loop() {
		quiet := run(false)
		quietly = append(quietly, late.take()...)
		lost = append(lost, 100*(1-run(true)/quiet))
		flooded = append(flooded, late.take()...)
	}
	report(b, flooded)
	b.ReportMetric(at(quietly, 0.5), "quiet-ms/median")
	b.ReportMetric(at(quietly, 0.99), "quiet-ms/p99")
	b.ReportMetric(median(lost), "%lost-to-flood")
}
