package registry

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Command is something to change: one of the structs of this file.
type Command interface{ command() }

// CreateUser adds a user.
type CreateUser struct{ Login string }

// SuspendUser stops all that the user has from working until ResumeUser: the
// devices are members that nobody is told of, and the join keys are refused.
// Who is suspended already stays so.
type SuspendUser struct{ Login string }

// ResumeUser undoes SuspendUser. Who is not suspended stays so.
type ResumeUser struct{ Login string }

// CreateKey adds a join key, for a user's devices or for tagged ones.
type CreateKey struct {
	ID   string
	Hash KeyHash
	// Login and Tags: exactly one of them is set.
	Login               string
	Tags                []ident.Tag
	Reusable, Ephemeral bool
	// Expires must lie after now, and within MaxKeyLifetime.
	Expires time.Time
}

// RevokeKey makes a join key useless. Devices that joined by it stay.
type RevokeKey struct{ ID string }

// RegisterDevice makes the holder of a machine key a member, or gives the
// member that it already is the identity of another join key.
type RegisterDevice struct {
	// Machine is the key that the channel proved.
	Machine ident.MachineKey
	NodeKey ident.NodeKey
	// Key and Secret are the presented join key: its id and the hash of its
	// secret. A Key of "" stands for text that is no join key at all.
	Key    string
	Secret KeyHash
	// Hostname is what the device calls itself; its name is made from it.
	Hostname string
	Host     Host
	// Tags are asked for: the join key carries each of them, or they are among
	// Granted.
	Tags []ident.Tag
	// Granted are the tags that the policy lets the join key's user give.
	Granted []ident.Tag
}

// RotateNodeKey gives a device another node key. The same key changes nothing.
type RotateNodeKey struct {
	Node    ident.NodeID
	NodeKey ident.NodeKey
}

// SetTags gives a device exactly these tags, at least one. A device of a user's
// is nobody's from then on; approvals of routes were for what it was before and
// end.
type SetTags struct {
	Node ident.NodeID
	Tags []ident.Tag
}

// RevokeDevice ends a membership for good: neither the machine key nor the node
// key is ever admitted again. The join key of the last registration is revoked
// with it where it could still be used, or who holds the device would be back
// at once with new keys of its own.
type RevokeDevice struct {
	Node ident.NodeID
	// KeepKey leaves the join key as it is: other devices are yet to join by
	// it, and this one does not know it.
	KeepKey bool
}

// Logout ends a membership at the device's own wish; it may join again with a
// join key, as a new device.
type Logout struct{ Node ident.NodeID }

// RemoveExpired removes the ephemeral devices that were offline for
// EphemeralGrace, 32 of them at most: repeat it until it removes none.
// OfflineSince says since when a device is not connected.
type RemoveExpired struct{ OfflineSince map[ident.NodeID]time.Time }

// PruneKeys forgets join keys that cannot be used any more and that no device
// joined by, 32 of them at most, some time after they ended.
type PruneKeys struct{}

// AdvertiseRoutes says all that a device offers to route.
type AdvertiseRoutes struct {
	Node   ident.NodeID
	Routes []netip.Prefix
}

// ApproveRoutes lets a device route the prefixes as soon as it offers them. A
// default route stands for those of both families.
type ApproveRoutes struct {
	Node   ident.NodeID
	Routes []netip.Prefix
}

// RemoveRoutes takes approvals back. What the policy's autoApprovers approve
// stays approved.
type RemoveRoutes struct {
	Node   ident.NodeID
	Routes []netip.Prefix
}

// SetPolicy replaces the policy's text. Whether the text means anything is
// checked by who sends the command; here only its form is.
type SetPolicy struct {
	Text string
	// If is the epoch that the text replaces; another one is ErrConflict.
	// Zero replaces whatever there is.
	If ruleset.Epoch
}

// SetCandidate puts a document into audit beside the policy, in place of the one
// that is there. As with SetPolicy, only the text's form is checked here.
type SetCandidate struct {
	Text string
	// If is the candidate's epoch that the text replaces; another one is
	// ErrConflict. Zero replaces whatever there is.
	If ruleset.Epoch
}

// ClearCandidate ends the audit of the candidate. Without one it changes
// nothing.
type ClearCandidate struct{}

// PromoteCandidate makes the candidate the policy, and ends its audit.
type PromoteCandidate struct {
	// If is the candidate's epoch; another one is ErrConflict. Zero promotes
	// whatever there is.
	If ruleset.Epoch
}

// SetFeature turns a feature off for all nodes, or leaves it to each of them
// again. One that is so already stays so.
type SetFeature struct {
	Feature Feature
	Off     bool
}

// RenewCertificates records newly signed certificates before anyone is told of
// them. Their serials follow the last one used, without gaps.
type RenewCertificates struct{ Certificates []Certificate }

func (CreateUser) command()        {}
func (SuspendUser) command()       {}
func (ResumeUser) command()        {}
func (CreateKey) command()         {}
func (RevokeKey) command()         {}
func (RegisterDevice) command()    {}
func (RotateNodeKey) command()     {}
func (SetTags) command()           {}
func (RevokeDevice) command()      {}
func (Logout) command()            {}
func (RemoveExpired) command()     {}
func (PruneKeys) command()         {}
func (AdvertiseRoutes) command()   {}
func (ApproveRoutes) command()     {}
func (RemoveRoutes) command()      {}
func (SetPolicy) command()         {}
func (SetCandidate) command()      {}
func (ClearCandidate) command()    {}
func (PromoteCandidate) command()  {}
func (SetFeature) command()        {}
func (RenewCertificates) command() {}

// Result is what a command made, as far as its kind says so.
type Result struct {
	User   *User   // CreateUser, SuspendUser, ResumeUser
	Key    *Key    // CreateKey, RevokeKey, and RevokeDevice where it revoked one
	Device *Device // RegisterDevice, RotateNodeKey, SetTags, AdvertiseRoutes, ApproveRoutes, RemoveRoutes
	Policy *Policy // SetPolicy, PromoteCandidate
	Switch *Switch // SetFeature
	// Candidate is that of SetCandidate, and of ClearCandidate the one that was;
	// nil for none.
	Candidate *Policy
	// Revoked are the node keys that are no longer members': of devices
	// revoked, logged out, removed or suspended, and those that were rotated
	// away.
	Revoked []ident.NodeKey
}
