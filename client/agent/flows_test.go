package agent_test

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/flowlog"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/netstack/engine"
)

// Flows has a flow of alice's and a denial.
func (p *plane) Flows(after uint64, _ int) engine.Flows {
	if after > 0 {
		return engine.Flows{Next: after, Lost: 3}
	}
	self := flowlog.Party{Node: 1, Name: "node1", User: 7, Certificate: 4, Address: netip.MustParseAddrPort("100.64.0.1:40000")}
	peer := flowlog.Party{Node: 2, Name: "node2", Address: netip.MustParseAddrPort("100.64.0.2:22")}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return engine.Flows{Next: 2, Lost: 3, Records: []flowlog.Record{
		{
			ID: 0xab, Allowed: true, Opener: filter.Outbound, Source: self, Destination: peer, Protocol: packet.TCP, Rule: "ssh", Epoch: 7,
			Start: at, End: at.Add(time.Second), EndReason: "idle", Sent: flowlog.Traffic{Packets: 1, Bytes: 40},
			Would: ruleset.WouldDeny, WouldRule: "audit",
		},
		{ID: 0xcd, Opener: filter.Inbound, Source: peer, Destination: self, Protocol: packet.UDP, Reason: "drop_no_rule", Attempts: 2, Start: at, End: at},
	}}
}

// Denials has one of this device's now, one that is long past, and a peer's.
func (p *plane) Denials(int) []flowlog.Record {
	own := p.Flows(0, 0).Records[0]
	own.Allowed, own.Reason, own.Start, own.End = false, "drop_no_rule", time.Now(), time.Now()
	long := own
	long.End = long.End.Add(-time.Hour)
	return []flowlog.Record{p.Flows(0, 0).Records[1], long, own}
}

func (p *plane) Capture(engine.CaptureConfig) (*engine.Capture, error) {
	return nil, engine.ErrTooManyCaptures
}

func TestFlowsNameDevicesAndUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, n := newNode(t)
		defer n.stop()
		n.join(t, c)
		flows, err := n.Flows(t.Context(), 0)
		if err != nil || len(flows.Flows) != 2 || flows.Next != 2 || flows.Lost != 3 {
			t.Fatalf("flows %+v, %v", flows, err)
		}
		first, second := flows.Flows[0], flows.Flows[1]
		if first.ID != "00000000000000ab" || first.Verdict != "allowed" || first.Direction != "out" || first.Source.User != "alice@example.com" ||
			first.Source.Node != "n1" || first.Destination.Name != "node2" || first.Destination.User != "" || first.Protocol != "tcp" ||
			first.Destination.Port != 22 || first.Rule != "ssh" || first.PolicyEpoch != 7 || first.SentBytes != 40 || first.Would != "would_deny" {
			t.Errorf("flow %+v", first)
		}
		if second.Verdict != "denied" || second.Direction != "in" || second.Reason != "drop_no_rule" || second.Attempts != 2 {
			t.Errorf("denial %+v", second)
		}
		if d := n.status().Denied; len(d) != 1 || d[0].Verdict != "denied" || d[0].Direction != "out" || d[0].Destination.Port != 22 {
			t.Errorf("denied in the status: %+v", d)
		}
		var e *localapi.Error
		if _, err := n.Capture(t.Context(), localapi.CaptureRequest{Peer: "node2"}); !errors.As(err, &e) || e.Code != localapi.CodeConflict {
			t.Errorf("one capture too many: %v", err)
		}
		if _, err := n.Capture(t.Context(), localapi.CaptureRequest{Peer: "nobody"}); !errors.As(err, &e) || e.Code != localapi.CodeNotFound {
			t.Errorf("capture of nobody: %v", err)
		}
	})
}
