package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/flowlog"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/netstack/engine"
)

// flowPage is how many records are handed on at a time.
const flowPage = 256

// Flows returns the records of what the packet filter decided after those with
// Next; 0 asks from the beginning.
func (a *Agent) Flows(_ context.Context, after uint64) (localapi.FlowPage, error) {
	logins := a.logins()
	flows := a.cfg.Decisions.Flows(after, flowPage)
	page := localapi.FlowPage{Next: flows.Next, Gap: flows.Gap, Lost: flows.Lost, Changed: flows.Changed}
	for i := range flows.Records {
		page.Flows = append(page.Flows, flowOf(&flows.Records[i], logins))
	}
	return page, nil
}

// logins returns the logins of the users that this device may know of.
func (a *Agent) logins() map[ident.UserID]string {
	logins := map[ident.UserID]string{}
	if v := a.currentView(); v != nil {
		for _, u := range v.Settings.Users {
			logins[u.ID] = u.Login
		}
	}
	return logins
}

const (
	// maxShownDenials is how many denials a status has, of the last
	// denialsShownFor: what somebody who wonders has just tried.
	maxShownDenials = 5
	denialsShownFor = 10 * time.Minute
	// maxSoughtDenials is among how many of the latest they are looked for.
	maxSoughtDenials = 256
)

// shownReasons are the refusals that somebody who wonders can do something
// about.
var shownReasons = []string{
	filter.DropNoRule.String(), filter.DropDenied.String(), filter.DropDestination.String(), filter.DropUnsolicited.String(),
}

// ownDenials returns the latest connections of this device's own that its filter
// refuses, by a rule, for want of one, or for the addresses between which they
// are.
func (a *Agent) ownDenials() []localapi.Flow {
	var shown []localapi.Flow
	since := a.cfg.Now().Add(-denialsShownFor)
	logins := a.logins()
	for _, r := range a.cfg.Decisions.Denials(maxSoughtDenials) {
		refused := slices.Contains(shownReasons, r.Reason)
		if refused && r.Opener == filter.Outbound && r.End.After(since) && len(shown) < maxShownDenials {
			shown = append(shown, flowOf(&r, logins))
		}
	}
	return shown
}

// flowOf describes a record.
func flowOf(r *flowlog.Record, logins map[ident.UserID]string) localapi.Flow {
	f := localapi.Flow{
		ID: fmt.Sprintf("%016x", r.ID), Verdict: "denied", Direction: r.Opener.String(),
		Source: partyOf(&r.Source, logins), Destination: partyOf(&r.Destination, logins), Protocol: policy.ProtocolName(r.Protocol),
		Rule: string(r.Rule), PolicyEpoch: uint64(r.Epoch), Reason: r.Reason,
		Would: r.Would.String(), WouldRule: string(r.WouldRule),
		CandidateEpoch: uint64(r.Candidate.Epoch), Candidate: r.Candidate.Would.String(), CandidateRule: string(r.Candidate.Rule),
		Start: r.Start, End: r.End, EndReason: r.EndReason, EndEpoch: uint64(r.EndEpoch),
		SentPackets: r.Sent.Packets, SentBytes: r.Sent.Bytes, ReceivedPackets: r.Received.Packets, ReceivedBytes: r.Received.Bytes,
		Attempts: r.Attempts, Others: r.Others,
	}
	if r.Allowed {
		f.Verdict = "allowed"
	}
	return f
}

func partyOf(p *flowlog.Party, logins map[ident.UserID]string) localapi.FlowParty {
	out := localapi.FlowParty{
		Node: p.Node.String(), Name: p.Name, Certificate: p.Certificate,
		Addr: p.Address.Addr(), Port: p.Address.Port(),
	}
	if p.User != 0 {
		out.User, out.UserID = logins[p.User], p.User.String()
	}
	return out
}

// Capture begins to capture the packets that the filter decides on.
func (a *Agent) Capture(ctx context.Context, r localapi.CaptureRequest) (localapi.Capture, error) {
	cfg := engine.CaptureConfig{Denied: r.Denied, Packets: r.Packets, Duration: r.Duration}
	if r.Peer != "" {
		v, err := ask(ctx, a, func(l *loop) *control.View { return l.view })
		if err != nil {
			return nil, err
		}
		p := find(v, r.Peer)
		if p == nil {
			return nil, localapi.Errorf(localapi.CodeNotFound, "%q is no device that this one may see; `warren status` lists them", r.Peer)
		}
		cfg.Peer = p.Member.Node()
	}
	capture, err := a.cfg.Decisions.Capture(cfg)
	if errors.Is(err, engine.ErrTooManyCaptures) {
		return nil, localapi.Errorf(localapi.CodeConflict, "%d captures are running already; end one of them", engine.MaxCaptures)
	}
	if err != nil {
		return nil, fmt.Errorf("agent: beginning a capture: %w", err)
	}
	return capture.Write, nil
}
