package localapi

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Connectivity is what a Server tells of how packets go. Methods may be called
// concurrently; their errors are those of a Backend.
type Connectivity interface {
	// Netcheck measures this device's network anew, which takes some seconds.
	Netcheck(ctx context.Context) (NetcheckReply, error)
	// Paths says how packets reach the device that target names, and why not
	// otherwise.
	Paths(ctx context.Context, target string) (PathsReply, error)
}

// NetcheckReply is what this device's network is like. Nil stands for what is
// not known.
type NetcheckReply struct {
	// UDP says whether any STUN server answered.
	UDP bool `json:"udp"`
	// IPv4 and IPv6 are this device's addresses as seen from outside.
	IPv4 netip.AddrPort `json:"ipv4,omitzero"`
	IPv6 netip.AddrPort `json:"ipv6,omitzero"`
	// MappingVariesByDestIP says whether the NAT takes another port for each
	// destination, so that peers cannot be told one.
	MappingVariesByDestIP *bool `json:"mapping_varies_by_dest_ip"`
	// PortMapping says whether the gateway forwards the port.
	PortMapping PortMapping `json:"port_mapping"`
	// IPv6Pinholes say for each of this device's global IPv6 addresses whether its
	// gateway lets in what comes to the port; none while PortMapping is off.
	IPv6Pinholes []PortMapping `json:"ipv6_pinholes"`
	// CaptivePortal says whether something else than the coordinator answers in
	// its place.
	CaptivePortal *bool `json:"captive_portal"`
	// Servers are the STUN servers that answered.
	Servers []STUNServer `json:"servers"`
	// Relays are those that this device may use; NearestRelay is the name of the
	// one with the least round trip of those that did not fail, or of one that is connected where none was
	// measured; empty for none.
	Relays       []Relay `json:"relays"`
	NearestRelay string  `json:"nearest_relay,omitempty"`
	// Port is the UDP port for peers, Endpoints what they are told.
	Port      uint16           `json:"port"`
	Endpoints []netip.AddrPort `json:"endpoints"`
	// Hints say what is wrong and what to do, for people.
	Hints []string `json:"hints"`
}

// PortMapping is how the forwarding of this device's port by its gateway stands.
type PortMapping struct {
	// State is "off", "asking", "none" or "active".
	State string `json:"state"`
	// Protocol is "PCP", "NAT-PMP" or "UPnP" where it is active.
	Protocol string     `json:"protocol,omitempty"`
	Gateway  netip.Addr `json:"gateway,omitzero"`
	// Internal is this device's IPv6 address that it is for; left out for IPv4.
	Internal netip.Addr `json:"internal,omitzero"`
	// External is where the gateway forwards from, Until when that ends unless
	// it is renewed.
	External netip.AddrPort `json:"external,omitzero"`
	Until    time.Time      `json:"until,omitzero"`
	// Error is why there is none, or why it was not renewed; or that it was turned
	// off for all devices.
	Error string `json:"error,omitempty"`
}

// STUNServer is the answer of one server.
type STUNServer struct {
	Server netip.AddrPort `json:"server"`
	Mapped netip.AddrPort `json:"mapped"`
	RTT    time.Duration  `json:"rtt_ns"`
}

// PathsReply says how packets reach a device.
type PathsReply struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
	// Time is the moment that the answer is of.
	Time time.Time `json:"time"`
	Path Path      `json:"path"`
	// Why says why it is this path, for people; Since is when it became it, zero
	// where there never was one.
	Why   string    `json:"why"`
	Since time.Time `json:"since,omitzero"`
	// NotDirect says why there is no direct path, for people; empty where there
	// is one.
	NotDirect string `json:"not_direct,omitempty"`
	// Guessing says how far the guessing of a port by the birthday method has come,
	// for people; empty where it is not called for.
	Guessing string `json:"guessing,omitempty"`
	// Active says that packets were exchanged lately, so that paths are looked
	// for.
	Active bool `json:"active"`
	// MTU is the length in bytes of the longest packet that the path is known to
	// carry, 0 where that is not known.
	MTU           int       `json:"mtu,omitempty"`
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	// UnansweredHandshakes counts those since the last answer.
	UnansweredHandshakes int `json:"unanswered_handshakes"`
	// Candidates are the peer's addresses, in the order in which they became
	// known.
	Candidates []PathCandidate `json:"candidates"`
	Relays     []Relay         `json:"relays"`
	// BarredRelays are those of them that carry no data to this peer.
	BarredRelays []BarredRelay `json:"barred_relays,omitempty"`
	// Endpoints are this device's own addresses that the peer is told.
	Endpoints             []netip.AddrPort `json:"endpoints"`
	MappingVariesByDestIP *bool            `json:"mapping_varies_by_dest_ip"`
	PortMapping           PortMapping      `json:"port_mapping"`
	IPv6Pinholes          []PortMapping    `json:"ipv6_pinholes"`
}

// BarredRelay is a relay that is not used for a peer where there is another.
type BarredRelay struct {
	Name string `json:"name"`
	// Since is when it was last found that it answers and carries no data, Until to
	// when it is not used.
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// PathCandidate is one address of a peer.
type PathCandidate struct {
	Addr netip.AddrPort `json:"addr"`
	// Sources say who named it: "coordinator", "peer" (over the relay),
	// "observed" (an authentic probe came from there), "proved", "guessed".
	Sources []string `json:"sources"`
	// State is "primary", "works", "probing", "silent", "stale", "lost",
	// "barred" or "idle".
	State string `json:"state"`
	// Why says more about State, for people.
	Why string `json:"why"`
	// Observed is the address at which the peer says that it saw this device when it
	// answered from there; left out where it did not. It proves nothing.
	Observed netip.AddrPort `json:"observed,omitzero"`
	// RTT is the least of the last round trips, zero for none.
	RTT time.Duration `json:"rtt_ns,omitempty"`
	// MTU is the length in bytes of the longest packet of the overlay that was
	// proved to pass there, 0 for none yet.
	MTU int `json:"mtu,omitempty"`
	// Heard is when it was last heard, zero for never.
	Heard time.Time `json:"heard,omitzero"`
}

func (s *Server) netcheck(r *http.Request) (any, error) { return s.connectivity.Netcheck(r.Context()) }

func (s *Server) paths(r *http.Request) (any, error) {
	return s.connectivity.Paths(r.Context(), r.URL.Query().Get("target"))
}

// Netcheck measures the device's network anew.
func (c *Client) Netcheck(ctx context.Context) (NetcheckReply, error) {
	return call[NetcheckReply](ctx, c, http.MethodGet, "netcheck", nil)
}

// Paths says how packets reach a device.
func (c *Client) Paths(ctx context.Context, target string) (PathsReply, error) {
	return call[PathsReply](ctx, c, http.MethodGet, "paths?target="+url.QueryEscape(target), nil)
}
