package ruleset

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

func fullSet() *RuleSet {
	return &RuleSet{
		Epoch: 7,
		In: []Rule{{
			ID: "web",
			Peers: []Selector{
				{Labels: ident.NewLabelSet(9, 3), Subnets: true},
				{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/16"), {}}},
			},
			Own:       []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24")},
			Services:  []Service{{Protocol: 6, First: 80, Last: 443}, {Protocol: AnyProtocol, First: 0, Last: 65535}},
			Action:    Deny,
			Mode:      Audit,
			NotBefore: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
			NotAfter:  time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC),
			Schedule: mustSchedule("Europe/Paris",
				Window{Days: 0x3e, Start: 480, End: 1080}, Window{Days: 0x41, Start: 1320, End: 360}),
			MaxSession:   time.Hour,
			Capabilities: []Capability{{Name: "x.org/a", Values: []string{`{"b":1}`}}, {Name: "x.org/b"}},
		}},
		Out: []Rule{{ID: "all", Peers: []Selector{{}}}},
	}
}

func mustSchedule(zone string, windows ...Window) *Schedule {
	s, err := NewSchedule(zone, windows)
	if err != nil {
		panic(err)
	}
	return s
}

func TestEncodingIsTheOneThatIsWritten(t *testing.T) {
	// The bytes are a promise to every device that verifies a signature over
	// them: a change here is a new version.
	const want = "01" + "0000000000000007" +
		"01" + "03776562" + "0101" +
		"01" + "00000000695735a500000006" + "01" + "000000006b38692500000000" +
		"02" + "3e" + "01e0" + "0438" + "41" + "0528" + "0168" + "0c4575726f70652f5061726973" + "00000346" + "30b8a000" +
		"02" + "02" + "0000000000000003" + "0000000000000009" + "00" + "01" +
		"00" + "03" + "0408" + "0a000000" + "0610" + "fd000000000000000000000000000000" + "00" + "00" +
		"01" + "0418" + "c0a80700" +
		"02" + "06" + "0050" + "01bb" + "00" + "0000" + "ffff" +
		"02" + "07782e6f72672f61" + "01" + "077b2262223a317d" + "07782e6f72672f62" + "00" +
		"01" + "03616c6c" + "0000" + "00" + "00" + "00" + "0000000000000000" + "01" + "0000" + "00" + "00" + "00" + "00"
	got := hex.EncodeToString(fullSet().AppendBinary(nil))
	if got != want {
		t.Fatalf("encoding\n got %s\nwant %s", got, want)
	}
}

func TestDecodeGivesBackWhatWasEncoded(t *testing.T) {
	s := fullSet()
	got, err := Decode(s.AppendBinary(nil))
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Fatalf("Decode = %+v, %v; want %+v", got, err, s)
	}
	empty, err := Decode((*RuleSet)(nil).AppendBinary([]byte{}))
	if err != nil || !reflect.DeepEqual(empty, &RuleSet{}) {
		t.Fatalf("Decode(nil set) = %+v, %v", empty, err)
	}
}

func TestEncodingLeavesOutWhatHasNoMeaning(t *testing.T) {
	s := fullSet()
	s.In[0].Own[0] = netip.MustParsePrefix("192.168.7.99/24")
	s.In[0].NotBefore = s.In[0].NotBefore.In(time.FixedZone("east", 7200))
	if !bytes.Equal(s.AppendBinary(nil), fullSet().AppendBinary(nil)) {
		t.Fatal("host bits or a time zone changed the encoding")
	}
}

func TestDecodeRefusesEveryCutAndEveryAppendix(t *testing.T) {
	b := fullSet().AppendBinary(nil)
	for n := range b {
		if _, err := Decode(b[:n]); !errors.Is(err, ErrMalformedRuleSet) {
			t.Fatalf("Decode of the first %d bytes: %v", n, err)
		}
	}
	if _, err := Decode(append(b, 0)); !errors.Is(err, ErrMalformedRuleSet) {
		t.Fatalf("Decode with a byte too many: %v", err)
	}
}

func TestDecodeRefusesWhatIsNotCanonical(t *testing.T) {
	good := hex.EncodeToString(fullSet().AppendBinary(nil))
	for _, test := range []struct{ name, old, new, want string }{
		{"version", "010000000000000007", "020000000000000007", "unknown encoding version 2"},
		{"long count", "03776562", "8300776562", "shortest form"},
		{"id text", "03776562", "03ff6562", "not UTF-8"},
		{"action", "776562" + "01", "776562" + "02", "unknown action 2"},
		{"mode", "776562" + "0101", "776562" + "0102", "unknown mode 2"},
		{"time flag", "010100000000695735", "010200000000695735", "neither absent nor present"},
		{"nanoseconds", "695735a500000006", "695735a53b9aca00", "time out of range"},
		{"year 1", "00000000695735a500000006", "fffffff1886e08ff00000006", "time out of range"},
		{"labels unsorted", "0000000000000003" + "0000000000000009", "0000000000000009" + "0000000000000003", "do not ascend"},
		{"label twice", "0000000000000003" + "0000000000000009", "0000000000000009" + "0000000000000009", "do not ascend"},
		{"label zero", "0000000000000003" + "0000000000000009", "0000000000000000" + "0000000000000009", "do not ascend"},
		{"host bits", "c0a80700", "c0a80701", "not a prefix"},
		{"long prefix", "0418c0a80700", "0421c0a80700", "not a prefix"},
		{"family", "0418c0a80700", "0518c0a80700", "address family"},
		{"ports", "06005001bb", "0601bb0050", "port range"},
		{"subnets", "0000000000000009" + "0001", "0000000000000009" + "0002", "truth value"},
		{"windows unsorted", "3e01e00438" + "4105280168", "4105280168" + "3e01e00438", "not sorted"},
		{"window", "3e01e00438", "0001e00438", "invalid schedule"},
		{"zone", "4575726f70652f5061726973", "4575726f70652f5061726974", "unknown time zone"},
		{"session", "0000034630b8a000", "0000034630b8a001", "a session of"},
		{"count beyond input", "020600500", "7f0600500", "more than the input"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if strings.Count(good, test.old) != 1 {
				t.Fatalf("%q is not once in the sample", test.old)
			}
			b, err := hex.DecodeString(strings.Replace(good, test.old, test.new, 1))
			if err != nil {
				t.Fatal(err)
			}
			_, err = Decode(b)
			if !errors.Is(err, ErrMalformedRuleSet) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("Decode = %v, want %q", err, test.want)
			}
		})
	}
	if _, err := Decode([]byte{99}); !errors.Is(err, ErrRuleSetVersion) {
		t.Fatalf("Decode of version 99 = %v", err)
	}
	if _, err := Decode(make([]byte, MaxEncodedSize+1)); !errors.Is(err, ErrMalformedRuleSet) {
		t.Fatalf("Decode of too much = %v", err)
	}
	long := &RuleSet{In: []Rule{{ID: RuleID(strings.Repeat("x", MaxRuleIDLength+1))}}}
	if _, err := Decode(long.AppendBinary(nil)); !errors.Is(err, ErrMalformedRuleSet) {
		t.Fatalf("Decode of a long id = %v", err)
	}
}

// TestEveryFieldIsEncoded fails when a field is added to a rule and not to its
// encoding: a rule that loses a condition on its way would be a wider rule.
func TestEveryFieldIsEncoded(t *testing.T) {
	for _, test := range []struct {
		of     reflect.Type
		fields int
	}{
		{reflect.TypeFor[RuleSet](), 3},
		{reflect.TypeFor[Rule](), 11},
		{reflect.TypeFor[Selector](), 3},
		{reflect.TypeFor[Service](), 3},
		{reflect.TypeFor[Capability](), 2},
		{reflect.TypeFor[Schedule](), 2},
		{reflect.TypeFor[Window](), 3},
	} {
		if got := test.of.NumField(); got != test.fields {
			t.Errorf("%v has %d fields, the encoding knows %d", test.of, got, test.fields)
		}
	}
}

func TestTheShortestRulesAreDecoded(t *testing.T) {
	s := &RuleSet{In: []Rule{{}, {}}}
	b := s.AppendBinary(nil)
	if want := len((&RuleSet{}).AppendBinary(nil)) + 2*ruleItem.encoded; len(b) != want {
		t.Errorf("%d bytes, want %d", len(b), want)
	}
	if got, err := Decode(b); err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("Decode = %+v, %v", got, err)
	}
}

// TestDecodedSizeIsBounded: five megabytes that would become 160 are refused.
func TestDecodedSizeIsBounded(t *testing.T) {
	s := &RuleSet{In: []Rule{{Own: make([]netip.Prefix, 5_000_000)}}}
	if _, err := Decode(s.AppendBinary(nil)); !errors.Is(err, ErrMalformedRuleSet) || !strings.Contains(err.Error(), "memory") {
		t.Errorf("Decode = %v", err)
	}
	for _, c := range []struct {
		of   reflect.Type
		item item
	}{
		{reflect.TypeFor[Rule](), ruleItem},
		{reflect.TypeFor[Selector](), selectorItem},
		{reflect.TypeFor[netip.Prefix](), prefixItem},
		{reflect.TypeFor[Capability](), capabilityItem},
		{reflect.TypeFor[string](), textItem},
		{reflect.TypeFor[ident.Label](), labelItem},
		{reflect.TypeFor[Service](), serviceItem},
		{reflect.TypeFor[Window](), windowItem},
	} {
		if got := int(c.of.Size()); got > c.item.memory {
			t.Errorf("%v takes %d bytes, the decoder counts %d", c.of, got, c.item.memory)
		}
	}
}

func TestRandomSetsRoundTrip(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := randomSet(r, r.IntN(20))
		b := s.AppendBinary(nil)
		got, err := Decode(b)
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Fatalf("seed %d: Decode = %+v, %v; want %+v", seed, got, err, s)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(fullSet().AppendBinary(nil))
	f.Add((*RuleSet)(nil).AppendBinary(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrMalformedRuleSet) || s != nil {
				t.Fatalf("Decode = %v, %v", s, err)
			}
			return
		}
		if again := s.AppendBinary(nil); !bytes.Equal(again, b) {
			t.Fatalf("accepted\n%x but it encodes to\n%x", b, again)
		}
	})
}
