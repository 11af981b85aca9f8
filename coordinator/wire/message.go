package wire

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// ClientMessage is a message that a node sends: Hello, Register, MapRequest,
// Update, Pong or Logout.
type ClientMessage interface{ clientMessage() }

// ServerMessage is a message that a coordinator sends: Welcome, Registered,
// *Map, *Delta, Ping or *Error.
type ServerMessage interface{ serverMessage() }

// HostInfo describes a node to people. Nothing is decided by it.
type HostInfo struct {
	ProgramVersion, OS, OSVersion, Architecture string
}

// Hello is a node's first message.
type Hello struct {
	Version Version
	Host    HostInfo
}

// Register asks for membership for the channel's machine key.
type Register struct {
	// AuthKey is the join key without its fingerprint part.
	AuthKey  string
	NodeKey  ident.NodeKey
	Hostname string
	// Tags are asked for beyond those of the key.
	Tags []ident.Tag
	// Proof is of NodeKey.
	Proof Proof
}

// MapRequest begins the stream of maps. HaveSequence and HaveHash say what the
// node still holds; zero for nothing.
type MapRequest struct {
	NodeKey      ident.NodeKey
	Endpoints    []netip.AddrPort
	HaveSequence uint64
	HaveHash     Hash
	// Routes is all that the node offers to route.
	Routes []netip.Prefix
	// Proof is of NodeKey. It is looked at where that is another key than
	// before.
	Proof Proof
	// HomeRelay is the name of the relay at which the node listens, empty where
	// there is none.
	HomeRelay string
}

// Update tells that the node's endpoints, what it offers to route, and where it
// listens are now these. It is whole.
type Update struct {
	Endpoints []netip.AddrPort
	Routes    []netip.Prefix
	// HomeRelay is as in MapRequest.
	HomeRelay string
}

// Pong answers Ping with its number.
type Pong struct{ Number uint64 }

// Logout ends the membership of the channel's machine key.
type Logout struct{}

// Welcome answers Hello.
type Welcome struct {
	Version Version
	// Time is the coordinator's clock.
	Time       time.Time
	Registered bool
}

// Registered answers Register, after the registration is on disk.
type Registered struct {
	Node ident.NodeID
	Name string
}

// Ping keeps a connection alive and finds dead ones.
type Ping struct{ Number uint64 }

// Code is the closed set of errors between node and coordinator. The numbers
// are those of the protocol buffer and never change.
type Code uint32

const (
	// CodeUnspecified is no code: what an unknown one is read as.
	CodeUnspecified Code = 0
	// CodeMalformed means a message that is not of the protocol or came at the
	// wrong time.
	CodeMalformed Code = 1
	// CodeVersion means that there is no common protocol version.
	CodeVersion Code = 2
	// CodeAuthKey means a join key that is unknown, spent, expired or revoked.
	CodeAuthKey Code = 3
	// CodeRevoked means that the device was revoked and must not come back by
	// itself.
	CodeRevoked Code = 4
	// CodeNotRegistered means that the machine key is not registered.
	CodeNotRegistered Code = 5
	// CodeDenied means something asked for that is not allowed, such as a tag.
	CodeDenied Code = 6
	// CodeKeyInUse means that the node key belongs to another device.
	CodeKeyInUse Code = 7
	// CodeUnavailable means that the coordinator cannot serve at present.
	CodeUnavailable Code = 8
	// CodeReplaced means that the same device connected again.
	CodeReplaced Code = 9
	// CodeSuspended means that the device's user is suspended: it has no
	// network until somebody resumes the user, and then comes back by itself.
	CodeSuspended Code = 10
)

// Error tells why something was refused or why the connection is closed. It is
// an error value.
type Error struct {
	Code    Code
	Message string
	// RetryAfter is when to come back at the earliest, to the millisecond;
	// zero for whenever the node wants.
	RetryAfter time.Duration
}

// Error returns the message, or the code where there is none.
func (e *Error) Error() string {
	if e.Message != "" {
		return e.Message
	}
	return fmt.Sprintf("the coordinator refused with code %d", e.Code)
}

func (Hello) clientMessage()      {}
func (Register) clientMessage()   {}
func (MapRequest) clientMessage() {}
func (Update) clientMessage()     {}
func (Pong) clientMessage()       {}
func (Logout) clientMessage()     {}

func (Welcome) serverMessage()    {}
func (Registered) serverMessage() {}
func (*Map) serverMessage()       {}
func (*Delta) serverMessage()     {}
func (Ping) serverMessage()       {}
func (*Error) serverMessage()     {}
