package localapi

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/client/health"
)

// State is where a node stands, as its user sees it.
type State string

const (
	// Stopped: the user wants to be disconnected.
	Stopped State = "stopped"
	// NeedsLogin: the device is no member of a network.
	NeedsLogin State = "needs-login"
	// Connecting: the coordinator was not reached since the start, and there
	// is no saved map.
	Connecting State = "connecting"
	// Connected: the coordinator answers and the map is current.
	Connected State = "connected"
	// Offline: the coordinator does not answer; the node works with what it
	// knows.
	Offline State = "offline"
	// Revoked: an administrator removed the device.
	Revoked State = "revoked"
	// Expired: the device's certificate ended and was not renewed.
	Expired State = "expired"
	// Suspended: an administrator suspended the device's user.
	Suspended State = "suspended"
)

// Status is all that there is to know of a node.
type Status struct {
	// Generation grows with every change, for StatusAfter.
	Generation uint64 `json:"generation"`
	Version    string `json:"version"`
	State      State  `json:"state"`
	// Reason says more about State, for people.
	Reason      string `json:"reason,omitempty"`
	WantRunning bool   `json:"want_running"`
	LoginServer string `json:"login_server,omitempty"`
	// Network is the fingerprint of the network.
	Network string `json:"network,omitempty"`
	// Retry is when the coordinator is tried next.
	Retry time.Time `json:"retry,omitzero"`
	// Cached says that the map is from disk.
	Cached bool `json:"cached"`
	// Sequence is that of the map, PolicyEpoch that of the rules in force.
	Sequence    uint64 `json:"sequence"`
	PolicyEpoch uint64 `json:"policy_epoch"`
	// Device is the network interface, "userspace" for none.
	Device    string           `json:"device"`
	Port      uint16           `json:"port"`
	Endpoints []netip.AddrPort `json:"endpoints"`
	// Relay is the home: the relay at which this device listens. Relays are all.
	Relay  *Relay            `json:"relay,omitempty"`
	Relays []Relay           `json:"relays,omitempty"`
	Drops  map[string]uint64 `json:"drops,omitempty"`
	// Denied are the latest connections that this device tried to open and
	// that its rules refuse, the newest first: five at most, of the last ten
	// minutes.
	Denied []Flow `json:"denied,omitempty"`
	// Self is nil where the device is no member.
	Self   *Node         `json:"self,omitempty"`
	Peers  []Node        `json:"peers"`
	Health []health.Fact `json:"health"`
}

// Relay is the state of one relay.
type Relay struct {
	Name string `json:"name"`
	// Region is where it stands, empty where nobody said.
	Region string `json:"region,omitempty"`
	URL    string `json:"url"`
	// Home says that this device listens there.
	Home bool `json:"home,omitempty"`
	// Connected says that it has admitted this device. A device is connected to
	// its home, and to others while it needs them.
	Connected bool `json:"connected"`
	// Failed says that the last attempt to connect failed, or the connection ended, and
	// the relay admitted this device at none since: Error says why.
	Failed bool `json:"failed,omitempty"`
	// Datagrams says that packets go there over UDP, not inside HTTP.
	Datagrams bool `json:"datagrams,omitempty"`
	// RTT is the least of the recent round trips, zero where none is known.
	RTT time.Duration `json:"rtt_ns,omitempty"`
	// RTTAge is how long before the answer the last of them was measured.
	RTTAge time.Duration `json:"rtt_age_ns,omitempty"`
	// Error is why there is no connection.
	Error string `json:"error,omitempty"`
	// Barred is for how many peers it is not used where there is another, since it
	// answered and carried no data to them.
	Barred int `json:"barred,omitempty"`
}

// Path is how packets reach a peer.
type Path struct {
	// Kind is "direct", "relay" or "none".
	Kind string `json:"kind"`
	// Addr is the peer's address of a direct path.
	Addr netip.AddrPort `json:"addr,omitzero"`
	// Relay is the relay's name of a path over one.
	Relay string `json:"relay,omitempty"`
	// Region is where that relay stands, empty where nobody said.
	Region string `json:"region,omitempty"`
}

// Node is a device of the network.
type Node struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// User is the login of the owner; empty for a tagged device.
	User      string         `json:"user,omitempty"`
	Tagged    bool           `json:"tagged"`
	Addresses []netip.Addr   `json:"addresses"`
	Routes    []netip.Prefix `json:"routes,omitempty"`
	NodeKey   string         `json:"node_key"`
	// OS and Online are what the coordinator says of the device.
	OS      string    `json:"os,omitempty"`
	Online  bool      `json:"online"`
	Expires time.Time `json:"expires"`
	// The rest is what this node sees of a peer.
	Active        bool      `json:"active"`
	Path          Path      `json:"path"`
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	// MTU is the length in bytes of the longest packet that the path is known to
	// carry, 0 where that is not known.
	MTU     int    `json:"mtu,omitempty"`
	TxBytes uint64 `json:"tx_bytes"`
	RxBytes uint64 `json:"rx_bytes"`
}

// UpRequest asks to connect. Nil pointers and empty texts stand for what was
// not mentioned.
type UpRequest struct {
	LoginServer string `json:"login_server,omitempty"`
	// AuthKey is the whole join key. It is not kept.
	AuthKey   string  `json:"auth_key,omitempty"`
	Hostname  *string `json:"hostname,omitempty"`
	ShieldsUp *bool   `json:"shields_up,omitempty"`
	Routing
	Reach
	// Reset puts settings that were not mentioned back to their defaults.
	Reset bool `json:"reset,omitempty"`
}

// Routing are settings about what is routed; nil stands for what was not
// mentioned.
type Routing struct {
	// AdvertiseRoutes are the subnets to offer, AdvertiseExitNode offers
	// everything.
	AdvertiseRoutes   *[]netip.Prefix `json:"advertise_routes,omitempty"`
	AdvertiseExitNode *bool           `json:"advertise_exit_node,omitempty"`
	// AcceptRoutes uses the subnets that other devices route.
	AcceptRoutes *bool `json:"accept_routes,omitempty"`
	// ExitNode is a device's name, id or address; empty for none.
	ExitNode *string `json:"exit_node,omitempty"`
	// ExitNodeAllowLAN leaves the local networks out.
	ExitNodeAllowLAN *bool `json:"exit_node_allow_lan,omitempty"`
}

// Reach are settings about how peers reach this device; nil stands for what was
// not mentioned.
type Reach struct {
	// PortMapping has the gateway asked to forward the UDP port (PCP, NAT-PMP,
	// UPnP).
	PortMapping *bool `json:"port_mapping,omitempty"`
	// Endpoints are addresses outside that lead to this device's UDP port, such
	// as that of a port that a router forwards.
	Endpoints *[]netip.AddrPort `json:"endpoints,omitempty"`
}

// String returns the request without its key.
func (r UpRequest) String() string { return "up to " + r.LoginServer }

// GoString returns the request without its key.
func (r UpRequest) GoString() string { return r.String() }

// LogoutReply says how far a logout came.
type LogoutReply struct {
	// Told reports whether the coordinator knows. Otherwise the device stays in
	// its list until an administrator revokes it.
	Told bool `json:"told"`
	// Name is what the device was called.
	Name string `json:"name,omitempty"`
}

// PingRequest asks for one ping inside the tunnel.
type PingRequest struct {
	// Target is a name or an overlay address.
	Target string `json:"target"`
	// Timeout bounds the wait; zero stands for five seconds.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
}

// PingReply is the answer to a ping.
type PingReply struct {
	Name string        `json:"name"`
	Addr netip.Addr    `json:"addr"`
	RTT  time.Duration `json:"rtt_ns"`
	// Path is what the request was sent by. The way of the answer is the peer's
	// choice and is not known.
	Path Path `json:"path"`
	// Others are paths that it may have gone by as well, in order, four at most: where
	// the path was in doubt, or changed before the answer came. Left out where there
	// was one path all the time.
	Others []Path `json:"others,omitempty"`
}

// WhoIsReply says who has an address.
type WhoIsReply struct {
	Node Node `json:"node"`
	// Self says that it is this device.
	Self bool `json:"self"`
}

// Preferences are what the user asked for.
type Preferences struct {
	LoginServer string `json:"login_server,omitempty"`
	Network     string `json:"network,omitempty"`
	Hostname    string `json:"hostname,omitempty"`
	ShieldsUp   bool   `json:"shields_up"`
	WantRunning bool   `json:"want_running"`
	// AdvertiseRoutes and what follows are as in Routing.
	AdvertiseRoutes   []netip.Prefix `json:"advertise_routes"`
	AdvertiseExitNode bool           `json:"advertise_exit_node"`
	AcceptRoutes      bool           `json:"accept_routes"`
	ExitNode          string         `json:"exit_node,omitempty"`
	ExitNodeAllowLAN  bool           `json:"exit_node_allow_lan"`
	// PortMapping and Endpoints are as in Reach.
	PortMapping bool             `json:"port_mapping"`
	Endpoints   []netip.AddrPort `json:"endpoints"`
}

// PreferencesChange changes preferences; nil leaves one as it is.
type PreferencesChange struct {
	ShieldsUp *bool `json:"shields_up,omitempty"`
	Routing
	Reach
}

// Code is the closed set of the API's errors. Codes are never renamed.
type Code string

const (
	// CodeBadRequest: the request makes no sense.
	CodeBadRequest Code = "bad-request"
	// CodeForbidden: the caller may only read.
	CodeForbidden Code = "forbidden"
	// CodeNotFound: no such path, peer or address.
	CodeNotFound Code = "not-found"
	// CodeNotConnected: the node is stopped or no member.
	CodeNotConnected Code = "not-connected"
	// CodeNeedsLogin: a join key is needed.
	CodeNeedsLogin Code = "needs-login"
	// CodeConflict: the request would undo something that it does not mention.
	CodeConflict Code = "conflict"
	// CodeDenied: a rule does not allow it.
	CodeDenied Code = "denied"
	// CodeNoAnswer: the peer did not answer in time.
	CodeNoAnswer Code = "no-answer"
	// CodeInternal: the daemon could not do it; its log says more.
	CodeInternal Code = "internal"
)

// Error is an error of the API.
type Error struct {
	Code Code `json:"code"`
	// Message says what is wrong and what to do, for people.
	Message string `json:"message"`
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Errorf returns an Error with a formatted message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
