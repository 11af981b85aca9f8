package channel

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flynn/noise"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// network is one coordinator and one node that know each other.
type network struct {
	machine ident.MachinePrivate
	channel ident.ChannelPrivate
	genesis *authority.Genesis
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	machine, err := ident.NewMachinePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	channel, err := ident.NewChannelPrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ident.NewSignerPrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &network{machine: machine, channel: channel, genesis: &authority.Genesis{
		Created: time.Unix(1, 0), Channel: channel.Public(),
		Signers: []authority.Signer{{Key: signer.Public(), Roles: authority.SignDevices | authority.SignRules | authority.SignRelayTokens}},
		Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: netip.MustParsePrefix("fd00::/48"),
	}}
}

func (n *network) client() ClientConfig {
	return ClientConfig{Machine: n.machine, Coordinator: n.channel.Public(), Network: n.genesis.Fingerprint(), Rand: rand.Reader}
}

func (n *network) server() ServerConfig {
	return ServerConfig{Channel: n.channel, Network: n.genesis.Fingerprint(), Rand: rand.Reader}
}

type outcome struct {
	conn *Conn
	err  error
}

// shake runs both sides of a handshake over two streams.
func shake(t testing.TB, a, b net.Conn, client ClientConfig, server ServerConfig) (node, coordinator outcome) {
	t.Helper()
	done := make(chan outcome)
	go func() {
		c, err := Server(context.Background(), b, server)
		done <- outcome{c, err}
	}()
	c, err := Client(context.Background(), a, client)
	return outcome{c, err}, <-done
}

func connected(t testing.TB, n *network) (node, coordinator *Conn) {
	t.Helper()
	a, b := net.Pipe()
	client, server := shake(t, a, b, n.client(), n.server())
	if client.err != nil || server.err != nil {
		t.Fatalf("handshake: client %v, server %v", client.err, server.err)
	}
	t.Cleanup(func() { client.conn.Close(); server.conn.Close() })
	return client.conn, server.conn
}

func TestMessagesOfEverySizeArriveWhole(t *testing.T) {
	n := newNetwork(t)
	node, coordinator := connected(t, n)
	if coordinator.Peer() != n.machine.Public() {
		t.Fatalf("peer is %v, want %v", coordinator.Peer(), n.machine.Public())
	}
	if other, _ := connected(t, n); node.Binding() != coordinator.Binding() || node.Binding() == other.Binding() {
		t.Error("the binding is not that of one channel on both its sides")
	}
	if !node.Peer().IsZero() {
		t.Errorf("a node's own side has peer %v", node.Peer())
	}
	full := maxRecord - tagSize - lengthSize
	for _, size := range []int{0, 1, full - 1, full, full + 1, full + maxRecord - tagSize, full + maxRecord - tagSize + 1, 3 << 20} {
		message := bytes.Repeat([]byte{byte(size), 7, 9}, size/3+1)[:size]
		sent := make(chan error, 1)
		go func() { sent <- coordinator.Send(message) }()
		got, err := node.Receive()
		if err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeysChange(t *testing.T) {
	node, coordinator := connected(t, newNetwork(t))
	node.out.rekeyEvery, coordinator.in.rekeyEvery = 4, 4
	before := node.out.state.UnsafeKey()
	for i := range byte(20) {
		sent := make(chan error, 1)
		go func() { sent <- node.Send([]byte{i}) }()
		got, err := coordinator.Receive()
		if err != nil || len(got) != 1 || got[0] != i {
			t.Fatalf("message %d: %v, %v", i, got, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	if node.out.state.UnsafeKey() == before {
		t.Error("20 records at 4 a key, and the key is the first one")
	}
}

// TestRecordOverTheLimitIsRefusedByItsLength announces more than a stranger may
// send, and sends none of it: nothing is held for it (F21).
func TestRecordOverTheLimitIsRefusedByItsLength(t *testing.T) {
	for _, size := range []uint16{smallRecord + 1, 0xffff} {
		n := newNetwork(t)
		a, b := net.Pipe()
		client, server := shake(t, a, b, n.client(), n.server())
		if client.err != nil || server.err != nil {
			t.Fatal(client.err, server.err)
		}
		received := make(chan error, 1)
		go func() {
			_, err := server.conn.Receive()
			received <- err
		}()
		if _, err := a.Write(binary.BigEndian.AppendUint16(nil, size)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-received:
			if !errors.Is(err, ErrTooLarge) {
				t.Errorf("%d bytes announced: %v", size, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("the coordinator waits for the %d bytes that were announced", size)
		}
		client.conn.Close()
		server.conn.Close()
	}
}

func TestNonceCeilingIsAnError(t *testing.T) {
	node, _ := connected(t, newNetwork(t))
	node.out.state.SetNonce(noise.MaxNonce + 1)
	if err := node.Send([]byte("x")); !errors.Is(err, noise.ErrMaxNonce) {
		t.Fatalf("sending with the last nonce spent: %v", err)
	}
	if err := node.Send([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Fatalf("sending after an error: %v", err)
	}
}

func TestHandshakeRefuses(t *testing.T) {
	n, other := newNetwork(t), newNetwork(t)
	for _, c := range []struct {
		name   string
		client func(*ClientConfig)
	}{
		{"another coordinator's key", func(c *ClientConfig) { c.Coordinator = other.channel.Public() }},
		{"another network", func(c *ClientConfig) { c.Network = other.genesis.Fingerprint() }},
		{"no machine key", func(c *ClientConfig) { c.Machine = ident.MachinePrivate{} }},
		{"no coordinator key", func(c *ClientConfig) { c.Coordinator = ident.ChannelKey{} }},
		{"a coordinator key of low order", func(c *ClientConfig) { c.Coordinator = ident.ChannelKey{1} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := n.client()
			c.client(&cfg)
			a, b := net.Pipe()
			client, server := shake(t, a, b, cfg, n.server())
			if !errors.Is(client.err, ErrHandshake) || client.conn != nil {
				t.Errorf("client: %v", client.err)
			}
			if server.err == nil || server.conn != nil {
				t.Errorf("server took it")
			}
		})
	}
}

// TestHandshakeTampered flips every byte of both handshake messages in turn.
func TestHandshakeTampered(t *testing.T) {
	n := newNetwork(t)
	for _, c := range []struct {
		name string
		size int
		wrap func(a, b net.Conn, f *flip) (net.Conn, net.Conn)
	}{
		{"first message", 96, func(a, b net.Conn, f *flip) (net.Conn, net.Conn) { f.Conn = a; return f, b }},
		{"second message", 48, func(a, b net.Conn, f *flip) (net.Conn, net.Conn) { f.Conn = b; return a, f }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for at := range c.size {
				a, b := net.Pipe()
				f := &flip{at: headSize + at}
				a, b = c.wrap(a, b, f)
				client, server := shake(t, a, b, n.client(), n.server())
				if client.err == nil {
					t.Errorf("byte %d changed, and the client took it (server: %v)", at, server.err)
				}
				if !f.done {
					t.Fatalf("byte %d was never sent", at)
				}
			}
		})
	}
}

// flip changes the byte at a place of what is written.
type flip struct {
	net.Conn
	at   int
	done bool
}

func (f *flip) Write(b []byte) (int, error) {
	if f.at >= 0 && f.at < len(b) {
		b = bytes.Clone(b)
		b[f.at] ^= 1
		f.done = true
	}
	f.at -= len(b)
	return f.Conn.Write(b)
}

func TestTamperedRecordsAreRefused(t *testing.T) {
	for at := range headSize + lengthSize + 5 + tagSize {
		node, coordinator := connected(t, newNetwork(t))
		node.stream = &flip{Conn: node.stream, at: at}
		go func() {
			node.Send([]byte("hello"))
			node.Close()
		}()
		if got, err := coordinator.Receive(); err == nil {
			t.Errorf("byte %d changed, and %q arrived", at, got)
		}
	}
}

func TestReplayedRecordIsRefused(t *testing.T) {
	node, coordinator := connected(t, newNetwork(t))
	recorder := &record{Conn: node.stream}
	node.stream = recorder
	go func() {
		node.Send([]byte("hello"))
		recorder.Conn.Write(recorder.last)
	}()
	if got, err := coordinator.Receive(); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err := coordinator.Receive(); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("the same record again: %q, %v", got, err)
	}
}

type record struct {
	net.Conn
	last []byte
}

func (r *record) Write(b []byte) (int, error) {
	r.last = bytes.Clone(b)
	return r.Conn.Write(b)
}

func TestLimits(t *testing.T) {
	node, coordinator := connected(t, newNetwork(t))
	if err := node.Send(make([]byte, wire.MaxClientMessage+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a message over the client's limit: %v", err)
	}
	if err := coordinator.Send(make([]byte, wire.MaxServerMessage+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a message over the server's limit: %v", err)
	}
	go node.Send(make([]byte, UnregisteredLimit))
	if got, err := coordinator.Receive(); err != nil || len(got) != UnregisteredLimit {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	coordinator.SetReceiveLimit(wire.MaxClientMessage)
	go node.Send(make([]byte, wire.MaxClientMessage))
	if got, err := coordinator.Receive(); err != nil || len(got) != wire.MaxClientMessage {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	coordinator.SetReceiveLimit(UnregisteredLimit)
	go node.Send(make([]byte, UnregisteredLimit+1))
	if _, err := coordinator.Receive(); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("a message over the limit: %v", err)
	}
}

func TestEndBetweenMessagesIsEOF(t *testing.T) {
	node, coordinator := connected(t, newNetwork(t))
	node.Close()
	if _, err := coordinator.Receive(); !errors.Is(err, io.EOF) {
		t.Fatalf("%v, want EOF", err)
	}
}

// TestSlowHandshake proves that who says nothing, or only begins to speak, is
// not waited for.
func TestSlowHandshake(t *testing.T) {
	for _, first := range [][]byte{nil, {0}, {0, 96}, append([]byte{0, 96}, make([]byte, 95)...)} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			a, b := net.Pipe()
			defer a.Close()
			go a.Write(first)
			begin := time.Now()
			cfg := n.server()
			cfg.HandshakeTimeout = 3 * time.Second
			_, err := Server(context.Background(), b, cfg)
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after %d bytes: %v", len(first), err)
			}
			if waited := time.Since(begin); waited != 3*time.Second {
				t.Errorf("waited %v", waited)
			}
		})
	}
}

func TestClientStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		go io.Copy(io.Discard, b)
		ctx, cancel := context.WithCancelCause(context.Background())
		why := errors.New("no longer wanted")
		time.AfterFunc(time.Second, func() { cancel(why) })
		if _, err := Client(ctx, a, newNetwork(t).client()); !errors.Is(err, why) {
			t.Fatalf("%v", err)
		}
	})
}

// TestOversizeHandshake proves that a first message over the limit is refused
// from its length alone.
func TestOversizeHandshake(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	go a.Write([]byte{0xff, 0xff})
	if _, err := Server(context.Background(), b, newNetwork(t).server()); !errors.Is(err, ErrHandshake) {
		t.Fatal(err)
	}
}

func serve(t *testing.T, n *network, prefix string, handle func(*Conn)) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc(prefix+ControlPath, func(w http.ResponseWriter, r *http.Request) {
		c, err := Accept(w, r, n.server())
		if err != nil {
			return
		}
		defer c.Close()
		handle(c)
	})
	mux.HandleFunc("GET "+prefix+GenesisPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Write(n.genesis.AppendBinary(nil))
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func TestOverHTTP(t *testing.T) {
	n, other := newNetwork(t), newNetwork(t)
	peers := make(chan ident.MachineKey, 8)
	s := serve(t, n, "/below", func(c *Conn) {
		peers <- c.Peer()
		m, err := c.Receive()
		if err != nil {
			return
		}
		c.Send(append(m, m...))
		c.Receive() // until the node closes
	})
	genesis, err := FetchGenesis(t.Context(), nil, s.URL+"/below/", n.genesis.Fingerprint())
	if err != nil {
		t.Fatal(err)
	}
	if genesis.Fingerprint() != n.genesis.Fingerprint() {
		t.Fatal("another genesis record")
	}
	if _, err := FetchGenesis(t.Context(), s.Client(), s.URL+"/below", other.genesis.Fingerprint()); !errors.Is(err, authority.ErrFingerprint) {
		t.Errorf("the fingerprint of another network: %v", err)
	}
	if _, err := FetchGenesis(t.Context(), s.Client(), s.URL, n.genesis.Fingerprint()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("no genesis record there: %v", err)
	}
	for _, bad := range []string{"", "ftp://x", "host:8080", "http://", "http://u:p@x", "http://x?q"} {
		if _, err := FetchGenesis(t.Context(), nil, bad, n.genesis.Fingerprint()); !errors.Is(err, ErrURL) {
			t.Errorf("URL %q: %v", bad, err)
		}
	}

	cfg := DialConfig{URL: s.URL + "/below", Machine: n.machine, Coordinator: genesis.Channel, Network: n.genesis.Fingerprint(), Rand: rand.Reader}
	ctx, cancel := context.WithCancel(t.Context())
	c, err := Dial(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel() // the channel outlives the context of its making
	if got := <-peers; got != n.machine.Public() {
		t.Errorf("peer is %v", got)
	}
	if err := c.Send([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Receive(); err != nil || string(got) != "abab" {
		t.Fatalf("%q, %v", got, err)
	}

	cfg.Network = other.genesis.Fingerprint()
	if _, err := Dial(t.Context(), cfg); !errors.Is(err, ErrHandshake) {
		t.Errorf("another network: %v", err)
	}
	cfg.URL = s.URL
	if _, err := Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("no channel there: %v", err)
	}
}

// TestLongGenesisIsRefused proves that a coordinator cannot make a node read
// for ever.
func TestLongGenesisIsRefused(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(make([]byte, maxGenesis+1))
	}))
	defer s.Close()
	if _, err := FetchGenesis(t.Context(), nil, s.URL, ident.Fingerprint{1}); !errors.Is(err, authority.ErrMalformed) {
		t.Fatal(err)
	}
}

// FuzzReceive feeds a receiver records whose plaintext is the input, cut where
// the input says, and raw bytes: it must end with an error or with the message
// that a plain reading of the records gives.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'a', 'b'}, uint8(3), false)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0}, uint8(0), false)
	f.Add([]byte{0, 17, 1, 2, 3}, uint8(0), true)
	f.Fuzz(func(t *testing.T, plain []byte, cut uint8, raw bool) {
		key := [32]byte{1}
		sender := noise.UnsafeNewCipherState(suite, key, 0)
		var stream bytes.Buffer
		if raw {
			stream.Write(plain)
		}
		for rest := plain; !raw && len(rest) > 0; {
			n := min(len(rest), max(int(cut), lengthSize))
			sealed, err := sender.Encrypt(nil, nil, rest[:n])
			if err != nil {
				t.Fatal(err)
			}
			stream.Write(binary.BigEndian.AppendUint16(nil, uint16(len(sealed))))
			stream.Write(sealed)
			rest = rest[n:]
		}
		c := newConn(readOnly{r: &stream}, ident.MachineKey{}, wire.Binding{}, noise.UnsafeNewCipherState(suite, key, 0), nil, UnregisteredLimit, 0)
		got, err := c.Receive()
		if err != nil {
			return
		}
		if raw {
			t.Fatalf("bytes without a key became the message %x", got)
		}
		if want := plain[lengthSize : lengthSize+len(got)]; !bytes.Equal(got, want) || int(binary.BigEndian.Uint32(plain)) != len(got) || len(got) > UnregisteredLimit {
			t.Fatalf("got %x of %x", got, plain)
		}
	})
}

// FuzzServerHandshake feeds a coordinator anything for a first message.
func FuzzServerHandshake(f *testing.F) {
	f.Add([]byte{0, 96})
	f.Add(append([]byte{0, 96}, make([]byte, 96)...))
	n := newNetwork(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Server(context.Background(), readOnly{r: bytes.NewReader(b)}, n.server()); err == nil {
			t.Fatalf("%x made %v a peer", b, c.Peer())
		}
	})
}

// readOnly is a stream that gives r's bytes and drops what is written.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (s readOnly) Read(b []byte) (int, error)       { return s.r.Read(b) }
func (s readOnly) Write(b []byte) (int, error)      { return len(b), nil }
func (s readOnly) Close() error                     { return nil }
func (s readOnly) SetDeadline(time.Time) error      { return nil }
func (s readOnly) SetReadDeadline(time.Time) error  { return nil }
func (s readOnly) SetWriteDeadline(time.Time) error { return nil }
