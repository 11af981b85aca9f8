package agent

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/nat"
)

// TestReach: what cannot lead to this device is refused and changes nothing; the
// rest is kept, once each.
func TestReach(t *testing.T) {
	l := &loop{view: &control.View{Overlay: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}}}
	before := statefile.Preferences{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:1")}}
	many := make([]netip.AddrPort, maxEndpoints+1)
	for i := range many {
		many[i] = netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), uint16(i+1))
	}
	for name, bad := range map[string][]netip.AddrPort{
		"none": {{}}, "port 0": {netip.MustParseAddrPort("203.0.113.1:0")}, "zone": {netip.MustParseAddrPort("[fe80::1%eth0]:1")},
		"loopback": {netip.MustParseAddrPort("[::ffff:127.0.0.1]:1")}, "multicast": {netip.MustParseAddrPort("224.0.0.1:1")},
		"link-local": {netip.MustParseAddrPort("169.254.1.1:1")}, "overlay": {netip.MustParseAddrPort("100.65.0.1:1")},
		"one is bad": {netip.MustParseAddrPort("203.0.113.2:1"), netip.MustParseAddrPort("0.0.0.0:1")}, "too many": many,
	} {
		p := before
		var e *localapi.Error
		if err := l.reachability(&p, localapi.Reach{Endpoints: &bad}); !errors.As(err, &e) || e.Code != localapi.CodeBadRequest || !p.Equal(&before) {
			t.Errorf("%s: %v, %v", name, err, p.Endpoints)
		}
	}
	off, p := false, before
	good := []netip.AddrPort{netip.MustParseAddrPort("[::ffff:203.0.113.2]:1"), netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("203.0.113.2:1")}
	if err := l.reachability(&p, localapi.Reach{Endpoints: &good, PortMapping: &off}); err != nil || !p.NoPortMapping ||
		!slices.Equal(p.Endpoints, []netip.AddrPort{netip.MustParseAddrPort("203.0.113.2:1"), good[1]}) {
		t.Errorf("%v, %+v", err, p)
	}
	if err := l.reachability(&p, localapi.Reach{}); err != nil || !p.NoPortMapping || len(p.Endpoints) != 2 {
		t.Errorf("unmentioned: %v, %+v", err, p)
	}
	resetReach(&p)
	if !p.Equal(&statefile.Preferences{}) {
		t.Errorf("after reset: %+v", p)
	}
	exactly := many[:maxEndpoints]
	if err := l.reachability(&p, localapi.Reach{Endpoints: &exactly}); err != nil || len(p.Endpoints) != maxEndpoints {
		t.Errorf("as many as may be: %v", err)
	}
}

// TestPortMappingOf: what is not there is left out.
func TestPortMappingOf(t *testing.T) {
	until := time.Unix(1_800_000_000, 0)
	external, gateway := netip.MustParseAddrPort("203.0.113.1:7"), netip.MustParseAddr("192.168.1.1")
	for _, c := range []struct {
		mapping nat.Mapping
		want    localapi.PortMapping
	}{
		{nat.Mapping{}, localapi.PortMapping{State: "off"}},
		{nat.Mapping{State: nat.MappingNone, Error: nat.ErrGrant}, localapi.PortMapping{State: "none", Error: nat.ErrGrant.Error()}},
		{
			nat.Mapping{State: nat.MappingActive, Protocol: nat.MapUPnP, Gateway: gateway, External: external, Until: until},
			localapi.PortMapping{State: "active", Protocol: "UPnP", Gateway: gateway, External: external, Until: until},
		},
	} {
		if got := portMappingOf(c.mapping); got != c.want {
			t.Errorf("%+v, want %+v", got, c.want)
		}
	}
}

// TestTurnedOff: whoever asks why nothing is mapped is told who wants it so.
func TestTurnedOff(t *testing.T) {
	off := &control.View{Settings: wire.Settings{Off: []wire.Feature{wire.FeaturePortMapping}}}
	for _, c := range []struct {
		view *control.View
		have localapi.PortMapping
		want string
	}{
		{off, localapi.PortMapping{State: "off"}, "turned off for all devices by the administrator"},
		{off, localapi.PortMapping{State: "none", Error: "silent"}, "silent"}, // not yet
		{&control.View{}, localapi.PortMapping{State: "off"}, ""},
		{&control.View{Settings: wire.Settings{Off: []wire.Feature{7}}}, localapi.PortMapping{State: "off"}, ""},
	} {
		got := c.have
		if turnedOff(c.view, &got); got.Error != c.want || got.State != c.have.State {
			t.Errorf("%+v of %+v: %+v", c.view.Settings.Off, c.have, got)
		}
	}
}
