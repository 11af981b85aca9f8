package admin

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/warren-overlay/warren/coordinator/netmap"
)

// Status is the answer to GET /v1/status.
type Status struct {
	Version     string `json:"version"`
	Fingerprint string `json:"fingerprint"`
	Users       int    `json:"users"`
	Devices     int    `json:"devices"`
	Online      int    `json:"online"`
	Epoch       uint64 `json:"policy_epoch"`
	// Candidate is the epoch of the candidate policy, 0 for none.
	Candidate uint64 `json:"candidate_epoch,omitempty"`
	// Off names the settings that are turned off for all devices.
	Off []string `json:"off,omitempty"`
}

// Setting is something that the administrator can turn off for all devices.
type Setting struct {
	Name string `json:"name"`
	// On is whether devices may do it, each by its own settings.
	On bool `json:"on"`
	// Off is since when they may not.
	Off time.Time `json:"off_since,omitzero"`
}

// SetSetting is the body of PUT /v1/settings/{name}.
type SetSetting struct {
	On bool `json:"on"`
}

// User is a user.
type User struct {
	ID      string    `json:"id"`
	Login   string    `json:"login"`
	Created time.Time `json:"created"`
	Devices int       `json:"devices"`
	// Suspended is since when the user is suspended.
	Suspended time.Time `json:"suspended,omitzero"`
}

// CreateUser is the body of POST /v1/users.
type CreateUser struct {
	Login string `json:"login"`
}

// Key is a join key without its secret.
type Key struct {
	ID        string    `json:"id"`
	User      string    `json:"user,omitempty"`
	Tags      []string  `json:"tags,omitempty"`
	Reusable  bool      `json:"reusable"`
	Ephemeral bool      `json:"ephemeral"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	Revoked   time.Time `json:"revoked,omitzero"`
	Uses      uint64    `json:"uses"`
	// State is "usable", "spent", "expired", "revoked", or "suspended" with its
	// user.
	State string `json:"state"`
}

// NewKey is a join key with its secret, which is shown this once.
type NewKey struct {
	Key
	// Text is what a device joins by.
	Text string `json:"key"`
}

// CreateKey is the body of POST /v1/keys. Exactly one of User and Tags is set.
type CreateKey struct {
	User      string   `json:"user,omitempty"`
	Tags      []string `json:"tags,omitempty"`
	Reusable  bool     `json:"reusable,omitempty"`
	Ephemeral bool     `json:"ephemeral,omitempty"`
	// ExpirySeconds is how long the key can be used.
	ExpirySeconds int64 `json:"expiry_seconds"`
}

// Device is a device.
type Device struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	User      string    `json:"user,omitempty"`
	Tags      []string  `json:"tags,omitempty"`
	Addresses []string  `json:"addresses"`
	Online    bool      `json:"online"`
	LastSeen  time.Time `json:"last_seen,omitzero"`
	Ephemeral bool      `json:"ephemeral"`
	// Suspended says that the device's user is suspended.
	Suspended bool      `json:"suspended,omitempty"`
	OS        string    `json:"os,omitempty"`
	OSVersion string    `json:"os_version,omitempty"`
	Version   string    `json:"version,omitempty"`
	NodeKey   string    `json:"node_key"`
	Created   time.Time `json:"created"`
	// Routes is what the device offers to route and what it may.
	Routes []Route `json:"routes,omitempty"`
}

// Route is a prefix that a device offers, or is approved for.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	// Advertised says that the device offers it now.
	Advertised bool `json:"advertised"`
	// Approved says by whom it is approved: "admin", "policy" or "" for nobody.
	Approved string `json:"approved,omitempty"`
	// Active says that the device routes it: it is in its certificate.
	Active bool `json:"active"`
}

// ChangeRoutes is the body of POST /v1/devices/{name}/approve-routes and
// remove-routes.
type ChangeRoutes struct {
	Routes []netip.Prefix `json:"routes"`
}

// SetTags is the body of POST /v1/devices/{name}/tags.
type SetTags struct {
	Tags []string `json:"tags"`
}

// RevokeDevice is the body of POST /v1/devices/{name}/revoke.
type RevokeDevice struct {
	// KeepKey leaves the join key that the device joined by as it is.
	KeepKey bool `json:"keep_key,omitempty"`
}

// RevokedDevice is the answer: the device as it was.
type RevokedDevice struct {
	Device
	// RevokedKey is the id of the join key that was revoked with it, if any.
	RevokedKey string `json:"revoked_join_key,omitempty"`
}

// DeviceDetail is a device with what it is told and what is known of it.
type DeviceDetail struct {
	Device
	MachineKey  string       `json:"machine_key"`
	JoinKey     string       `json:"join_key"`
	Endpoints   []string     `json:"endpoints,omitempty"`
	Labels      []string     `json:"labels,omitempty"`
	Peers       []string     `json:"peers,omitempty"`
	Certificate *Certificate `json:"certificate,omitempty"`
}

// Certificate is what is worth knowing of a device's certificate.
type Certificate struct {
	Serial    uint64    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// Policy is the policy in force.
type Policy struct {
	Epoch    uint64    `json:"epoch"`
	Set      time.Time `json:"set"`
	Text     string    `json:"text"`
	Warnings []Problem `json:"warnings,omitempty"`
}

// Candidate is the policy that is in audit beside the one in force, or was.
type Candidate struct {
	// Epoch counts candidates, apart from policies.
	Epoch    uint64    `json:"epoch"`
	Set      time.Time `json:"set"`
	Text     string    `json:"text"`
	Warnings []Problem `json:"warnings,omitempty"`
	// Error is why no device is told of it, for want of users or devices that it
	// names; empty where they are.
	Error string `json:"error,omitempty"`
}

// PromoteCandidate is the body of POST /v1/policy/candidate/promote.
type PromoteCandidate struct {
	// IfEpoch refuses where another candidate is in audit by now; 0 does not.
	IfEpoch uint64 `json:"if_epoch,omitempty"`
}

// SetPolicy is the body of PUT /v1/policy, PUT /v1/policy/candidate and POST
// /v1/policy/check.
type SetPolicy struct {
	Text string `json:"text"`
	// IfEpoch refuses the text where another one is there by now; 0 does
	// not.
	IfEpoch uint64 `json:"if_epoch,omitempty"`
}

// Check is the answer to POST /v1/policy/check for a policy that could be set.
type Check struct {
	Warnings []Problem `json:"warnings,omitempty"`
}

// Problem is one thing to say about a policy.
type Problem struct {
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Message string `json:"message"`
}

// String returns "line L, column C: message", or the message alone.
func (p Problem) String() string { return netmap.Problem(p).String() }

func problems(in []netmap.Problem) []Problem {
	var out []Problem
	for _, p := range in {
		out = append(out, Problem(p))
	}
	return out
}

// Code says what kind of error it was. Codes are added, never changed.
type Code string

// The codes there are.
const (
	CodeInvalid     Code = "invalid"
	CodeNotFound    Code = "not_found"
	CodeExists      Code = "exists"
	CodeConflict    Code = "conflict"
	CodeFull        Code = "full"
	CodeUnavailable Code = "unavailable"
	CodeInternal    Code = "internal"
)

// Error is why a request was refused.
type Error struct {
	Code     Code      `json:"code"`
	Message  string    `json:"message"`
	Problems []Problem `json:"problems,omitempty"`
}

// Error returns the message, and each problem on a line of its own.
func (e *Error) Error() string {
	lines := []string{e.Message}
	for _, p := range e.Problems {
		lines = append(lines, fmt.Sprint("  ", p))
	}
	return strings.Join(lines, "\n")
}
