package statefile

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
)

// Keys are the device's private keys.
type Keys struct {
	// Machine is the device's identity towards the coordinator.
	Machine ident.MachinePrivate
	// Node is the device's WireGuard key.
	Node ident.NodePrivate
}

// NewKeys makes keys from rand, whose error it returns.
func NewKeys(rand io.Reader) (Keys, error) {
	var k Keys
	var err error
	if k.Machine, err = ident.NewMachinePrivate(rand); err != nil {
		return Keys{}, err
	}
	if k.Node, err = ident.NewNodePrivate(rand); err != nil {
		return Keys{}, err
	}
	return k, nil
}

// Preferences are what the user asked for.
type Preferences struct {
	LoginServer string            `json:"login_server,omitempty"`
	Network     ident.Fingerprint `json:"network,omitzero"`
	Hostname    string            `json:"hostname,omitempty"`
	ShieldsUp   bool              `json:"shields_up,omitempty"`
	// AdvertiseRoutes are the subnets that the node offers to route, in
	// ascending order; AdvertiseExitNode offers everything.
	AdvertiseRoutes   []netip.Prefix `json:"advertise_routes,omitempty"`
	AdvertiseExitNode bool           `json:"advertise_exit_node,omitempty"`
	// AcceptRoutes uses the subnets that other devices route.
	AcceptRoutes bool `json:"accept_routes,omitempty"`
	// ExitNode is what the user called the device through which everything
	// goes that goes nowhere else, empty for none. ExitNodeID is that device
	// once it was found, so that a name that goes to another device later does
	// not take the traffic with it.
	ExitNode   string       `json:"exit_node,omitempty"`
	ExitNodeID ident.NodeID `json:"exit_node_id,omitempty"`
	// ExitNodeAllowLAN leaves the local networks out.
	ExitNodeAllowLAN bool `json:"exit_node_allow_lan,omitempty"`
	// NoPortMapping keeps the node from asking the gateway to forward its port.
	NoPortMapping bool `json:"no_port_mapping,omitempty"`
	// Endpoints are addresses outside that the user says lead to this node.
	Endpoints []netip.AddrPort `json:"endpoints,omitempty"`
	// WantRunning is whether the node is to be connected.
	WantRunning bool `json:"want_running"`
	// Port is the UDP port that the node last had. It is asked for again, so
	// that peers find the node where it was, also without the coordinator.
	Port uint16 `json:"port,omitempty"`
}

// Equal reports whether both ask for the same.
func (p *Preferences) Equal(q *Preferences) bool {
	return p.LoginServer == q.LoginServer && p.Network == q.Network && p.Hostname == q.Hostname &&
		p.ShieldsUp == q.ShieldsUp && slices.Equal(p.AdvertiseRoutes, q.AdvertiseRoutes) &&
		p.AdvertiseExitNode == q.AdvertiseExitNode && p.AcceptRoutes == q.AcceptRoutes &&
		p.ExitNode == q.ExitNode && p.ExitNodeID == q.ExitNodeID && p.ExitNodeAllowLAN == q.ExitNodeAllowLAN &&
		p.NoPortMapping == q.NoPortMapping && slices.Equal(p.Endpoints, q.Endpoints) &&
		p.WantRunning == q.WantRunning && p.Port == q.Port
}

// storedKeys is the file of Keys.
type storedKeys struct {
	Version int    `json:"version"`
	Machine []byte `json:"machine"`
	Node    []byte `json:"node"`
}

// formatVersion is that of every file; a file of another one is corrupt.
const formatVersion = 1

// LoadKeys returns the keys, and false where there are none. The error wraps
// ErrCorrupt, or is the system's.
func (d *Directory) LoadKeys() (Keys, bool, error) {
	raw, err := d.read(keysFile)
	if raw == nil || err != nil {
		return Keys{}, false, err
	}
	var stored storedKeys
	if err := decode(raw, &stored); err != nil || stored.Version != formatVersion {
		return Keys{}, false, fmt.Errorf("%w: %s", ErrCorrupt, keysFile)
	}
	var k Keys
	if k.Machine, err = ident.MachinePrivateFromBytes(stored.Machine); err != nil {
		return Keys{}, false, fmt.Errorf("%w: %s: machine key", ErrCorrupt, keysFile)
	}
	if k.Node, err = ident.NodePrivateFromBytes(stored.Node); err != nil {
		return Keys{}, false, fmt.Errorf("%w: %s: node key", ErrCorrupt, keysFile)
	}
	return k, true, nil
}

// SaveKeys replaces the keys. The error is the system's.
func (d *Directory) SaveKeys(k Keys) error {
	return d.encode(keysFile, storedKeys{Version: formatVersion, Machine: k.Machine.SecretBytes(), Node: k.Node.SecretBytes()})
}

// storedPreferences is the file of Preferences.
type storedPreferences struct {
	Version     int         `json:"version"`
	Preferences Preferences `json:"preferences"`
}

// LoadPreferences returns the preferences, the zero value where there are none.
// The error wraps ErrCorrupt, or is the system's.
func (d *Directory) LoadPreferences() (Preferences, error) {
	raw, err := d.read(preferencesFile)
	if raw == nil || err != nil {
		return Preferences{}, err
	}
	var stored storedPreferences
	if err := decode(raw, &stored); err != nil || stored.Version != formatVersion {
		return Preferences{}, fmt.Errorf("%w: %s", ErrCorrupt, preferencesFile)
	}
	return stored.Preferences, nil
}

// SavePreferences replaces the preferences. The error is the system's.
func (d *Directory) SavePreferences(p Preferences) error {
	return d.encode(preferencesFile, storedPreferences{Version: formatVersion, Preferences: p})
}

// sealed is the form of the files whose content nothing else checks. The hash
// finds damage; against somebody who can write the file there is no defence in
// the file.
type sealed struct {
	Version int             `json:"version"`
	Hash    []byte          `json:"hash"`
	Saved   json.RawMessage `json:"saved"`
}

// memory is what of control.Saved protects from being taken back to the past.
// It stands in a file of its own as well, so that it outlives the map.
type memory struct {
	Authority authority.State `json:"authority"`
	Time      time.Time       `json:"time,omitzero"`
}

// LoadMembership returns what SaveMembership kept, the zero value where there
// is nothing. The error wraps ErrForgotten where nothing is left of what
// protects from the past, which in a new directory there never was; or
// ErrCorrupt where the rest is damaged, and what protects is returned all the
// same; or it is the system's.
func (d *Directory) LoadMembership() (control.Saved, error) {
	var saved control.Saved
	there, err := d.unseal(membershipFile, &saved)
	if err != nil {
		saved = control.Saved{}
	}
	var m memory
	remembered, memoryErr := d.unseal(memoryFile, &m)
	switch {
	case remembered:
		// It is written first, and so is never the older one.
		saved.Authority, saved.Time = m.Authority, m.Time
	case !there:
		return control.Saved{}, errors.Join(ErrForgotten, err, memoryErr)
	}
	return saved, err
}

// unseal reads a file into a value, and reports whether that is sound.
func (d *Directory) unseal(name string, into any) (bool, error) {
	raw, err := d.read(name)
	if raw == nil || err != nil {
		return false, err
	}
	var stored sealed
	if err := decode(raw, &stored); err != nil || stored.Version != formatVersion {
		return false, fmt.Errorf("%w: %s", ErrCorrupt, name)
	}
	if hash := sha256.Sum256(stored.Saved); !bytes.Equal(hash[:], stored.Hash) {
		return false, fmt.Errorf("%w: %s has another hash", ErrCorrupt, name)
	}
	if err := decode(stored.Saved, into); err != nil {
		return false, fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
	}
	return true, nil
}

// SaveMembership replaces what is kept of the network. The error is the
// system's.
func (d *Directory) SaveMembership(saved control.Saved) error {
	if err := d.seal(memoryFile, memory{Authority: saved.Authority, Time: saved.Time}); err != nil {
		return err
	}
	return d.seal(membershipFile, saved)
}

// SaveFlows replaces the flows that one run of the daemon leaves to the next: a
// snapshot's bytes. The error is the system's.
func (d *Directory) SaveFlows(snapshot []byte) error { return d.seal(flowsFile, snapshot) }

// TakeFlows returns what SaveFlows kept, nil where there is nothing, and removes
// it: nobody can take it twice, whether or not it is sound. The error wraps
// ErrCorrupt, or is the system's; nothing is returned with it.
func (d *Directory) TakeFlows() ([]byte, error) {
	var snapshot []byte
	there, err := d.unseal(flowsFile, &snapshot)
	if !there && err == nil {
		return nil, nil
	}
	if err := errors.Join(err, d.remove(flowsFile)); err != nil {
		return nil, err
	}
	return snapshot, nil
}

func (d *Directory) seal(name string, value any) error {
	inner, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("statefile: encoding %s: %w", name, err)
	}
	hash := sha256.Sum256(inner)
	return d.encode(name, sealed{Version: formatVersion, Hash: hash[:], Saved: inner})
}

// Forget removes everything but the directory: keys, preferences and what is
// kept of the network. The error is the system's.
func (d *Directory) Forget() error {
	for _, name := range []string{membershipFile, memoryFile, flowsFile, preferencesFile, keysFile} {
		if err := d.remove(name); err != nil {
			return err
		}
	}
	return nil
}

func (d *Directory) encode(name string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("statefile: encoding %s: %w", name, err)
	}
	return d.write(name, append(raw, '\n'))
}

// decode reads exactly one JSON value with known fields.
func decode(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("statefile: more after the end")
	}
	return nil
}
