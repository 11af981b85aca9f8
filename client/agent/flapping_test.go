package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/netstack/engine"
)

// TestFlapFacts: one warning for each peer whose path flaps, which names it.
func TestFlapFacts(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	facts := flapFacts([]engine.PeerStatus{{Node: 1, Name: "steady"}, {Node: 2, Name: "db", Flapping: true}}, now)
	if len(facts) != 1 || facts[0].Code != health.PathFlapping || facts[0].Severity != health.Warning ||
		facts[0].Subject != "n2" || !strings.Contains(facts[0].Text, "warren debug paths db") {
		t.Errorf("facts %+v", facts)
	}
}
