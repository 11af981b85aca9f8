package path

import (
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/disco"
)

// TestOfferBeforeUse: an offer of ports that comes before its peer is used is taken
// up when it is made again, and only once.
func TestOfferBeforeUse(t *testing.T) {
	a := newAgent(t, 1)
	a.HandleRelayState(true, epoch)
	a.SetLocalMapping(home, false, epoch)
	offer := disco.Mapping{Public: rogue, Varies: true, Ports: disco.MaxPorts, Attempt: 7}
	hear := func(now time.Time) BirthdayRole {
		if err := a.HandleMapping(offer, now); err != nil {
			t.Fatal(err)
		}
		a.HandleTimeout(now)
		return a.Snapshot().Birthday.Role
	}
	if role := hear(epoch); role != BirthdayNone {
		t.Errorf("a peer that is not used: %v", role)
	}
	now := epoch.Add(time.Second)
	a.HandleOutboundUse(now)
	if role := hear(now); role != BirthdayGuesser {
		t.Errorf("a peer that is used: %v", role)
	}
	for end := now.Add(attemptTime + time.Second); now.Before(end); now = now.Add(birthdayTick) {
		a.HandleOutboundUse(now)
		pings(a)
	}
	if role := hear(now); role != BirthdayNone {
		t.Errorf("an offer that was taken up before: %v", role)
	}
	if s := a.Snapshot().Stats; s.BirthdaysBegun != 1 || s.BirthdaysFailed != 1 || s.GuessesSent != maxGuesses {
		t.Errorf("%+v", s)
	}
}
