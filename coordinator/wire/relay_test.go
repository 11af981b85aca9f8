package wire

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
)

func TestParseRelay(t *testing.T) {
	for text, want := range map[string]Relay{
		"name=fra-1,url=wss://fra.example.com":                     {Name: "fra-1", URL: "wss://fra.example.com"},
		" url=ws://192.0.2.1:8081/x , name=a":                      {Name: "a", URL: "ws://192.0.2.1:8081/x"},
		"name=a,url=ws://h,region=eu,udp=h:1,stun=[2001:db8::1]:3": {Name: "a", URL: "ws://h", Region: "eu", UDP: "h:1", STUN: "[2001:db8::1]:3"},
	} {
		if got, err := ParseRelay(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                              "want name=NAME,url=URL",
		"fra-1":                         "want name=NAME,url=URL",
		"name=a,url=ws://h,weight=3":    `"weight=3"`,
		"name=a,url=ws://h,region=":     "region has no value",
		"name=a,name=b,url=ws://h":      "name is given twice",
		"url=ws://h":                    `the name ""`,
		"name=Fra,url=ws://h":           `the name "Fra"`,
		"name=-a,url=ws://h":            `the name "-a"`,
		"name=a,url=ws://h,region=E U":  `the region "E U"`,
		"name=a":                        "neither ws nor wss",
		"name=a,url=https://h":          "neither ws nor wss",
		"name=a,url=ws://u:p@h":         "neither ws nor wss",
		"name=a,url=ws://h:0":           "no valid port",
		"name=a,url=ws://:80":           "names no host",
		"name=a,url=ws:///p":            "names no host",
		"name=a,url=ws://h,udp=h":       `udp of relay a is "h", not HOST:PORT`,
		"name=a,url=ws://h,udp=h:65536": "not HOST:PORT",
		"name=a,url=ws://h,stun=h/x:1":  "not HOST:PORT",
		"name=a,url=ws://h,stun=:3478":  "names no host",
		"name=" + strings.Repeat("a", 64) + ",url=ws://h": "the name",
	} {
		got, err := ParseRelay(text)
		if !errors.Is(err, ErrRelay) || !strings.Contains(fmt.Sprint(err), want) || got != (Relay{}) {
			t.Errorf("%q: %+v, %v; want an error with %q", text, got, err, want)
		}
	}
}

// TestVersion1 holds the hashes that programs of Version1 compute, and that a
// node of Version1 is told nothing that its hash does not cover.
func TestVersion1(t *testing.T) {
	peer := PeerState{Online: true, OS: "linux", HomeRelay: "fra-1"}
	m := &Map{
		Self: []byte("self"), Rules: []byte("rules"), Peers: map[ident.NodeID]Peer{7: {Certificate: []byte("c"), State: peer}},
		Settings: Settings{
			Relays: []Relay{{Name: "default", URL: "ws://:8080/", STUN: ":3478"}, {Name: "fra-1", Region: "eu", URL: "wss://fra/", UDP: "fra:1"}},
			STUN:   []string{":3478"}, Users: []User{{ID: 3, Login: "alice"}},
		},
	}
	const want = "525016f784865abca43cf89d6de35ced8a0950874ffaed9a80b7f4585f039763"
	old := m.For(Version1)
	if got := fmt.Sprintf("%x", old.Hash()); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if old.Settings.Relays[1] != (Relay{Name: "fra-1", URL: "wss://fra/"}) || old.Peers[7].State.HomeRelay != "" {
		t.Errorf("it is told %+v", old)
	}
	if m.For(Version2) != m || m.Peers[7].State.HomeRelay != "fra-1" || m.Settings.Relays[1].Region != "eu" {
		t.Errorf("the map itself is changed: %+v", m)
	}
	for what, change := range map[string]func(*Map){
		"region": func(m *Map) { m.Settings.Relays[1].Region = "us" },
		"udp":    func(m *Map) { m.Settings.Relays[1].UDP = "" },
		"stun":   func(m *Map) { m.Settings.Relays[0].STUN = ":1" },
		"home":   func(m *Map) { m.Peers[7] = Peer{Certificate: []byte("c"), State: PeerState{Online: true, OS: "linux"}} },
	} {
		other := cloneMap(m)
		other.Settings.Relays = append([]Relay(nil), m.Settings.Relays...)
		change(other)
		if other.Hash() == m.Hash() {
			t.Errorf("another %s has the same hash", what)
		}
	}
}

// TestVersion2 holds that a node that knows of no candidates is told of none,
// and that its hash does not cover one.
func TestVersion2(t *testing.T) {
	with := &Map{Self: []byte("self"), Rules: []byte("rules"), Candidate: []byte("candidate"), Settings: Settings{Relays: []Relay{{Name: "a", Region: "eu"}}}}
	without := *with
	without.Candidate = nil
	for _, v := range []Version{Version1, Version2} {
		if old := with.For(v); old.Candidate != nil || old.Hash() != without.For(v).Hash() {
			t.Errorf("version %d is told %+v", v, old)
		}
	}
	if with.For(Version3) != with || string(with.Candidate) != "candidate" {
		t.Errorf("the map itself is changed: %+v", with)
	}
	if with.Hash() == without.Hash() {
		t.Error("the hash does not cover the candidate")
	}
	both := EncodeServer(&Delta{Candidate: []byte{1}, NoCandidate: true})
	if _, err := DecodeServer(both); !errors.Is(err, ErrMalformed) {
		t.Errorf("a candidate, and none any more: %v", err)
	}
}

// TestVersion3 holds that a node that knows of nothing that is off is not told
// of it, that its hash does not cover it, and that only ascending numbers are
// understood, known or not.
func TestVersion3(t *testing.T) {
	with := &Map{Self: []byte("self"), Rules: []byte("rules"), Settings: Settings{STUN: []string{":1"}, Off: []Feature{FeaturePortMapping, 9}}}
	without := *with
	without.Settings.Off = nil
	for _, v := range []Version{Version1, Version2, Version3} {
		if old := with.For(v); old.Settings.Off != nil || old.Hash() != without.For(v).Hash() || len(old.Settings.STUN) != 1 {
			t.Errorf("version %d is told %+v", v, old)
		}
	}
	if with.For(Version4) != with || !with.Settings.IsOff(FeaturePortMapping) || without.Settings.IsOff(FeaturePortMapping) {
		t.Errorf("the map itself is changed: %+v", with)
	}
	if with.Hash() == without.Hash() || with.Settings.equal(&without.Settings) {
		t.Error("the hash, or the comparison, does not cover what is off")
	}
	got, err := DecodeServer(EncodeServer(with))
	if m, ok := got.(*Map); err != nil || !ok || !slices.Equal(m.Settings.Off, with.Settings.Off) {
		t.Errorf("%+v, %v", got, err)
	}
	many := make([]Feature, MaxFeatures+1)
	for i := range many {
		many[i] = Feature(i + 1)
	}
	if _, err := DecodeServer(EncodeServer(&Map{Settings: Settings{Off: many[:MaxFeatures]}})); err != nil {
		t.Errorf("as many as may be: %v", err)
	}
	for _, bad := range [][]Feature{{0}, {1, 1}, {2, 1}, many} {
		if _, err := DecodeServer(EncodeServer(&Map{Settings: Settings{Off: bad}})); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestCheckServer: a STUN server that is not beside the coordinator has a host and a
// port.
func TestCheckServer(t *testing.T) {
	for _, good := range []string{"stun.example.com:3478", "192.0.2.1:1", "[2001:db8::1]:65535"} {
		if err := CheckServer(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", ":3478", "stun.example.com", "stun.example.com:", "stun.example.com:0", "h:65536", "[2001:db8::g]:1", "h:1/x", "u@h:1"} {
		if err := CheckServer(bad); !errors.Is(err, ErrServer) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestSTUNServers: servers beside relays count, and none counts twice.
func TestSTUNServers(t *testing.T) {
	for _, c := range []struct {
		settings Settings
		want     int
	}{
		{Settings{}, 0},
		{Settings{STUN: []string{":3478"}, Relays: []Relay{{Name: "default", STUN: ":3478"}, {Name: "a"}}}, 1},
		{Settings{STUN: []string{":3478", "stun.example.com:3478"}, Relays: []Relay{{Name: "default", STUN: ":3478"}, {Name: "a", STUN: "a.example.com:3478"}}}, 3},
	} {
		if got := len(c.settings.STUNServers()); got != c.want {
			t.Errorf("%+v: %d, want %d", c.settings, got, c.want)
		}
	}
}
