package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/path"
)

const (
	// checkTime bounds a check of the network: STUN servers and relays take 5 s, and
	// portalTime comes before that.
	checkTime = 12 * time.Second
	// portalTime bounds the question whether it is the coordinator that answers.
	portalTime = 5 * time.Second
)

// Netcheck measures this device's network anew.
func (a *Agent) Netcheck(ctx context.Context) (localapi.NetcheckReply, error) {
	s, err := ask(ctx, a, (*loop).standing)
	if err != nil {
		return localapi.NetcheckReply{}, err
	}
	if s.view.Self == nil || !s.preferences.WantRunning {
		return localapi.NetcheckReply{}, localapi.Errorf(localapi.CodeNotConnected, "this device is not connected, so it has no servers to ask; run `warren up`")
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	portal := a.portal(ctx, s)
	if err := a.cfg.DataPlane.CheckNetwork(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return localapi.NetcheckReply{}, err
	}
	status := a.cfg.DataPlane.Status()
	reply := netcheck(status)
	turnedOff(s.view, &reply.PortMapping)
	reply.CaptivePortal = portal
	reply.Hints = hints(reply, status.NAT.NoNAT, len(s.view.Settings.STUNServers()))
	return reply, nil
}

// portal says whether something else answers in the coordinator's place, nil
// where nothing answers at all.
func (a *Agent) portal(ctx context.Context, s standing) *bool {
	if s.known && s.control.State == control.Streaming {
		return new(bool) // it proved its key on this network
	}
	ctx, cancel := context.WithTimeout(ctx, portalTime)
	defer cancel()
	_, err := a.cfg.Coordinator.FetchGenesis(ctx, s.preferences.LoginServer, s.preferences.Network)
	switch {
	case err == nil:
		return new(bool)
	case errors.Is(err, authority.ErrFingerprint), errors.Is(err, authority.ErrMalformed):
		yes := true
		return &yes
	}
	return nil
}

// netcheck puts the data plane's status in the words of the local API.
func netcheck(e engine.Status) localapi.NetcheckReply {
	r := localapi.NetcheckReply{
		UDP: e.NAT.UDP, IPv4: e.NAT.Public4, IPv6: e.NAT.Public6, MappingVariesByDestIP: known(e.NAT.MappingVaries),
		Port: e.Port, Endpoints: append([]netip.AddrPort{}, e.Endpoints...),
		PortMapping: portMappingOf(e.Mapping), IPv6Pinholes: pinholesOf(e), Servers: []localapi.STUNServer{}, Relays: relaysOf(e), Hints: []string{},
	}
	for _, s := range e.NAT.Servers {
		r.Servers = append(r.Servers, localapi.STUNServer{Server: s.Server, Mapped: s.Mapped, RTT: s.RTT})
	}
	least := time.Duration(0)
	for _, relay := range r.Relays {
		switch {
		case relay.Failed: // whatever answers beside it
		case relay.RTT > 0 && (least == 0 || relay.RTT < least):
			r.NearestRelay, least = relay.Name, relay.RTT
		case relay.Connected && r.NearestRelay == "":
			r.NearestRelay = relay.Name // none is known to be nearer
		}
	}
	return r
}

// known is a tristate as JSON has it: nil for unknown.
func known(t nat.Tristate) *bool {
	if t == nat.Unknown {
		return nil
	}
	yes := t == nat.Yes
	return &yes
}

// relaysOf lists the relays of a status.
func relaysOf(e engine.Status) []localapi.Relay {
	out := []localapi.Relay{}
	for _, r := range e.Relays {
		out = append(out, relayOf(r))
	}
	return out
}

func relayOf(r engine.RelayStatus) localapi.Relay {
	return localapi.Relay{Name: r.Name, Region: r.Region, URL: r.URL, Home: r.Home, Connected: r.Connected, Failed: r.Failed, Datagrams: r.Datagrams, RTT: r.RTT, RTTAge: r.RTTAge, Error: r.Error, Barred: r.Barred}
}

// hints says what is wrong with a network and what to do. noNAT says that there is no
// NAT in front of this device as far as is known, servers is how many STUN servers
// there are to ask.
func hints(r localapi.NetcheckReply, noNAT bool, servers int) []string {
	out := []string{}
	yes := func(b *bool) bool { return b != nil && *b }
	relayed := false
	for _, relay := range r.Relays {
		relayed = relayed || relay.Connected
	}
	if yes(r.CaptivePortal) {
		out = append(out, "Something else than the coordinator answers at its address, such as the sign-in page of a hotel's network: open a web page in a browser and sign in there.")
	}
	if !r.UDP {
		text := "UDP is blocked, or no STUN server answers: allow UDP from this device to port 3478, and from port " + fmt.Sprint(r.Port) + " to anywhere."
		if relayed {
			text += " Until then, peers that are not on this network are reached over the relay."
		}
		out = append(out, text)
	}
	if r.UDP && r.MappingVariesByDestIP == nil && !noNAT {
		out = append(out, unknownMapping(len(r.Servers), servers))
	}
	if yes(r.MappingVariesByDestIP) && r.PortMapping.State != nat.MappingActive.String() {
		out = append(out, "The NAT in front of this device takes another port for each destination: peers behind a NAT of that kind are reached over the relay. A port mapping in the router helps, or a forwarded port and `warren up --endpoint ADDR:PORT`.")
	}
	if !relayed {
		switch {
		case len(r.Relays) == 0:
			out = append(out, "The coordinator names no relay: peers that cannot be reached directly cannot be reached at all.")
		case !yes(r.CaptivePortal):
			out = append(out, fmt.Sprintf("No relay is connected (%s: %s): peers that cannot be reached directly cannot be reached at all. Allow TCP to the relays' addresses.", r.Relays[0].Name, r.Relays[0].Error))
		}
	}
	return out
}

// unknownMapping says why it is not known what kind of NAT is in front of this
// device, and what to do.
func unknownMapping(answered, servers int) string {
	var why, do string
	switch {
	case servers < 2:
		why = "only one STUN server is configured"
		do = "an administrator names another with `--stun HOST:PORT` of warren-coordinator serve, or sets up a second relay, which has one."
	case answered < 2:
		why = fmt.Sprintf("only one of the %d STUN servers answers", servers)
		do = "allow UDP from this device to all of them, or have an administrator name others with `--stun HOST:PORT` of warren-coordinator serve."
	default:
		why = "no two of the STUN servers that answer have addresses of one family"
		do = "an administrator names another with `--stun HOST:PORT` of warren-coordinator serve."
	}
	return "It is not known whether the NAT in front of this device takes another port for each destination, since " + why +
		"; so no port is guessed, and some peers are reached over the relay that could be reached directly: " + do
}

// Paths says how packets reach the device that target names.
func (a *Agent) Paths(ctx context.Context, target string) (localapi.PathsReply, error) {
	s, err := ask(ctx, a, (*loop).standing)
	if err != nil {
		return localapi.PathsReply{}, err
	}
	p, addr, err := reachable(s, target)
	if err != nil {
		return localapi.PathsReply{}, err
	}
	paths, err := a.cfg.DataPlane.Paths(addr)
	if errors.Is(err, engine.ErrNoPeer) {
		return localapi.PathsReply{}, localapi.Errorf(localapi.CodeNotFound, "%s is not in force yet; try it again", p.Member.Name())
	}
	if err != nil {
		return localapi.PathsReply{}, err
	}
	reply := describePaths(paths, a.cfg.DataPlane.Status())
	turnedOff(s.view, &reply.PortMapping)
	reply.Addr = addr
	return reply, nil
}

// reachable returns the peer that target names, and the address to send to.
func reachable(s standing, target string) (*control.Peer, netip.Addr, error) {
	if s.view.Self == nil || !s.preferences.WantRunning {
		return nil, netip.Addr{}, localapi.Errorf(localapi.CodeNotConnected, "this device is not connected; run `warren up`")
	}
	p := find(s.view, target)
	if p == nil {
		return nil, netip.Addr{}, localapi.Errorf(localapi.CodeNotFound, "%q is no device that this one may see; `warren status` lists them. A policy that allows nothing between two devices hides them from each other", target)
	}
	addr := p.Member.Identity().Addresses[0]
	if given, err := netip.ParseAddr(target); err == nil {
		addr = given.Unmap()
	}
	if p.Member == s.view.Self {
		return nil, netip.Addr{}, localapi.Errorf(localapi.CodeBadRequest, "%s is this device", target)
	}
	return p, addr, nil
}

// describePaths puts the paths to one peer in the words of the local API.
func describePaths(p engine.PeerPaths, e engine.Status) localapi.PathsReply {
	r := localapi.PathsReply{
		Name: p.Name, Time: p.Now, Path: pathOf(p.Path), Since: p.Paths.Since, Why: whyPrimary(p),
		Active: p.Paths.Active, MTU: p.Paths.MTU, LastHandshake: p.LastHandshake, UnansweredHandshakes: p.Unanswered,
		Candidates: []localapi.PathCandidate{}, Relays: relaysOf(e),
		Endpoints: append([]netip.AddrPort{}, e.Endpoints...), MappingVariesByDestIP: known(e.NAT.MappingVaries),
		PortMapping: portMappingOf(e.Mapping), IPv6Pinholes: pinholesOf(e),
	}
	for _, b := range p.Barred {
		r.BarredRelays = append(r.BarredRelays, localapi.BarredRelay{Name: b.Relay, Since: b.Since, Until: b.Until})
	}
	var primary path.CandidateState
	for _, c := range p.Paths.Candidates {
		if c.Standing == path.StandingPrimary {
			primary = c
		}
	}
	for _, c := range p.Paths.Candidates {
		why := whyCandidate(c, primary, p.Now)
		if c.Observed.IsValid() && !slices.Contains(e.Endpoints, c.Observed) {
			why += fmt.Sprintf("; it sees this device at %v, which is none of the addresses known here", c.Observed)
		}
		r.Candidates = append(r.Candidates, localapi.PathCandidate{
			Addr: c.Addr, Sources: sourceNames(c.Sources), State: c.Standing.String(),
			Why: why, RTT: c.RTT, MTU: c.MTU, Heard: c.Heard, Observed: c.Observed,
		})
	}
	if p.Path.Kind != engine.PathDirect {
		r.NotDirect = whyNotDirect(p, e.NAT)
		r.Guessing = guessing(p)
	}
	return r
}

// sourceNames lists who named a candidate.
func sourceNames(s path.Source) []string {
	out := []string{}
	for _, n := range []struct {
		source path.Source
		name   string
	}{
		{path.SourceListed, "coordinator"},
		{path.SourceCalled, "peer"},
		{path.SourceObserved, "observed"},
		{path.SourceProved, "proved"},
		{path.SourceGuessed, "guessed"},
	} {
		if s&n.source != 0 {
			out = append(out, n.name)
		}
	}
	return out
}

// whyPrimary says why packets go as they do.
func whyPrimary(p engine.PeerPaths) string {
	switch p.Path.Kind {
	case engine.PathDirect:
		return "it answered a challenge from that very address, and nothing else that works is so much better that a change would pay"
	case engine.PathRelay:
		switch p.Paths.Why {
		case path.ReasonLost:
			return "the direct path stopped answering"
		case path.ReasonIdle:
			return "no packets were exchanged lately, and the last proof of a direct path is too old"
		case path.ReasonNetwork:
			return "this device's network changed, and no direct path was proved since"
		case path.ReasonProved, path.ReasonRelay:
		}
		return "the relay can carry packets, and no direct path is proved"
	case engine.PathNone:
	}
	if p.Relayed {
		return "no packets were exchanged yet"
	}
	return "no direct path is proved, and no relay is connected"
}

// whyCandidate says why an address of the peer stands where it does.
func whyCandidate(c, primary path.CandidateState, now time.Time) string {
	ago := func(t time.Time) string { return now.Sub(t).Round(100*time.Millisecond).String() + " ago" }
	next := ""
	if !c.Next.IsZero() && c.Next.After(now) {
		next = "; next in " + c.Next.Sub(now).Round(100*time.Millisecond).String()
	}
	switch c.Standing {
	case path.StandingPrimary:
		if c.Proved.IsZero() {
			return "packets go there for want of anything better: it did not answer since the network changed"
		}
		return "packets go there; answered " + ago(c.Proved)
	case path.StandingWorks:
		if primary.Cost == 0 {
			return "answered " + ago(c.Proved)
		}
		return fmt.Sprintf("answered %s; costs %v against %v of the primary (round trip and kind of address), and a change must gain 5ms and a tenth",
			ago(c.Proved), c.Cost.Round(10*time.Microsecond), primary.Cost.Round(10*time.Microsecond))
	case path.StandingProbing:
		return "asked, and no answer yet" + next
	case path.StandingSilent:
		return "asked again and again without an answer" + next
	case path.StandingStale:
		return "answered last " + ago(c.Proved) + ", which is too old to count" + next
	case path.StandingLost:
		return "was primary and stopped answering" + next
	case path.StandingBarred:
		return "answered, but carried no tunnel; not used for another " + c.Barred.Sub(now).Round(time.Second).String()
	case path.StandingIdle:
		return "not asked while no packets are exchanged"
	}
	return ""
}

// whyNotDirect says why there is no direct path.
func whyNotDirect(p engine.PeerPaths, own nat.Report) string {
	byStanding := map[path.Standing]int{}
	for _, c := range p.Paths.Candidates {
		byStanding[c.Standing]++
	}
	var why string
	switch n := len(p.Paths.Candidates); {
	case !p.Paths.Active:
		return "no packets were exchanged lately, so no path is looked for"
	case n == 0:
		why = fmt.Sprintf("no address of %s is known", p.Name)
	case byStanding[path.StandingBarred] > 0:
		why = fmt.Sprintf("%d of the %d addresses of %s answered, but carried no tunnel", byStanding[path.StandingBarred], n, p.Name)
	case byStanding[path.StandingProbing] > 0:
		why = fmt.Sprintf("%d of the %d addresses of %s are still being asked", byStanding[path.StandingProbing], n, p.Name)
	default:
		why = fmt.Sprintf("none of the %d addresses of %s answers", n, p.Name)
	}
	switch {
	case !own.UDP:
		why += "; no STUN server answers this device either, so UDP seems to be blocked here"
	case p.Paths.Birthday.Local == path.MappingHard && p.Paths.Birthday.Remote == path.MappingHard:
		why += fmt.Sprintf("; the NATs of this device and of %s take another port for each destination, so that neither can guess the other's", p.Name)
	case p.Paths.Birthday.Local == path.MappingHard && p.Paths.Birthday.Remote == path.MappingEasy:
		why += fmt.Sprintf("; this device's NAT takes another port for each destination, which %s has to guess", p.Name)
	case p.Paths.Birthday.Local == path.MappingEasy && p.Paths.Birthday.Remote == path.MappingHard:
		why += fmt.Sprintf("; the NAT of %s takes another port for each destination, which this device has to guess", p.Name)
	case own.MappingVaries == nat.Unknown && !own.NoNAT && p.Paths.Birthday.Remote != path.MappingEasy:
		why += "; it is not known what kind of NAT is in front of this device, so no port is guessed: `warren netcheck` says what to do"
	case own.MappingVaries == nat.Yes:
		why += "; this device's NAT takes another port for each destination, so that a peer behind such a NAT, or behind a strict firewall, cannot be reached directly"
	}
	return strings.TrimSpace(why)
}

// guessing says how far the guessing of a port has come, empty where it is not
// called for.
func guessing(p engine.PeerPaths) string {
	b := p.Paths.Birthday
	round := func(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }
	switch b.Role {
	case path.BirthdayOpener:
		return fmt.Sprintf("for %v this device has been sending from many sockets, for %s to find a port of one", round(p.Now.Sub(b.Began)), p.Name)
	case path.BirthdayGuesser:
		return fmt.Sprintf("for %v this device has been trying ports of %s, %d of at most %d", round(p.Now.Sub(b.Began)), p.Name, b.Sent, b.Most)
	case path.BirthdayNone:
	}
	var text []string
	if b.Failures > 0 {
		text = append(text, fmt.Sprintf("came to nothing, attempts: %d", b.Failures))
	}
	if b.Next.After(p.Now) {
		text = append(text, fmt.Sprintf("next in %v", round(b.Next.Sub(p.Now))))
	}
	return strings.Join(text, "; ")
}
