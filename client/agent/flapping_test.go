package agent

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/netstack/engine"
)

// TestBarFacts: one warning for each relay that carried no data, which names it and says what was
// observed, and not whose fault it is.
func TestBarFacts(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	facts := barFacts([]engine.RelayStatus{{Name: "good"}, {Name: "evil", Barred: 1}, {Name: "worse", Barred: 3}}, now)
	if len(facts) != 2 || facts[0].Code != health.RelayDropsData || facts[0].Severity != health.Warning ||
		facts[0].Subject != "evil" || !strings.Contains(facts[0].Text, "carried no data to a device: the relay is at fault, or that device.") || !strings.Contains(facts[1].Text, "carried no data to 3 devices: the relay is at fault, or those devices.") {
		t.Errorf("facts %+v", facts)
	}
}

// TestFlapFacts: one warning for each peer whose path flaps, which names it.
func TestFlapFacts(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	facts := flapFacts([]engine.PeerStatus{{Node: 1, Name: "steady"}, {Node: 2, Name: "db", Flapping: true}}, now)
	if len(facts) != 1 || facts[0].Code != health.PathFlapping || facts[0].Severity != health.Warning ||
		facts[0].Subject != "n2" || !strings.Contains(facts[0].Text, "warren debug paths db") {
		t.Errorf("facts %+v", facts)
	}
}

// TestStrayFacts: one alarm for each peer with packets from elsewhere, which names both.
func TestStrayFacts(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	from := netip.MustParseAddrPort("192.0.2.6:666")
	facts := strayFacts([]engine.PeerStatus{{Node: 1, Name: "steady"}, {Node: 2, Name: "db", Strayed: true, StrayedFrom: from}, {Node: 3, Name: "web", Strayed: true}}, now)
	if len(facts) != 2 || facts[0].Code != health.PacketsFromElsewhere || facts[0].Severity != health.Alarm || facts[0].Subject != "n2" ||
		!strings.Contains(facts[0].Text, "db come from 192.0.2.6:666,") || !strings.Contains(facts[1].Text, "web come from many addresses,") {
		t.Errorf("facts %+v", facts)
	}
}
