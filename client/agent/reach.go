package agent

import (
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/engine"
	"github.com/warren-overlay/warren/netstack/nat"
)

// maxEndpoints bounds the addresses that a user names: a mapping and the
// pinholes are to have room beside them.
const maxEndpoints = nat.MaxForwarded - 1 - nat.MaxPinholes

// resetReach puts the settings of localapi.Reach back to their defaults.
func resetReach(p *statefile.Preferences) { p.NoPortMapping, p.Endpoints = false, nil }

// reachability carries the settings of r into p.
func (l *loop) reachability(p *statefile.Preferences, r localapi.Reach) error {
	if r.PortMapping != nil {
		p.NoPortMapping = !*r.PortMapping
	}
	if r.Endpoints == nil {
		return nil
	}
	endpoints := []netip.AddrPort{}
	for _, e := range *r.Endpoints {
		e = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
		switch a := e.Addr(); {
		case !e.IsValid(), e.Port() == 0, a.Zone() != "":
			return localapi.Errorf(localapi.CodeBadRequest, "--endpoint: %v is not an address with a port such as 203.0.113.7:41641", e)
		case !a.IsGlobalUnicast():
			return localapi.Errorf(localapi.CodeBadRequest, "--endpoint: peers cannot reach this device at %v", a)
		case slices.ContainsFunc(l.view.Overlay, func(p netip.Prefix) bool { return p.Contains(a) }):
			return localapi.Errorf(localapi.CodeBadRequest, "--endpoint: %v is an address of the overlay; give the one outside that leads to this device", a)
		}
		if !slices.Contains(endpoints, e) {
			endpoints = append(endpoints, e)
		}
	}
	if len(endpoints) > maxEndpoints {
		return localapi.Errorf(localapi.CodeBadRequest, "--endpoint: %d addresses; at most %d", len(endpoints), maxEndpoints)
	}
	p.Endpoints = endpoints
	return nil
}

// turnedOff says of what the administrator turned off for all devices that it is
// so.
func turnedOff(v *control.View, p *localapi.PortMapping) {
	if v.Settings.IsOff(wire.FeaturePortMapping) && p.State == nat.MappingOff.String() {
		p.Error = "turned off for all devices by the administrator"
	}
}

// portMappingOf puts how port mapping stands in the words of the local API.
func portMappingOf(m nat.Mapping) localapi.PortMapping {
	out := localapi.PortMapping{State: m.State.String(), Gateway: m.Gateway, Internal: m.Internal, External: m.External, Until: m.Until}
	if m.Protocol != nat.MapNone {
		out.Protocol = m.Protocol.String()
	}
	if m.Error != nil {
		out.Error = m.Error.Error()
	}
	return out
}

// pinholesOf does so for the pinholes.
func pinholesOf(e engine.Status) []localapi.PortMapping {
	out := []localapi.PortMapping{}
	for _, m := range e.Pinholes {
		out = append(out, portMappingOf(m))
	}
	return out
}
