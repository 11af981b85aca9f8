package main

import (
	"bytes"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/localapi"
)

var (
	directly = localapi.Path{Kind: "direct", Addr: netip.MustParseAddrPort("192.0.2.9:41641")}
	frankA   = localapi.Path{Kind: "relay", Relay: "frankfurt-1", Region: "eu-central"}
	frankB   = localapi.Path{Kind: "relay", Relay: "frankfurt-2", Region: "eu-central"}
)

// TestActivity: each peer's line says when the last handshake was and how many bytes
// went, also of one that is idle or gone, and names the relay and its region.
func TestActivity(t *testing.T) {
	ago := time.Now().Add(-90 * time.Second)
	for _, c := range []struct {
		node localapi.Node
		want string
	}{
		{localapi.Node{Active: true, Path: directly, LastHandshake: ago, TxBytes: 1, RxBytes: 2}, `active; direct 192\.0\.2\.9:41641, handshake 1m3\ds ago, tx 1 rx 2`},
		{localapi.Node{Active: true, Path: frankA, LastHandshake: ago}, `active; relay frankfurt-1 \(eu-central\), handshake 1m3\ds ago`},
		{localapi.Node{Active: true, Path: localapi.Path{Kind: "relay", Relay: "default"}}, `active; relay default`},
		{localapi.Node{Active: true, Path: localapi.Path{Kind: "none"}}, `active; no path`},
		{localapi.Node{Online: true, LastHandshake: ago, TxBytes: 1}, `idle, handshake 1m3\ds ago, tx 1 rx 0`},
		{localapi.Node{LastHandshake: ago, RxBytes: 2}, `offline, handshake 1m3\ds ago, tx 0 rx 2`},
		{localapi.Node{}, `offline`},
	} {
		if got := activity(c.node); !regexp.MustCompile("^" + c.want + "$").MatchString(got) {
			t.Errorf("%q, want %s", got, c.want)
		}
	}
}

// TestPong: the line of an answer names the path that the ping took, and the others
// that it may have taken; only one that went directly for certain counts as direct.
func TestPong(t *testing.T) {
	for _, c := range []struct {
		path   localapi.Path
		others []localapi.Path
		want   string
		direct bool
	}{
		{directly, nil, "via 192.0.2.9:41641 in 12ms\n", true},
		{frankA, nil, "via relay frankfurt-1 (eu-central) in 12ms\n", false},
		{frankA, []localapi.Path{directly}, "via relay frankfurt-1 (eu-central) in 12ms; or via 192.0.2.9:41641, as", false},
		{directly, []localapi.Path{frankB, frankA}, "via 192.0.2.9:41641 in 12ms; or via relay frankfurt-2 (eu-central), relay frankfurt-1 (eu-central), as", false},
		{directly, []localapi.Path{{Kind: "direct", Addr: netip.MustParseAddrPort("[2001:db8::9]:1")}}, "via 192.0.2.9:41641 in 12ms; or via [2001:db8::9]:1, as", true},
		{localapi.Path{Kind: "none"}, nil, "via no path in 12ms\n", false},
	} {
		var out bytes.Buffer
		m := &Main{Stdout: &out}
		reply := localapi.PingReply{Name: "db", Addr: netip.MustParseAddr("100.64.0.2"), RTT: 12 * time.Millisecond, Path: c.path, Others: c.others}
		if err := m.printPong(reply, false); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); !strings.HasPrefix(got, "pong from db (100.64.0.2) "+c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
		if direct(reply) != c.direct {
			t.Errorf("%q counts as direct: %v", out.String(), !c.direct)
		}
	}
}

// TestNetcheckNamesRelays: two relays of one region are told apart, also as the
// nearest one, a round trip that is old has its age, and one that answers beside does
// not hide that a relay cannot be connected to.
func TestNetcheckNamesRelays(t *testing.T) {
	var out bytes.Buffer
	m := &Main{Stdout: &out}
	m.printNetcheck(localapi.NetcheckReply{NearestRelay: "frankfurt-2", Relays: []localapi.Relay{
		{Name: "frankfurt-1", Region: "eu-central", RTT: 31 * time.Millisecond, RTTAge: 14*time.Minute + time.Millisecond},
		{Name: "frankfurt-2", Region: "eu-central", RTT: 30 * time.Millisecond, RTTAge: 2 * time.Second, Home: true, Connected: true},
		{Name: "ams-1", RTT: 5 * time.Millisecond, Failed: true, Error: "bad certificate"},
		{Name: "nyc-1", RTTAge: time.Hour, Failed: true, Error: "refused"},
		{Name: "idle", RTT: 6 * time.Millisecond, Error: "not needed now"},
	}})
	for _, want := range []string{
		"* Nearest relay: frankfurt-2 (eu-central)\n",
		"- frankfurt-1 (eu-central): 31ms, measured 14m0s ago\n",
		"- frankfurt-2 (eu-central), home: 30ms\n",
		"- ams-1: no connection: bad certificate; its STUN server answers in 5ms\n",
		"- nyc-1: no connection: refused\n",
		"- idle: 6ms\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
