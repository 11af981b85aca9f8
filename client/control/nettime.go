package control

import (
	"errors"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
)

// judged returns the network's time, by which certificates are judged: the
// coordinator's and what has passed since by the device's clock, or that clock
// alone while no coordinator has told its time.
func (m *Machine) judged() time.Time { return m.now.Add(-m.lead) }

// welcomeLead returns the lead that follows from the coordinator's time, which
// came now. It was read after Hello was sent, and is taken for that of then: the
// way of the messages makes certificates end earlier and never later. A clock
// that was set meanwhile shows more than the way can have taken.
func (m *Machine) welcomeLead(theirs time.Time) time.Duration {
	return m.now.Sub(theirs) - min(m.now.Sub(m.greeted), replyTimeout)
}

// offeredLead returns the lead to judge by what comes on this connection.
//
// Once known, the network's time never goes back, and before that not behind what
// was certain before the start: a coordinator whose clock is behind does not
// revive what has ended.
func (m *Machine) offeredLead() time.Duration {
	offered := m.offered
	if m.known {
		offered = min(offered, m.lead)
	} else if !m.attested.IsZero() {
		offered = min(offered, m.now.Sub(m.attested))
	}
	if (offered - m.lead).Abs() <= leadStep {
		return m.lead
	}
	return offered
}

// admit verifies with f what came from the coordinator, at its time, and takes
// that time for the network's where the device's own certificate holds at it. A
// coordinator that gives out a certificate which by its own time does not hold
// tells no time: what it sent is judged as before then. The error is f's.
func (m *Machine) admit(f func(now time.Time) (*membership, error)) (*membership, error) {
	lead := m.offeredLead()
	member, err := f(m.now.Add(-lead))
	if errors.Is(err, authority.ErrExpired) {
		if lead == m.lead {
			return nil, err
		}
		return f(m.judged())
	}
	if err != nil {
		return nil, err
	}
	m.lead, m.known = lead, true
	return member.readmit(m.authority, m.judged()), nil
}

// attest notes for the next start what time is certain, as far as the certificate
// that the coordinator gave the device reaches, so that a coordinator's clock
// that was once far ahead cannot lock its devices out for longer than that.
func (m *Machine) attest(self *authority.Peer) {
	at := m.welcomed
	if self.NotAfter().Before(at) {
		at = self.NotAfter()
	}
	if m.attested.Before(at) {
		m.attested = at.Round(0).UTC()
	}
}
