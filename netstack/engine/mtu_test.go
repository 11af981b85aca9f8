package engine

import (
	"testing"

	"github.com/warren-overlay/warren/netstack/relay"
)

// TestDeviceMTU: links decide, within what every node has and what jumbo frames
// allow.
func TestDeviceMTU(t *testing.T) {
	for link, want := range map[int]int{1280: 1420, 1500: 1420, 1501: 1421, 4352: 4272, 9000: 8920, 9216: 8920, 65536: 8920} {
		if got := deviceMTU(link); got != want {
			t.Errorf("%d over a link of %d, want %d", got, link, want)
		}
	}
}

// TestRelayMTU: over a relay goes what all devices have, and what is no longer than
// its datagrams.
func TestRelayMTU(t *testing.T) {
	if relayMTU < 1420 || relayMTU+sealOverhead > 1500-20-8-relay.DatagramHeader {
		t.Errorf("%d bytes over the relay", relayMTU)
	}
}
