package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

func TestClientMessages(t *testing.T) {
	endpoints := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:41641"), netip.MustParseAddrPort("[2001:db8::1]:1")}
	for _, m := range []ClientMessage{
		Hello{Version: Version1, Host: HostInfo{ProgramVersion: "1", OS: "linux", OSVersion: "6.1", Architecture: "amd64"}},
		Register{AuthKey: "wkey-auth-x", NodeKey: ident.NodeKey{1}, Hostname: "laptop", Tags: []ident.Tag{"tag:db"}},
		MapRequest{NodeKey: ident.NodeKey{1}, Endpoints: endpoints, HaveSequence: 7, HaveHash: Hash{9}, HomeRelay: "fra-1"},
		Update{Endpoints: endpoints, HomeRelay: "default"},
		Pong{Number: 3},
		Logout{},
	} {
		got, err := DecodeClient(EncodeClient(m))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
	}
}

func TestServerMessages(t *testing.T) {
	peer := Peer{Certificate: []byte{1, 2}, State: PeerState{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, Online: true, OS: "linux", HomeRelay: "fra-1"}}
	settings := Settings{Relays: []Relay{{Name: "default", URL: "ws://:8080/"}, {Name: "fra-1", Region: "eu", URL: "wss://fra.example.com/", UDP: "fra.example.com:1", STUN: ":2"}}, STUN: []string{":3478"}, Users: []User{{3, "alice@example.com"}}}
	full := &Map{Sequence: 4, Self: []byte{3}, Rules: []byte{4}, Peers: map[ident.NodeID]Peer{7: peer}, Settings: settings, RelayToken: []byte{5}}
	for _, m := range []ServerMessage{
		Welcome{Version: Version1, Time: time.UnixMilli(1700000000123).UTC(), Registered: true},
		Registered{Node: 7, Name: "laptop"},
		full,
		&Delta{
			BaseSequence: 4, BaseHash: full.Hash(), Sequence: 5, Hash: Hash{1}, Self: []byte{1}, Rules: []byte{2},
			Upserts: map[ident.NodeID]Peer{8: peer}, Removed: []ident.NodeID{7}, Patches: []PeerPatch{{9, peer.State}}, Settings: &settings, RelayToken: []byte{6},
		},
		Ping{Number: 1},
		&Error{Code: CodeRevoked, Message: "gone\nfor good", RetryAfter: time.Second},
	} {
		got, err := DecodeServer(EncodeServer(m))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
	}
}

// TestRefusedMessages holds what a sender must not be able to say.
func TestRefusedMessages(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":          nil,
		"noise":            {0xff, 0xff},
		"too long":         make([]byte, MaxClientMessage+1),
		"bad tag":          EncodeClient(Register{Tags: []ident.Tag{"db"}}),
		"port 0":           EncodeClient(Update{Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 0)}}),
		"multicast":        EncodeClient(Update{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("224.0.0.1:1")}}),
		"many endpoints":   EncodeClient(Update{Endpoints: make([]netip.AddrPort, MaxEndpoints+1)}),
		"escape sequences": EncodeClient(Register{Hostname: "\x1b]0;owned\x07"}),
		"a relay's name":   EncodeClient(Update{HomeRelay: "Fra 1"}),
	} {
		if m, err := DecodeClient(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	changed := EncodeServer(&Map{Sequence: 1, Self: []byte("self")})
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"escape sequences":    EncodeServer(&Error{Message: "\x1b[2J"}),
		"bidirectional text":  EncodeServer(&Error{Message: "\u202egpj.exe"}),
		"a hash that lies":    bytes.Replace(changed, []byte("self"), []byte("felf"), 1),
		"peer without id":     EncodeServer(&Map{Peers: map[ident.NodeID]Peer{0: {Certificate: []byte{1}}}}),
		"peer without a name": EncodeServer(&Map{Peers: map[ident.NodeID]Peer{1: {}}}),
	} {
		if m, err := DecodeServer(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

func TestJoinKey(t *testing.T) {
	key, err := NewJoinKey(rand.Reader, ident.Fingerprint{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseJoinKey(" " + key.Text() + "\n"); err != nil || got != key {
		t.Errorf("read back as %v, %v", got, err)
	}
	bare := key
	bare.Fingerprint = ident.Fingerprint{}
	if got, err := ParseCredential(key.Credential()); err != nil || got != bare {
		t.Errorf("credential read back as %v, %v", got, err)
	}
	text := key.Text()
	for _, bad := range []string{"", "x" + text, text[:len(text)-1], text + "a", text + "-a", strings.ToUpper(text), strings.Replace(text, "-auth-", "-api-", 1)} {
		if _, err := ParseJoinKey(bad); !errors.Is(err, ErrMalformedJoinKey) || strings.Contains(fmt.Sprint(err), key.Secret) {
			t.Errorf("%q: %v", bad, err)
		}
	}

	// A key that is logged by mistake gives nothing away.
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("joined", "key", key)
	slog.New(slog.NewTextHandler(&out, nil)).Info("joined", "key", key)
	fmt.Fprintf(&out, "%v %+v %#v %s", key, key, key, key)
	if b, err := json.Marshal(key); err == nil {
		t.Errorf("marshalled as %s", b)
	}
	if strings.Contains(out.String(), key.Secret) {
		t.Errorf("the secret shows: %s", &out)
	}
}
