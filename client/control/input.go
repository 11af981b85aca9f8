package control

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// HandleStart connects, where the machine is Idle.
func (m *Machine) HandleStart(now time.Time) {
	m.tick(now)
	if m.state == Idle {
		m.backoff.reset()
		m.connect("")
	}
}

// HandleStop disconnects. The view stays: whether it is used is up to the
// layer above. A revoked device stays revoked.
func (m *Machine) HandleStop(now time.Time) {
	m.tick(now)
	m.registration = nil
	if m.state == Revoked || m.state == NeedsLogin {
		return
	}
	m.disconnect()
	m.note(m.facts.ClearCode(health.CoordinatorUnreachable))
	m.enter(Idle, "", time.Time{})
}

// HandleLogin asks for membership with r, which replaces an earlier wish. A
// device that is connected and a member ignores it.
func (m *Machine) HandleLogin(r Registration, now time.Time) {
	m.tick(now)
	if m.state == Streaming {
		return
	}
	r.Tags = slices.Clone(r.Tags)
	m.registration = &r
	m.revoked = false
	m.note(m.facts.ClearCode(health.Revoked))
	m.note(m.facts.ClearCode(health.LoginNeeded))
	m.disconnect()
	m.backoff.reset()
	m.connect("")
}

// HandleLogout ends the membership, on the coordinator too where it can be told
// at once. It reports whether it was told.
func (m *Machine) HandleLogout(now time.Time) (told bool) {
	m.tick(now)
	if m.state == Streaming {
		m.send(wire.Logout{})
		m.outputs = append(m.outputs, Close{Linger: true})
		told = true
	} else {
		m.disconnect()
	}
	m.registration, m.revoked = nil, false
	m.note(m.facts.ClearCode(health.CoordinatorUnreachable))
	m.note(m.facts.ClearCode(health.Revoked))
	m.note(m.facts.ClearCode(health.UserSuspended))
	m.enter(NeedsLogin, "logged out", time.Time{})
	m.leave()
	return told
}

// HandleNetworkChange connects anew: a connection over the old network would
// be found dead only by silence.
func (m *Machine) HandleNetworkChange(now time.Time) {
	m.tick(now)
	switch m.state {
	case Dialing, Handshaking, Registering, Streaming, Backoff, Expired, Suspended:
		m.disconnect()
		m.backoff.reset()
		m.connect("the network changed")
	case Idle, Revoked, NeedsLogin:
	}
}

// HandleReach takes the addresses at which this device may be reached, the
// likeliest first, and the name of the relay at which it listens, empty for none.
// What no coordinator would accept is left out, as are addresses beyond
// wire.MaxEndpoints. The slice is not kept.
func (m *Machine) HandleReach(endpoints []netip.AddrPort, homeRelay string, now time.Time) {
	m.tick(now)
	var kept []netip.AddrPort
	for _, e := range endpoints {
		e = netip.AddrPortFrom(e.Addr().Unmap().WithZone(""), e.Port())
		a := e.Addr()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || e.Port() == 0 || slices.Contains(kept, e) {
			continue
		}
		if kept = append(kept, e); len(kept) == wire.MaxEndpoints {
			break
		}
	}
	if slices.Equal(kept, m.endpoints) && homeRelay == m.homeRelay {
		return
	}
	m.endpoints, m.homeRelay = kept, homeRelay
	m.update()
}

// HandleRoutes takes all that this device offers to route, wire.MaxRoutes
// prefixes at most, each without bits beyond its length. The slice is not kept.
func (m *Machine) HandleRoutes(routes []netip.Prefix, now time.Time) {
	m.tick(now)
	if slices.Equal(routes, m.routes) {
		return
	}
	m.routes = slices.Clone(routes)
	m.update()
}

// update tells the coordinator of a change, now or soon.
func (m *Machine) update() {
	if m.state == Streaming && m.updateDue.IsZero() {
		m.updateDue = m.sentUpdate.Add(updateInterval)
		if !m.updateDue.After(m.now) {
			m.sendUpdate()
		}
	}
}

// HandleGenesis takes the genesis record that FetchGenesis asked for. It checks
// itself that it is the right one.
func (m *Machine) HandleGenesis(g *authority.Genesis, now time.Time) {
	m.tick(now)
	if m.state != Dialing || m.authority != nil {
		return
	}
	if g.Fingerprint() != m.cfg.Network {
		m.fail(authority.ErrFingerprint)
		return
	}
	a, err := authority.New(g, m.cfg.NodeKey, m.remembered)
	if err != nil {
		m.fail(err)
		return
	}
	m.authority = a
	m.save()
	m.connect("")
}

// HandleConnected tells that the channel that Dial asked for is open, with the
// proof for it of Config.NodeKey.
func (m *Machine) HandleConnected(proof wire.Proof, now time.Time) {
	m.tick(now)
	if m.state != Dialing || m.authority == nil {
		return
	}
	m.proof = proof
	m.greeted = m.now
	m.send(wire.Hello{Version: wire.Newest, Host: m.cfg.Host})
	m.note(m.facts.ClearCode(health.CoordinatorIdentity))
	m.enter(Handshaking, "", m.now.Add(replyTimeout))
}

// HandleClosed tells that the channel ended or could not be opened, or that the
// genesis record could not be had, and why. An error that is
// authority.ErrFingerprint means that somebody else answered.
func (m *Machine) HandleClosed(err error, now time.Time) {
	m.tick(now)
	if m.state != Dialing && !m.state.connected() {
		return
	}
	if err == nil {
		err = errors.New("the connection was closed")
	}
	m.fail(err)
}

// HandleTimeout does what is due at now. It may be called at any time.
func (m *Machine) HandleTimeout(now time.Time) {
	m.tick(now)
	if due(m.expiry, m.judged()) && m.member != nil {
		before := m.member
		m.member = before.readmit(m.authority, m.judged())
		if m.member != before || m.member.ended(m.judged()) != m.endedSaved {
			m.save()
		}
		m.refreshView()
	}
	if due(m.saveDue, m.now) {
		m.save()
	}
	if due(m.updateDue, m.now) {
		m.sendUpdate()
	}
	if !due(m.deadline, m.now) {
		return
	}
	switch m.state {
	case Dialing:
		m.fail(errors.New("no answer"))
	case Handshaking, Registering:
		m.fail(errors.New("it stopped answering"))
	case Streaming:
		m.fail(errors.New("it has gone silent"))
	case Backoff, Expired, Suspended:
		m.connect("")
	case Idle, Revoked, NeedsLogin:
	}
}

// NextTimeout returns when HandleTimeout is to be called at the latest; false
// for never. It does not change the machine.
func (m *Machine) NextTimeout() (time.Time, bool) {
	if len(m.outputs) > 0 || len(m.events) > 0 || m.healthChanged {
		return m.now, true
	}
	var first time.Time
	expiry := m.expiry
	if !expiry.IsZero() {
		expiry = expiry.Add(m.lead)
	}
	for _, t := range []time.Time{m.deadline, expiry, m.saveDue, m.updateDue} {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first, !first.IsZero()
}

func due(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

func (m *Machine) send(message wire.ClientMessage) {
	m.outputs = append(m.outputs, Send{Frame: wire.EncodeClient(message)})
}

func (m *Machine) sendUpdate() {
	m.updateDue, m.sentUpdate = time.Time{}, m.now
	m.send(wire.Update{Endpoints: m.endpoints, Routes: m.routes, HomeRelay: m.homeRelay})
}
