package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/flowlog"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/enginetest"
)

// waitForRecord reads records until one is as wanted.
func waitForRecord(t *testing.T, e *Engine, wanted func(*flowlog.Record) bool) flowlog.Record {
	t.Helper()
	timeout := time.After(patience)
	for after := uint64(0); ; {
		f := e.Flows(after, 10)
		for i := range f.Records {
			if wanted(&f.Records[i]) {
				return f.Records[i]
			}
		}
		after = f.Next
		if len(f.Records) > 0 {
			continue
		}
		select {
		case <-f.Changed:
		case <-timeout:
			t.Fatalf("no such record among %+v", e.Flows(0, 1000).Records)
		}
	}
}

// TestFlowsAreRecorded sends what is allowed and what is not, and takes the rule
// away: both devices have a record of each, with both identities.
func TestFlowsAreRecorded(t *testing.T) {
	_, a, b := two(t)
	now := time.Now()
	dns := enginetest.Allow("dns", b.Member, packet.UDP, 53)
	audit := enginetest.Allow("audit", b.Member, packet.UDP, 54)
	audit.Mode = ruleset.Audit
	rules := &ruleset.RuleSet{Out: []ruleset.Rule{dns, audit}}
	a.apply(t, a.Config(now, rules, b.Member))
	b.apply(t, b.Config(now, &ruleset.RuleSet{In: []ruleset.Rule{enginetest.Allow("all", a.Member, packet.UDP, 0)}}, a.Member))
	epoch := a.engine.Status().Epoch
	a.send(t, b, 53, "yes")
	for range 3 {
		a.tun.Send(enginetest.UDP(netip.AddrPortFrom(a.Addr4(), 5000), netip.AddrPortFrom(b.Addr4(), 54), "no"))
	}

	opened := waitForRecord(t, a.engine, func(r *flowlog.Record) bool { return r.Allowed })
	if opened.Opener != filter.Outbound || opened.Rule != "dns" || opened.Epoch != epoch || opened.Protocol != packet.UDP || !opened.End.IsZero() ||
		opened.Source.Name != "laptop" || opened.Source.Node != a.Node || opened.Source.Address != netip.AddrPortFrom(a.Addr4(), 5000) ||
		opened.Destination.Name != "db" || opened.Destination.Node != b.Node || opened.Destination.Address.Port() != 53 ||
		opened.Source.Certificate == 0 {
		t.Errorf("opening: %+v", opened)
	}
	theirs := waitForRecord(t, b.engine, func(r *flowlog.Record) bool { return r.Allowed })
	if theirs.Opener != filter.Inbound || theirs.Rule != "all" || theirs.Source.Name != "laptop" || theirs.Destination.Name != "db" {
		t.Errorf("opening at the other side: %+v", theirs)
	}
	denied := waitForRecord(t, a.engine, func(r *flowlog.Record) bool { return !r.Allowed })
	if denied.Reason != "drop_no_rule" || denied.Destination.Address.Port() != 54 || denied.Would != ruleset.WouldAllow || denied.WouldRule != "audit" {
		t.Errorf("denial: %+v", denied)
	}

	a.apply(t, a.Config(now, &ruleset.RuleSet{}, b.Member))
	ended := waitForRecord(t, a.engine, func(r *flowlog.Record) bool { return r.Allowed && !r.End.IsZero() })
	if ended.ID != opened.ID || ended.EndReason != "rule" || ended.EndEpoch <= ended.Epoch || ended.Sent.Packets != 1 || ended.Sent.Bytes == 0 {
		t.Errorf("end: %+v", ended)
	}
}
