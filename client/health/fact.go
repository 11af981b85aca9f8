package health

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Code names a kind of fact. Codes are stable: they are never renamed or used
// again for something else.
type Code string

const (
	// LoginNeeded: the device is no member and waits for a join key.
	LoginNeeded Code = "login-needed"
	// Revoked: the coordinator removed the device from the network.
	Revoked Code = "device-revoked"
	// CertificateExpired: the device's own certificate no longer holds, so
	// that no peer accepts it.
	CertificateExpired Code = "certificate-expired"
	// CertificateExpiring: the device's certificate ends soon and was not
	// renewed.
	CertificateExpiring Code = "certificate-expiring"
	// CoordinatorUnreachable: there is no connection to the coordinator.
	CoordinatorUnreachable Code = "coordinator-unreachable"
	// CoordinatorIdentity: what answers at the coordinator's address is not
	// this network's coordinator.
	CoordinatorIdentity Code = "coordinator-identity"
	// CoordinatorProtocol: the coordinator sent what this version cannot
	// accept.
	CoordinatorProtocol Code = "coordinator-protocol"
	// ConnectedTwice: another device uses this device's keys.
	ConnectedTwice Code = "device-connected-twice"
	// ClockSkew: the clocks of the device and of the coordinator differ.
	ClockSkew Code = "clock-skew"
	// PeerRefused: a peer that the coordinator named could not be verified and
	// was left out.
	PeerRefused Code = "peer-refused"
	// RulesRefused: rules that could not be verified were left out; those
	// before stay, or all is denied.
	RulesRefused Code = "rules-refused"
	// PolicyRollback: the coordinator sent rules older than some already seen.
	PolicyRollback Code = "policy-rollback"
	// SelfRefused: the certificate sent for this device could not be verified.
	SelfRefused Code = "self-certificate-refused"
	// CacheUnusable: the map on disk could not be used.
	CacheUnusable Code = "map-cache-unusable"
	// MemoryLost: the state directory no longer says which policies and
	// certificates were seen before.
	MemoryLost Code = "rollback-protection-lost"
	// StateNotSaved: the state directory could not be written.
	StateNotSaved Code = "state-not-saved"
	// DataPlane: the network configuration could not be carried out.
	DataPlane Code = "data-plane"
	// SettingIgnored: a setting that the coordinator sent makes no sense.
	SettingIgnored Code = "setting-ignored"
	// RouteNotApproved: a route that this device offers has no approval yet.
	RouteNotApproved Code = "route-not-approved"
	// RouteIgnored: a route that another device offers is not used.
	RouteIgnored Code = "route-ignored"
	// ExitNodeUnavailable: the chosen exit node cannot be used, so nothing
	// leaves through it, nor around it.
	ExitNodeUnavailable Code = "exit-node-unavailable"
	// ListenerUnavailable: an address to listen on is taken.
	ListenerUnavailable Code = "listener-unavailable"
	// UserSuspended: an administrator suspended the device's user.
	UserSuspended Code = "user-suspended"
	// CandidateRefused: a candidate policy could not be verified and is not
	// reported about.
	CandidateRefused Code = "candidate-refused"
	// PathFlapping: the path to a peer changes more often than networks make it.
	PathFlapping Code = "path-flapping"
	// RelayDropsData: a relay answers, and no data of a tunnel came over it.
	RelayDropsData Code = "relay-drops-data"
	// PacketsFromElsewhere: packets of the tunnel with a peer come from where the peer
	// does not prove to be.
	PacketsFromElsewhere Code = "packets-from-elsewhere"
)

// Severity says how bad a fact is. The order is from harmless to bad.
type Severity int

const (
	// Info is worth knowing; nothing is wrong.
	Info Severity = iota
	// Warning means that something works less well, or soon will not work.
	Warning
	// Error means that something does not work.
	Error
	// Alarm means that somebody may be attacking.
	Alarm
)

// severities are the texts of Severity in its order.
var severities = [...]string{"info", "warning", "error", "alarm"}

// String returns the severity's name in lower case.
func (s Severity) String() string {
	if s < 0 || int(s) >= len(severities) {
		return fmt.Sprintf("severity(%d)", int(s))
	}
	return severities[s]
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. An unknown name is an
// error.
func (s *Severity) UnmarshalText(b []byte) error {
	i := slices.Index(severities[:], string(b))
	if i < 0 {
		return fmt.Errorf("health: unknown severity %q", b)
	}
	*s = Severity(i)
	return nil
}

// Fact is one thing that is wrong.
type Fact struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	// Subject tells facts of one code apart, such as the name of a peer; empty
	// where there can be only one.
	Subject string `json:"subject,omitempty"`
	// Text says what is wrong and what to do, for people.
	Text string `json:"text"`
	// Since is when the fact began to hold.
	Since time.Time `json:"since"`
}

// MaxPerCode bounds the facts of one code in a Set, so that a coordinator that
// names a million false peers cannot fill a node's memory. Further ones are
// counted in Set.Dropped.
const MaxPerCode = 64

// Set is the facts that hold at present. The zero value is empty and ready.
type Set struct {
	facts []Fact // by severity downwards, then code, then subject
	// Dropped counts facts that were left out because of MaxPerCode.
	Dropped uint64
}

// Put adds f, or replaces the fact of the same code and subject, whose Since is
// kept. It reports whether that changed anything that a reader could see.
func (s *Set) Put(f Fact) bool {
	n := 0
	for i, have := range s.facts {
		if have.Code != f.Code {
			continue
		}
		n++
		if have.Subject != f.Subject {
			continue
		}
		f.Since = have.Since
		if have == f {
			return false
		}
		s.facts = slices.Delete(s.facts, i, i+1)
		s.insert(f)
		return true
	}
	if n >= MaxPerCode {
		s.Dropped++
		return false
	}
	s.insert(f)
	return true
}

func (s *Set) insert(f Fact) {
	i, _ := slices.BinarySearchFunc(s.facts, f, compare)
	s.facts = slices.Insert(s.facts, i, f)
}

func compare(a, b Fact) int {
	if a.Severity != b.Severity {
		return int(b.Severity) - int(a.Severity)
	}
	if c := strings.Compare(string(a.Code), string(b.Code)); c != 0 {
		return c
	}
	return strings.Compare(a.Subject, b.Subject)
}

// Clear removes the fact of the given code and subject and reports whether
// there was one.
func (s *Set) Clear(code Code, subject string) bool {
	return s.remove(func(f Fact) bool { return f.Code == code && f.Subject == subject })
}

// ClearCode removes all facts of the given code and reports whether there was
// one.
func (s *Set) ClearCode(code Code) bool {
	return s.remove(func(f Fact) bool { return f.Code == code })
}

func (s *Set) remove(gone func(Fact) bool) bool {
	before := len(s.facts)
	s.facts = slices.DeleteFunc(s.facts, gone)
	return len(s.facts) != before
}

// Replace makes the facts of the given code exactly those of facts, all of
// which must have that code, and reports whether that changed anything that a
// reader could see. Facts that stay keep their Since.
func (s *Set) Replace(code Code, facts []Fact) bool {
	changed := s.remove(func(have Fact) bool {
		return have.Code == code && !slices.ContainsFunc(facts, func(f Fact) bool { return f.Subject == have.Subject })
	})
	for _, f := range facts {
		if s.Put(f) {
			changed = true
		}
	}
	return changed
}

// Has reports whether a fact of the given code holds.
func (s *Set) Has(code Code) bool {
	return slices.ContainsFunc(s.facts, func(f Fact) bool { return f.Code == code })
}

// Facts returns a copy of the facts, the worst first, then by code and subject.
func (s *Set) Facts() []Fact { return slices.Clone(s.facts) }

// Merge returns the facts of several lists in the order of Set.Facts. It is
// never nil.
func Merge(lists ...[]Fact) []Fact {
	all := append([]Fact{}, slices.Concat(lists...)...)
	slices.SortStableFunc(all, compare)
	return all
}
