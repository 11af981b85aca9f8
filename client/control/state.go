package control

import "fmt"

// State is where a Machine stands.
type State int

const (
	// Idle: told to be disconnected.
	Idle State = iota
	// Dialing: the shell is fetching the genesis record or opening the channel.
	Dialing
	// Handshaking: Hello was sent, Welcome has not come.
	Handshaking
	// Registering: Register was sent, Registered has not come.
	Registering
	// Streaming: a map was asked for, and maps and deltas come.
	Streaming
	// Backoff: the connection failed and will be tried again.
	Backoff
	// Revoked: the coordinator removed the device. Only a login leads on.
	Revoked
	// Expired: the coordinator was reached and did not renew the device's
	// certificate, which has ended. A login, a change of the network and, in
	// case it was a clock that was wrong, time lead on.
	Expired
	// NeedsLogin: the device is no member, or its join key was refused. Only a
	// login leads on.
	NeedsLogin
	// Suspended: the device's user is suspended, so that it knows nobody. It
	// asks now and then whether that is over.
	Suspended
)

// states are the texts of State in its order.
var states = [...]string{
	"idle", "dialing", "handshaking", "registering", "streaming", "backoff", "revoked", "expired", "needs-login",
	"suspended",
}

// String returns the state's name in lower case.
func (s State) String() string {
	if s < 0 || int(s) >= len(states) {
		return fmt.Sprintf("state(%d)", int(s))
	}
	return states[s]
}

// connected reports whether there is a channel to the coordinator in s.
func (s State) connected() bool { return s == Handshaking || s == Registering || s == Streaming }
