package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/engine"
)

// standing is what the loop knows, copied for others to read.
type standing struct {
	generation  uint64
	preferences statefile.Preferences
	// known says that there is a machine, and control is its snapshot.
	known   bool
	control control.Snapshot
	// waiting says that a join key waits to be sent.
	waiting bool
	view    *control.View
	facts   []health.Fact
}

func (l *loop) standing() standing {
	s := standing{preferences: l.preferences, view: l.view, facts: l.facts.Facts()}
	s.generation, _ = l.generationNow()
	if l.machine != nil {
		s.known = true
		s.control = l.machine.Snapshot()
		s.waiting = l.machine.Registration()
	}
	return s
}

// Status waits until the generation is above after, or ctx ends, and returns
// the status then.
func (a *Agent) Status(ctx context.Context, after uint64) localapi.Status {
	for {
		generation, changed := a.generationNow()
		if generation > after {
			break
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		case <-a.stopped:
		}
		break
	}
	// The wait may have used up ctx; the answer is at hand all the same.
	s, err := ask(context.WithoutCancel(ctx), a, (*loop).standing)
	if err != nil {
		return localapi.Status{State: localapi.Stopped, Reason: "the daemon is ending", Version: a.cfg.Host.ProgramVersion}
	}
	return a.status(s, a.cfg.DataPlane.Status())
}

// status puts together what the loop and the data plane know.
func (a *Agent) status(s standing, e engine.Status) localapi.Status {
	out := localapi.Status{
		Generation: s.generation, Version: a.cfg.Host.ProgramVersion,
		WantRunning: s.preferences.WantRunning, LoginServer: s.preferences.LoginServer, Network: fingerprintText(s.preferences.Network),
		Retry: s.control.Retry, Cached: s.view.Cached, Sequence: s.view.Sequence,
		Device: e.Device, Port: e.Port, Endpoints: append([]netip.AddrPort{}, e.Endpoints...), Drops: e.Drops, PolicyEpoch: uint64(e.Epoch),
		Peers: []localapi.Node{}, Health: a.facts(s, e),
	}
	out.State, out.Reason = stateOf(s)
	if e.Relay != nil {
		relay := relayOf(*e.Relay)
		out.Relay = &relay
	}
	out.Relays = relaysOf(e)
	if s.view.Self == nil {
		return out
	}
	self := a.self(s.view)
	out.Self = &self
	out.Denied = a.ownDenials()
	byNode := make(map[ident.NodeID]engine.PeerStatus, len(e.Peers))
	for _, p := range e.Peers {
		byNode[p.Node] = p
	}
	for _, p := range s.view.Peers {
		out.Peers = append(out.Peers, nodeOf(p, s.view, byNode[p.Member.Node()]))
	}
	slices.SortFunc(out.Peers, func(a, b localapi.Node) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// facts are all that the loop and the data plane know.
func (a *Agent) facts(s standing, e engine.Status) []health.Fact {
	now := a.cfg.Now()
	return health.Merge(s.control.Facts, s.facts, strayFacts(e.Peers, now), flapFacts(e.Peers, now), barFacts(e.Relays, now))
}

// strayFacts are about the peers with packets from where they do not prove to be.
func strayFacts(peers []engine.PeerStatus, now time.Time) []health.Fact {
	var facts []health.Fact
	for _, p := range peers {
		if !p.Strayed {
			continue
		}
		from := "many addresses"
		if p.StrayedFrom.IsValid() {
			from = p.StrayedFrom.String()
		}
		facts = append(facts, health.Fact{
			Code: health.PacketsFromElsewhere, Severity: health.Alarm, Subject: p.Node.String(), Since: now,
			Text: fmt.Sprintf("Packets of the tunnel with %s come from %s, where %s does not answer: somebody on the way sends them on, or again. Nothing is sent there, and nothing can be read or changed there; warren debug paths %s shows more.", p.Name, from, p.Name, p.Name),
		})
	}
	return facts
}

// flapFacts are about the peers whose paths change too often.
func flapFacts(peers []engine.PeerStatus, now time.Time) []health.Fact {
	var facts []health.Fact
	for _, p := range peers {
		if p.Flapping {
			facts = append(facts, health.Fact{
				Code: health.PathFlapping, Severity: health.Warning, Subject: p.Node.String(), Since: now,
				Text: fmt.Sprintf("The path to %s changes again and again. A network on the way works by turns, or somebody there interferes. Packets arrive by whatever works; warren debug paths %s shows more.", p.Name, p.Name),
			})
		}
	}
	return facts
}

// barFacts are about the relays that answer and over which no data came to a device.
// Whose fault it is cannot be seen from here: a device that answers a relay's questions
// beside the tunnel and none inside it looks the same.
func barFacts(relays []engine.RelayStatus, now time.Time) []health.Fact {
	var facts []health.Fact
	for _, r := range relays {
		if r.Barred == 0 {
			continue
		}
		devices, those := "a device", "that device"
		if r.Barred > 1 {
			devices, those = fmt.Sprintf("%d devices", r.Barred), "those devices"
		}
		facts = append(facts, health.Fact{
			Code: health.RelayDropsData, Severity: health.Warning, Subject: r.Name, Since: now,
			Text: fmt.Sprintf("The relay %s answers, and carried no data to %s: the relay is at fault, or %s. Another is used where there is one; warren debug paths NAME shows more.", r.Name, devices, those),
		})
	}
	return facts
}

// stateOf says in a user's terms where the node stands.
func stateOf(s standing) (localapi.State, string) {
	reason := s.control.Reason
	switch {
	case s.known && s.control.State == control.Revoked:
		return localapi.Revoked, reason
	case !s.known, s.control.State == control.NeedsLogin:
		return localapi.NeedsLogin, reason
	case !s.preferences.WantRunning:
		return localapi.Stopped, ""
	case s.control.State == control.Expired:
		return localapi.Expired, reason
	case s.control.State == control.Suspended:
		return localapi.Suspended, reason
	case s.control.State == control.Streaming && s.control.Synced:
		return localapi.Connected, ""
	case s.view.Self == nil:
		return localapi.Connecting, reason
	}
	return localapi.Offline, reason
}

func (a *Agent) self(v *control.View) localapi.Node {
	n := nodeOf(control.Peer{Member: v.Self, State: wire.PeerState{Online: !v.Cached, OS: a.cfg.Host.OS}}, v, engine.PeerStatus{})
	n.Active = true
	return n
}

// nodeOf describes a member.
func nodeOf(p control.Peer, v *control.View, e engine.PeerStatus) localapi.Node {
	identity := p.Member.Identity()
	n := localapi.Node{
		ID: p.Member.Node().String(), Name: p.Member.Name(), Tagged: identity.Owner == 0,
		Addresses: identity.Addresses, Routes: identity.Routes, NodeKey: p.Member.NodeKey().String(),
		OS: p.State.OS, Online: p.State.Online, Expires: p.Member.NotAfter(),
		Active: e.Active, LastHandshake: e.LastHandshake, TxBytes: e.TxBytes, RxBytes: e.RxBytes,
		Path: pathOf(e.Path), MTU: e.MTU,
	}
	i := slices.IndexFunc(v.Settings.Users, func(u wire.User) bool { return u.ID == identity.Owner })
	if i >= 0 && identity.Owner != 0 {
		n.User = v.Settings.Users[i].Login
	}
	return n
}

func pathOf(p engine.Path) localapi.Path {
	kind := string(p.Kind)
	if kind == "" {
		kind = string(engine.PathNone)
	}
	return localapi.Path{Kind: kind, Addr: p.Addr, Relay: p.Relay, Region: p.Region}
}
