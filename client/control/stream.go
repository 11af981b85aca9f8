package control

import (
	"errors"
	"fmt"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// HandleFrame takes one frame from the coordinator. A frame that is not of the
// protocol, or comes at the wrong time, closes the connection and changes
// nothing that is believed. The slice may be kept. The error is
// ErrNotConnected, for a frame that was not expected at all.
func (m *Machine) HandleFrame(frame []byte, now time.Time) error {
	m.tick(now)
	if !m.state.connected() {
		return ErrNotConnected
	}
	m.counters.Frames++
	message, err := wire.DecodeServer(frame)
	if err != nil {
		m.violation(err)
		return nil
	}
	if m.state == Streaming && m.synced && !m.resyncing {
		m.deadline = m.now.Add(silenceLimit)
	}
	switch message := message.(type) {
	case wire.Ping:
		m.send(wire.Pong(message))
		if m.synced && m.now.Sub(m.streaming) >= aloneAfter {
			m.note(m.facts.ClearCode(health.ConnectedTwice))
		}
	case *wire.Error:
		m.refused(message)
	case wire.Welcome:
		m.welcome(message)
	case wire.Registered:
		m.registered()
	case *wire.Map:
		m.fullMap(message)
	case *wire.Delta:
		m.delta(message)
	default:
		m.violation(fmt.Errorf("%w: a %T", wire.ErrMalformed, message))
	}
	return nil
}

// violation ends a connection whose other end does not keep to the protocol.
func (m *Machine) violation(err error) {
	m.counters.Malformed++
	m.put(health.Fact{
		Code: health.CoordinatorProtocol, Severity: health.Error, Since: m.now,
		Text: fmt.Sprintf("The coordinator sent what cannot be accepted: %v. What was known before stays; update the older of the two programs.", err),
	})
	m.fail(err)
}

// fail ends the attempt or the connection and waits for the next one; where
// somebody else answered a device that is no member yet, for a person.
func (m *Machine) fail(err error) {
	m.disconnect()
	if !errors.Is(err, authority.ErrFingerprint) {
		m.retry(err.Error(), 0)
		return
	}
	m.put(health.Fact{
		Code: health.CoordinatorIdentity, Severity: health.Alarm, Since: m.now,
		Text: fmt.Sprintf("What answers at %s is not the coordinator of the network %v. The address is wrong, or somebody is in between. Check --login-server, and that the key is from that coordinator.", m.cfg.URL, m.cfg.Network),
	})
	if m.member == nil {
		m.registration = nil
		m.enter(NeedsLogin, err.Error(), time.Time{})
		return
	}
	m.retry(err.Error(), 0)
}

func (m *Machine) welcome(w wire.Welcome) {
	switch {
	case m.state != Handshaking:
		m.violation(fmt.Errorf("%w: a second welcome", wire.ErrMalformed))
		return
	case w.Version < wire.Oldest || w.Version > wire.Newest:
		m.violation(fmt.Errorf("%w: it wants protocol version %d, this device speaks %d to %d", wire.ErrMalformed, w.Version, wire.Oldest, wire.Newest))
		return
	}
	m.welcomed, m.offered = w.Time, m.welcomeLead(w.Time)
	if !m.told {
		m.told = true
		m.events = append(m.events, TimeTold{})
	}
	m.clockFact(w.Time)
	switch {
	case w.Registered:
		m.registration = nil
		m.requestMap()
		m.enter(Streaming, "", m.now.Add(mapTimeout))
	case m.registration != nil:
		r := m.registration
		m.send(wire.Register{AuthKey: r.AuthKey, NodeKey: m.cfg.NodeKey, Hostname: r.Hostname, Tags: r.Tags, Proof: m.proof})
		m.enter(Registering, "", m.now.Add(replyTimeout))
	default:
		m.stop(NeedsLogin, "the coordinator does not know this device")
	}
}

// clockFact compares the clocks.
func (m *Machine) clockFact(theirs time.Time) {
	skew := m.now.Sub(theirs)
	if skew.Abs() <= skewLimit {
		m.note(m.facts.Clear(health.ClockSkew, ""))
		return
	}
	direction := "ahead of"
	if skew < 0 {
		direction = "behind"
	}
	m.put(health.Fact{
		Code: health.ClockSkew, Severity: health.Warning, Since: m.now,
		Text: fmt.Sprintf("The clock of this device was %v %s the coordinator's. Certificates and rules are judged by the coordinator's time, but a restart without the coordinator would judge them by the clock: set it, and restart the daemon.", skew.Abs().Round(time.Second), direction),
	})
}

func (m *Machine) registered() {
	if m.state != Registering {
		m.violation(fmt.Errorf("%w: an answer to no registration", wire.ErrMalformed))
		return
	}
	m.registration = nil
	m.requestMap()
	m.enter(Streaming, "", m.now.Add(mapTimeout))
}

// requestMap begins the stream with what is at hand.
func (m *Machine) requestMap() {
	request := wire.MapRequest{NodeKey: m.cfg.NodeKey, Endpoints: m.endpoints, Routes: m.routes, Proof: m.proof, HomeRelay: m.homeRelay}
	// Where a part of the map is not believed, the coordinator would leave it
	// at that: a full map is looked at anew.
	if m.member != nil && !m.resyncing && m.member.complete(m.judged()) {
		request.HaveSequence, request.HaveHash = m.member.raw.Sequence, m.member.raw.Hash()
	}
	m.sentUpdate, m.updateDue = m.now, time.Time{}
	m.send(request)
}

func (m *Machine) fullMap(raw *wire.Map) {
	if m.state != Streaming {
		m.violation(fmt.Errorf("%w: a map that was not asked for", wire.ErrMalformed))
		return
	}
	member, err := m.admit(func(now time.Time) (*membership, error) { return admitMap(m.authority, raw, m.member, now) })
	if err != nil {
		m.selfRefused(err)
		return
	}
	m.counters.Maps++
	m.confirm(member, true)
}

func (m *Machine) delta(d *wire.Delta) {
	switch {
	case m.state != Streaming || m.member == nil && !m.resyncing:
		m.violation(fmt.Errorf("%w: a delta without a map", wire.ErrMalformed))
		return
	case m.resyncing:
		return // of a time before the full map that is under way
	}
	member, err := m.admit(func(now time.Time) (*membership, error) { return admitDelta(m.authority, m.member, d, now) })
	switch {
	case errors.Is(err, wire.ErrGap):
		m.resync(err)
		return
	case err != nil:
		m.selfRefused(err)
		return
	}
	m.counters.Deltas++
	m.confirm(member, d.Self != nil || d.Rules != nil || d.Candidate != nil || d.NoCandidate || d.Settings != nil || len(d.Upserts) > 0 || len(d.Removed) > 0)
}

// confirm adopts what the coordinator said on this connection. Signed parts are
// saved at once, hearsay some time later.
func (m *Machine) confirm(member *membership, signed bool) {
	if !m.synced {
		m.synced = true
		m.streaming = m.now
		m.counters.Connections++
		m.note(m.facts.ClearCode(health.CoordinatorUnreachable))
		m.note(m.facts.ClearCode(health.LoginNeeded))
		m.note(m.facts.ClearCode(health.UserSuspended))
		signed = signed || m.member == nil
		m.attest(member.self)
	}
	m.resyncing = false
	m.deadline = m.now.Add(silenceLimit)
	m.note(m.facts.ClearCode(health.CoordinatorProtocol))
	m.note(m.facts.ClearCode(health.SelfRefused))
	m.counters.Refused += uint64(len(member.refused))
	if member.rulesError != nil {
		m.counters.Refused++
	}
	m.member = member
	switch {
	case signed:
		m.save()
	case m.saveDue.IsZero():
		m.saveDue = m.now.Add(saveDelay)
	}
	m.adopt(member)
}

// resync asks once for a full map, and gives up the connection where one was
// asked for a short time ago.
func (m *Machine) resync(err error) {
	if !m.resynced.IsZero() && m.now.Sub(m.resynced) < resyncInterval {
		m.violation(err)
		return
	}
	m.counters.Resyncs++
	m.resyncing, m.resynced = true, m.now
	m.requestMap()
	m.deadline = m.now.Add(mapTimeout)
}

// selfRefused ends a connection on which the device's own certificate does not
// verify. What was believed before stays, until it ends by itself.
func (m *Machine) selfRefused(err error) {
	m.counters.Refused++
	m.disconnect()
	if errors.Is(err, authority.ErrExpired) {
		m.put(health.Fact{
			Code: health.CertificateExpired, Severity: health.Error, Since: m.now,
			Text: fmt.Sprintf("The coordinator did not renew the certificate of this device: %v. Check the clock of this device, or ask your administrator.", err),
		})
		m.enter(Expired, err.Error(), m.now.Add(slowRetry))
		return
	}
	m.put(health.Fact{
		Code: health.SelfRefused, Severity: health.Alarm, Since: m.now,
		Text: fmt.Sprintf("The certificate that the coordinator sent for this device is refused: %v. What was known before stays; tell your administrator.", err),
	})
	m.retry(err.Error(), 0)
}

// refused carries out what the coordinator says it will not do.
func (m *Machine) refused(e *wire.Error) {
	switch e.Code {
	case wire.CodeRevoked:
		m.revoked = true
		m.stop(Revoked, e.Error())
	case wire.CodeSuspended:
		m.suspend(e)
	case wire.CodeNotRegistered:
		m.stop(NeedsLogin, e.Error())
	case wire.CodeAuthKey, wire.CodeDenied, wire.CodeKeyInUse:
		if m.state == Registering {
			m.stop(NeedsLogin, e.Error())
			return
		}
		m.disconnect()
		m.retry(e.Error(), e.RetryAfter)
	case wire.CodeVersion:
		m.put(health.Fact{
			Code: health.CoordinatorProtocol, Severity: health.Error, Since: m.now,
			Text: fmt.Sprintf("The coordinator does not speak this device's version of the protocol: %v. Update the older of the two programs.", e),
		})
		m.disconnect()
		m.retry(e.Error(), slowRetry)
	case wire.CodeReplaced:
		m.put(health.Fact{
			Code: health.ConnectedTwice, Severity: health.Warning, Since: m.now,
			Text: "The coordinator saw another connection of this device. If its state directory was copied to another machine, delete the copy and join there with a key of its own.",
		})
		m.disconnect()
		m.retry(e.Error(), replacedDelay)
	case wire.CodeUnspecified, wire.CodeMalformed, wire.CodeUnavailable:
		m.disconnect()
		m.retry(e.Error(), e.RetryAfter)
	default:
		m.disconnect()
		m.retry(e.Error(), e.RetryAfter)
	}
}

// suspend forgets everybody, as everybody has forgotten this device, and asks
// again later. The membership is not over: no key is needed to come back.
func (m *Machine) suspend(e *wire.Error) {
	m.disconnect()
	m.registration = nil
	m.note(m.facts.ClearCode(health.CoordinatorUnreachable))
	m.enter(Suspended, e.Error(), m.now.Add(max(m.backoff.next(m.cfg.Rand), min(e.RetryAfter, longestRetryAfter))))
	m.leave()
	m.put(health.Fact{
		Code: health.UserSuspended, Severity: health.Error, Since: m.now,
		Text: "An administrator suspended the user of this device, so it has no network. It comes back by itself when the user is resumed; ask your administrator.",
	})
}

// stop ends the membership and waits for a person.
func (m *Machine) stop(s State, reason string) {
	m.disconnect()
	m.registration = nil
	m.note(m.facts.ClearCode(health.CoordinatorUnreachable))
	m.note(m.facts.ClearCode(health.CoordinatorProtocol))
	m.enter(s, reason, time.Time{})
	m.leave()
	if s == Revoked {
		m.put(revokedFact(m.now))
		return
	}
	m.put(health.Fact{
		Code: health.LoginNeeded, Severity: health.Error, Since: m.now,
		Text: fmt.Sprintf("This device is not a member of the network: %s. Ask your administrator for a key and run: warren up --login-server %s --auth-key KEY", reason, m.cfg.URL),
	})
}

func revokedFact(now time.Time) health.Fact {
	return health.Fact{
		Code: health.Revoked, Severity: health.Error, Since: now,
		Text: "This device was removed from the network by an administrator. To join again, ask for a new key and run: warren up --auth-key KEY",
	}
}
