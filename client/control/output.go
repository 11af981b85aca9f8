package control

import (
	"fmt"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
)

// Output is what the shell has to do for a Machine: FetchGenesis, Dial, Send
// or Close.
type Output interface{ output() }

// FetchGenesis asks for the genesis record of the network, which HandleGenesis
// takes. HandleClosed says that it could not be had.
type FetchGenesis struct {
	URL     string
	Network ident.Fingerprint
}

// Dial asks for a channel to the coordinator, to be answered with
// HandleConnected or HandleClosed. It replaces an attempt under way.
type Dial struct {
	URL string
	// Coordinator is the key that the other end must prove.
	Coordinator ident.ChannelKey
	Network     ident.Fingerprint
}

// Send asks to send one frame on the channel. The shell owns the slice.
type Send struct{ Frame []byte }

// Close asks to close the channel or to give up the attempt. Nothing is to be
// reported back.
type Close struct {
	// Linger asks to wait a moment for the coordinator to close, so that the
	// last frame sent is sure to be read.
	Linger bool
}

func (FetchGenesis) output() {}
func (Dial) output()         {}
func (Send) output()         {}
func (Close) output()        {}

// Event is what a Machine tells the layer above: StateChanged, Persist, NetMap,
// TimeTold or HealthChanged.
type Event interface{ event() }

// StateChanged tells of a new state and why it came about.
type StateChanged struct {
	State State
	// Reason is a text for people, empty where the state says it all. It never
	// contains a secret.
	Reason string
}

// Persist asks to write Saved to disk before the events after it are carried
// out. Where that is impossible the shell says so by a health fact and goes on:
// what comes after may take access away.
type Persist struct{ Saved Saved }

// NetMap tells of a new verified view, which replaces the one before.
type NetMap struct{ View *View }

// TimeTold tells that a coordinator has told its time. From here on the Machine
// judges by that and by what passes: what the device's wall clock is set to later
// is to be left out of the times that it is given. It comes once.
type TimeTold struct{}

// HealthChanged tells that Snapshot has other facts than before.
type HealthChanged struct{}

func (StateChanged) event()  {}
func (Persist) event()       {}
func (NetMap) event()        {}
func (TimeTold) event()      {}
func (HealthChanged) event() {}

// Saved is what a Machine keeps across restarts. The zero value is that of a
// device that never was a member.
type Saved struct {
	// Genesis is the genesis record; empty where it is not known.
	Genesis []byte `json:"genesis,omitempty"`
	// Authority is what protects from being taken back to the past.
	Authority authority.State `json:"authority"`
	// Map is the last verified map as it goes over the wire, with its
	// signatures; empty for none. It is verified again when it is loaded.
	Map []byte `json:"map,omitempty"`
	// Time is the highest time that the coordinator gave with a map that was
	// believed; zero for none. It is past: the network's time is not before it.
	Time time.Time `json:"time,omitzero"`
	// Revoked keeps a revoked device from trying again by itself.
	Revoked bool `json:"revoked,omitempty"`
}

// Registration is a wish to become a member.
type Registration struct {
	// AuthKey is the join key without its fingerprint part. The machine
	// forgets it as soon as the coordinator has answered.
	AuthKey  string
	Hostname string
	Tags     []ident.Tag
}

// String returns the registration without its key.
func (r Registration) String() string { return fmt.Sprintf("registration of %s", r.Hostname) }

// GoString returns the registration without its key.
func (r Registration) GoString() string { return r.String() }
