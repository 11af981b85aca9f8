package main

import (
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/server"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
)

// node is a device that joined a coordinator.
type node struct {
	key ident.NodePrivate
	ch  *channel.Conn
	m   *wire.Map
}

func join(t *testing.T, data, url string) *node {
	t.Helper()
	if got := command(data, "", "users", "create", "alice@example.com"); got.status != commandline.Done && !strings.Contains(got.errors, "exists") {
		t.Fatal(got)
	}
	var key admin.NewKey
	if err := json.Unmarshal([]byte(command(data, "", "keys", "create", "--user", "alice@example.com", "--json").out), &key); err != nil {
		t.Fatal(err)
	}
	parsed, err := wire.ParseJoinKey(key.Text)
	if err != nil {
		t.Fatal(err)
	}
	genesis, err := channel.FetchGenesis(t.Context(), nil, url, parsed.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	machine, err := ident.NewMachinePrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{}
	if n.key, err = ident.NewNodePrivate(rand.Reader); err != nil {
		t.Fatal(err)
	}
	n.ch, err = channel.Dial(t.Context(), channel.DialConfig{
		URL: url, Machine: machine, Coordinator: genesis.Channel, Network: parsed.Fingerprint, Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.ch.Close() })
	proof, err := wire.ProveNodeKey(n.key, genesis.Channel, n.ch.Binding())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []wire.ClientMessage{
		wire.Hello{Version: wire.Newest},
		wire.Register{AuthKey: parsed.Credential(), NodeKey: n.key.Public(), Hostname: "n", Proof: proof},
		wire.MapRequest{NodeKey: n.key.Public()},
	} {
		if err := n.ch.Send(wire.EncodeClient(m)); err != nil {
			t.Fatal(err)
		}
		frame, err := n.ch.Receive()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := wire.DecodeServer(frame)
		if err != nil {
			t.Fatal(err)
		}
		if full, ok := answer.(*wire.Map); ok {
			n.m = full
		}
	}
	if n.m == nil {
		t.Fatal("no map")
	}
	return n
}

// enter connects to the relay that the map names and returns whether it lets
// the key in with the token, and a function that waits for the end.
func enter(t *testing.T, url string, m *wire.Map, key ident.NodePrivate, token []byte) (admitted bool, ended func()) {
	t.Helper()
	s, step := session(t, url, m, key, token)
	for !s.Ready() && !s.Failed() && step() {
		continue
	}
	return s.Ready(), func() {
		for !s.Failed() && step() {
			continue
		}
	}
}

// session begins to connect to the relay that the map names, and returns a
// function that goes a message further, and reports whether there was one.
func session(t *testing.T, url string, m *wire.Map, key ident.NodePrivate, token []byte) (s *relay.Session, step func() bool) {
	t.Helper()
	r := m.Settings.Relays[0]
	// An empty host stands for the coordinator's address as it was reached.
	host := strings.TrimPrefix(url, "http://")
	target := regexp.MustCompile(`^ws://:\d+`).ReplaceAllString(r.URL, "ws://"+host)
	conn, err := relayhttp.Dial(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s, err = relay.NewSession(relay.SessionConfig{Key: key, Relay: r.Name, Token: token}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return s, func() bool {
		for out, ok := s.NextTransmit(); ok; out, ok = s.NextTransmit() {
			if err := conn.WriteMessage(t.Context(), out); err != nil {
				return false
			}
		}
		in, err := conn.ReadMessage(t.Context(), nil)
		if err != nil {
			return false
		}
		return s.HandleMessage(in, time.Now()) == nil
	}
}

// TestRelayList tells devices of the relays that the flags name, and of the one
// beside the coordinator unless it is switched off.
func TestRelayList(t *testing.T) {
	const other = "name=fra-1,region=eu,url=wss://fra.example.com,udp=fra.example.com:3479,stun=fra.example.com:3478"
	fra := wire.Relay{
		Name: "fra-1", Region: "eu", URL: "wss://fra.example.com" + relayhttp.Path, UDP: "fra.example.com:3479", STUN: "fra.example.com:3478",
	}
	for _, builtin := range []bool{true, false} {
		data := filepath.Join(t.TempDir(), "data")
		args := []string{"--relay", other, "--relay", "name=b,url=ws://192.0.2.1/prefix", "--relay", "name=c,url=ws://192.0.2.2/,udp=192.0.2.2:3478"}
		if builtin {
			args = append(args, "--builtin-relay-region", "home")
		} else {
			args = append(args, "--builtin-relay=false")
		}
		said, _ := serving(t, data, args...)
		url := regexp.MustCompile(`http://\S+`).FindString(said)
		got := join(t, data, url).m.Settings
		if builtin {
			own := got.Relays[0]
			if own.Name != "default" || own.Region != "home" || own.STUN != got.STUN[0] || !strings.HasSuffix(own.URL, relayhttp.Path) {
				t.Errorf("the built-in relay is told as %+v", own)
			}
			got.Relays = got.Relays[1:]
		}
		// The port that takes packets answers STUN requests, too.
		c := wire.Relay{Name: "c", URL: "ws://192.0.2.2" + relayhttp.Path, UDP: "192.0.2.2:3478", STUN: "192.0.2.2:3478"}
		if want := []wire.Relay{fra, {Name: "b", URL: "ws://192.0.2.1/prefix"}, c}; !slices.Equal(got.Relays, want) {
			t.Errorf("relays %+v, want %+v", got.Relays, want)
		}
		response, err := http.Get(url + relayhttp.Path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if served := response.StatusCode != http.StatusNotFound; served != builtin {
			t.Errorf("with --builtin-relay=%v the relay answers %s", builtin, response.Status)
		}
	}
}

// TestRelayLeaves: before the coordinator stops, the relay beside it tells its
// clients, where there is another one to go to, and goes on for a second.
func TestRelayLeaves(t *testing.T) {
	for _, another := range []bool{true, false} {
		data := filepath.Join(t.TempDir(), "data")
		var args []string
		if another {
			args = []string{"--relay", "name=fra-1,url=wss://fra.example.com"}
		}
		said, stop := serving(t, data, args...)
		url := regexp.MustCompile(`http://\S+`).FindString(said)
		a := join(t, data, url)
		s, step := session(t, url, a.m, a.key, a.m.RelayToken)
		for !s.Ready() && step() {
			continue
		}
		for e, ok := s.NextEvent(); ok; e, ok = s.NextEvent() {
			if e.Kind == relay.EventLeaving {
				t.Fatal("it leaves before it is told to")
			}
		}
		status := make(chan int, 1)
		go func() { status <- stop() }()
		var told time.Time
		for step() {
			if e, ok := s.NextEvent(); ok && e.Kind == relay.EventLeaving {
				told = time.Now()
			}
		}
		if got := <-status; got != commandline.Done {
			t.Errorf("it stopped with %d", got)
		}
		switch goesOn := time.Since(told); {
		case !another && !told.IsZero():
			t.Error("clients that have nowhere to go were told to go")
		case another && told.IsZero():
			t.Error("it stopped without a word")
		case another && goesOn < relayhttp.Drain/2:
			t.Errorf("it went on for %v", goesOn)
		}
	}
}

// TestRelayAdmitsMembers joins the relay that the coordinator has beside it
// (S11), and is put out of it by a revocation.
func TestRelayAdmitsMembers(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	said, _ := serving(t, data)
	url := regexp.MustCompile(`http://\S+`).FindString(said)
	a, b := join(t, data, url), join(t, data, url)
	if _, err := netip.ParseAddrPort("127.0.0.1" + a.m.Settings.STUN[0]); err != nil {
		t.Errorf("STUN server %q", a.m.Settings.STUN)
	}
	ok, ended := enter(t, url, a.m, a.key, a.m.RelayToken)
	if !ok {
		t.Fatal("a member with its own token is refused")
	}
	for name, c := range map[string]struct {
		key   ident.NodePrivate
		token []byte
	}{
		"another's token": {b.key, a.m.RelayToken}, "no token": {b.key, nil}, "a changed token": {b.key, append([]byte{1}, b.m.RelayToken...)},
	} {
		if ok, _ := enter(t, url, b.m, c.key, c.token); ok {
			t.Errorf("%s is enough", name)
		}
	}
	began := time.Now()
	if got := command(data, "", "devices", "revoke", "n"); got.status != commandline.Done {
		t.Fatal(got)
	}
	ended()
	t.Logf("put out of the relay after %v", time.Since(began))
	if ok, _ := enter(t, url, a.m, a.key, a.m.RelayToken); ok {
		t.Error("a revoked device is let in again")
	}
	if ok, _ := enter(t, url, b.m, b.key, b.m.RelayToken); !ok {
		t.Error("another device is refused after the revocation")
	}
}

// TestAdvice: who starts a coordinator is told what devices do not learn by the STUN
// servers that they are told of, and which flags change that.
func TestAdvice(t *testing.T) {
	beside := wire.Relay{Name: "default", STUN: ":3478"}
	for _, c := range []struct {
		cfg  server.Config
		want string
	}{
		{server.Config{}, "level=WARN msg=\"devices are told of no STUN server"},
		{server.Config{STUN: []string{":3478"}, Relays: []wire.Relay{beside, {Name: "a"}}}, "level=INFO msg=\"devices are told of one STUN server"},
		{server.Config{STUN: []string{":3478"}, Relays: []wire.Relay{beside, {Name: "a", STUN: "a.example.com:3478"}}}, ""},
		{server.Config{STUN: []string{":3478", "stun.example.com:3478"}}, ""},
	} {
		var said strings.Builder
		adviseServers(c.cfg, slog.New(slog.NewTextHandler(&said, nil)))
		if got := said.String(); (c.want == "") != (got == "") || !strings.Contains(got, c.want) || got != "" && !strings.Contains(got, "--stun HOST:PORT") {
			t.Errorf("%+v: %q, want %q", c.cfg, got, c.want)
		}
	}
}
