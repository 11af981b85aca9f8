package registry

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/coordinator/audit"
)

// User is a person who may own devices.
type User struct {
	ID ident.UserID
	// Login is lower-case and unique, such as "alice@example.com".
	Login   string
	Created time.Time
	// Suspended is since when the user's devices and join keys do not work,
	// zero where they do.
	Suspended time.Time
}

// KeyHash is the SHA-256 of a join key's secret. The secret has 256 random
// bits, so the hash needs no salt and gives nothing away.
type KeyHash [32]byte

// Key is a join key without its secret.
type Key struct {
	// ID names the key; it is part of its text and not secret.
	ID   string
	Hash KeyHash
	// User owns the devices that join by the key; zero where Tags are set.
	User ident.UserID
	// Tags are what a device that joins by the key is given, ascending.
	Tags []ident.Tag
	// Reusable keys serve any number of devices, others one.
	Reusable bool
	// Ephemeral keys make devices that are removed once they are offline for
	// EphemeralGrace.
	Ephemeral bool
	Created   time.Time
	Expires   time.Time
	// Revoked is when the key was revoked, zero where it was not.
	Revoked time.Time
	// Uses counts the registrations by the key.
	Uses uint64
}

// Usable reports why the key cannot be used at now, "" where it can.
func (k *Key) Usable(now time.Time) (reason string) {
	switch {
	case !k.Revoked.IsZero():
		return "revoked"
	case !now.Before(k.Expires):
		return "expired"
	case !k.Reusable && k.Uses > 0:
		return "spent"
	}
	return ""
}

// over reports whether the key could not be used any more by t. When a key was
// spent is not known; it counts from its creation.
func (k *Key) over(t time.Time) bool {
	return k.Expires.Before(t) || !k.Revoked.IsZero() && k.Revoked.Before(t) || !k.Reusable && k.Uses > 0 && k.Created.Before(t)
}

// Host describes a device to people. Nothing is decided by it.
type Host struct{ ProgramVersion, OS, OSVersion, Architecture string }

// Device is a member.
type Device struct {
	ID      ident.NodeID
	Machine ident.MachineKey
	NodeKey ident.NodeKey
	// Name is unique: one DNS label.
	Name string
	// Owner is zero where Tags are set, and Tags are empty where it is not.
	Owner ident.UserID
	Tags  []ident.Tag
	// IPv4 and IPv6 are the device's own addresses, unique.
	IPv4, IPv6 netip.Addr
	Ephemeral  bool
	// Advertised is what the device offers to route, Approved what an
	// administrator lets it route should it offer it. Both are in the order of
	// a certificate, without repeats.
	Advertised, Approved []netip.Prefix
	// Key is the id of the join key of the last registration.
	Key     string
	Host    Host
	Created time.Time
}

// Certificate is the newest signed certificate of a device.
type Certificate struct {
	Node                ident.NodeID
	Serial              uint64
	NotBefore, NotAfter time.Time
	Signed              []byte
}

// Revocation is what is remembered of a revoked device for ever.
type Revocation struct {
	Node    ident.NodeID
	Machine ident.MachineKey
	NodeKey ident.NodeKey
	Name    string
	Owner   ident.UserID
	Revoked time.Time
}

// FormerKey is a node key that no device has any more though its device was not
// revoked: another took its place, or the device logged out or was removed. It is
// remembered for FormerKeyLife, or until a device has it again.
type FormerKey struct {
	NodeKey ident.NodeKey
	Ended   time.Time
}

// Policy is one version of the policy's text, or of that of the candidate.
type Policy struct {
	// Epoch counts the versions, the first is 1.
	Epoch ruleset.Epoch
	Text  string
	Set   time.Time
}

// Feature names what nodes do by themselves and the administrator can turn off for
// all of them.
type Feature string

// FeaturePortMapping is asking gateways to forward ports.
const FeaturePortMapping Feature = "port-mapping"

// Features returns all features in ascending order.
func Features() []Feature { return []Feature{FeaturePortMapping} }

// Switch says whether a feature is off for all nodes.
type Switch struct {
	Feature Feature
	// Off is since when it is, zero where it is not.
	Off time.Time
}

// Counters are what is handed out and never again. Each only grows.
type Counters struct {
	User ident.UserID // the last one used
	Node ident.NodeID // the last one used
	// Serial is the last one used for a certificate.
	Serial uint64
	// Host is the offset in the network's IPv4 range of the address last
	// given; the search for the next begins after it, so that an address that
	// became free rests as long as possible (S05d).
	Host uint64
}

// Consume is the use of a join key. The store repeats the check inside the
// transaction: exactly one of two uses of a single-use key succeeds whatever
// their order.
type Consume struct {
	Key string
	Now time.Time
}

// Changes is what one command changes, to be committed in one transaction and
// then applied. Records are whole: each replaces the one with its id.
type Changes struct {
	Users       []User
	Keys        []Key // new or revoked; Uses is changed by Consume alone
	Consume     *Consume
	RemovedKeys []string
	Devices     []Device
	Removed     []ident.NodeID
	Revocations []Revocation
	// FormerKeys are new ones, ForgottenKeys those that are not remembered any more:
	// old ones, and those that are a device's again.
	FormerKeys    []FormerKey
	ForgottenKeys []ident.NodeKey
	Certificates  []Certificate
	Policy        *Policy
	// Candidate is the document in audit beside the policy. Its epochs are its
	// own; an empty Text says that there is none any more.
	Candidate *Policy
	Switches  []Switch
	Counters  Counters
	// Audit tells of the changes; nil only where nothing changes.
	Audit *audit.Entry
}

// Empty reports whether nothing changes.
func (c *Changes) Empty() bool { return c.Audit == nil }
