package engine

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/netstack/nat"
)

// PathKind says how packets reach a peer.
type PathKind string

// The kinds of paths, as users see them.
const (
	// PathNone: there is no way to the peer now, or none was needed yet.
	PathNone PathKind = "none"
	// PathRelay: over the relay.
	PathRelay PathKind = "relay"
	// PathDirect: straight to an address.
	PathDirect PathKind = "direct"
)

// Path is how packets reach a peer.
type Path struct {
	Kind PathKind `json:"kind"`
	// Addr is the peer's address of a direct path.
	Addr netip.AddrPort `json:"addr,omitzero"`
	// Relay is the relay's name of a path over one.
	Relay string `json:"relay,omitempty"`
	// Region is where that relay stands, empty where nobody said.
	Region string `json:"region,omitempty"`
}

// String returns the path as `warren status` shows it: "direct ip:port",
// "relay name (region)" or "none".
func (p Path) String() string {
	switch p.Kind {
	case PathDirect:
		return "direct " + p.Addr.String()
	case PathRelay:
		if p.Region != "" {
			return "relay " + p.Relay + " (" + p.Region + ")"
		}
		return "relay " + p.Relay
	case PathNone:
	}
	return string(PathNone)
}

// PeerStatus is what the engine knows of one peer.
type PeerStatus struct {
	Node      ident.NodeID  `json:"node"`
	Key       ident.NodeKey `json:"key"`
	Name      string        `json:"name"`
	Addresses []netip.Addr  `json:"addresses"`
	Path      Path          `json:"path"`
	// Active says that packets were exchanged lately, so that paths are kept.
	Active bool `json:"active"`
	// Flapping says that the path has changed too often in the last minute.
	Flapping bool `json:"flapping,omitempty"`
	// Strayed says that too many packets of the tunnel came in the last minute from
	// where the peer does not prove to be, and StrayedFrom from where the last one did,
	// where that is one of a few addresses.
	Strayed     bool           `json:"strayed,omitempty"`
	StrayedFrom netip.AddrPort `json:"strayed_from,omitzero"`
	// LastHandshake is zero where there was none.
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	// MTU is the length of the longest packet that the path is known to carry,
	// 0 where that can not be known on this system.
	MTU int `json:"mtu"`
	// RxBytes and TxBytes count what WireGuard received and sent.
	RxBytes uint64 `json:"rx_bytes"`
	TxBytes uint64 `json:"tx_bytes"`
	// Flows is how many flows the filter knows.
	Flows int `json:"flows"`
	// NotAfter is when the peer's certificate ends, and the peer with it.
	NotAfter time.Time `json:"not_after"`
}

// RelayStatus is the state of one relay.
type RelayStatus struct {
	Name string `json:"name"`
	// Region is where the relay stands, empty where nobody said.
	Region string `json:"region,omitempty"`
	URL    string `json:"url"`
	// Home says that this device listens there.
	Home bool `json:"home,omitempty"`
	// Connected says that the relay admitted this device.
	Connected bool `json:"connected"`
	// Failed says that the last attempt to connect failed, or the connection ended, and
	// the relay admitted this device at none since: Error says why. A relay that is not
	// connected to since nobody needs it has not failed.
	Failed bool `json:"failed,omitempty"`
	// Datagrams says that packets go there over UDP, not inside HTTP.
	Datagrams bool `json:"datagrams,omitempty"`
	// RTT is the least of the recent round trips, zero where none is known.
	RTT time.Duration `json:"rtt,omitempty"`
	// RTTAge is how long ago the last of them was measured.
	RTTAge time.Duration `json:"rtt_age,omitempty"`
	// Queued is how many bytes wait to be sent there, for all peers together: for
	// the line, or for a connection.
	Queued int `json:"queued,omitempty"`
	// Error is why there is no connection, empty where there is one.
	Error string `json:"error,omitempty"`
	// Barred is for how many peers the relay is not used where there is another, since
	// it carried questions to them and dropped their tunnel's packets.
	Barred int `json:"barred,omitempty"`
}

// Status is the state of the engine at one moment. It shares nothing with the
// engine.
type Status struct {
	// Running is false before Run and after it; everything else is zero then.
	Running bool `json:"running"`
	// Configured says that there is a network: the last Apply was given one.
	Configured bool `json:"configured"`
	// Device is the name of the TUN device's interface.
	Device string `json:"device"`
	// Port is the UDP port, 0 while there is none.
	Port uint16 `json:"port"`
	// Endpoints are the addresses at which this device may be reached: those
	// of its interfaces, then public ones.
	Endpoints []netip.AddrPort `json:"endpoints"`
	// NAT is what STUN servers said.
	NAT nat.Report `json:"nat"`
	// Mapping is how port mapping stands.
	Mapping nat.Mapping `json:"-"`
	// Pinholes are the same for each of this device's global IPv6 addresses; none
	// while port mapping is off.
	Pinholes []nat.Mapping `json:"-"`
	// Epoch is that of the rules in force, 0 where everything is denied.
	Epoch ruleset.Epoch `json:"epoch"`
	// Relay is the home, nil where there is none.
	Relay *RelayStatus `json:"relay,omitempty"`
	// Relays are all that are configured, in their order.
	Relays []RelayStatus `json:"relays,omitempty"`
	// Peers are in order of their names.
	Peers []PeerStatus `json:"peers"`
	// Drops counts dropped packets by reason: those of the filter by its names
	// (such as "drop_no_rule"), and those that never reached it (such as
	// "no_peer" and "no_path").
	Drops map[string]uint64 `json:"drops"`
}

// PingReply is the answer to Engine.Ping.
type PingReply struct {
	// Peer is the name of the device that owns the address.
	Peer string
	// RTT is the time from the request to the reply, a handshake included
	// where one was needed.
	RTT time.Duration
	// Path is how packets went when the request was sent; where there was no path
	// then, the first one that came up, since the request waited for it. The way back
	// is the peer's choice and is not known.
	Path Path
	// Others are paths that the request may have gone by as well, in order, four at
	// most: the relay where a copy of each packet went over it, since the direct path
	// was in doubt, and those that came up before the reply, as a request that waits
	// for a handshake goes by the newest. Nil where there was one path all the time.
	Others []Path
}
