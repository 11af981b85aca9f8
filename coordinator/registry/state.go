package registry

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// Network is what never changes about a network.
type Network struct {
	Fingerprint ident.Fingerprint
	// Prefix4 and Prefix6 are where its addresses lie, as in its genesis
	// record.
	Prefix4, Prefix6 netip.Prefix
}

// State is everything that is registered.
type State struct {
	network  Network
	counters Counters
	policy   *Policy
	// candidate is never nil; its Text is empty where there is none.
	candidate *Policy
	switches  map[Feature]*Switch

	users    map[ident.UserID]*User
	byLogin  map[string]ident.UserID
	keys     map[string]*Key
	devices  map[ident.NodeID]*Device
	certs    map[ident.NodeID]*Certificate
	byMach   map[ident.MachineKey]ident.NodeID
	byKey    map[ident.NodeKey]ident.NodeID
	byName   map[string]ident.NodeID
	byAddr   map[netip.Addr]ident.NodeID
	revoked  map[ident.NodeID]*Revocation
	revMach  map[ident.MachineKey]ident.NodeID
	revNodeK map[ident.NodeKey]ident.NodeID
	former   map[ident.NodeKey]*FormerKey
}

// NewState returns the state of a network in which nothing is registered.
func NewState(network Network) *State {
	return &State{
		network: network, policy: &Policy{}, candidate: &Policy{}, switches: make(map[Feature]*Switch),
		users: make(map[ident.UserID]*User), byLogin: make(map[string]ident.UserID), keys: make(map[string]*Key),
		devices: make(map[ident.NodeID]*Device), certs: make(map[ident.NodeID]*Certificate),
		byMach: make(map[ident.MachineKey]ident.NodeID), byKey: make(map[ident.NodeKey]ident.NodeID),
		byName: make(map[string]ident.NodeID), byAddr: make(map[netip.Addr]ident.NodeID),
		revoked: make(map[ident.NodeID]*Revocation), revMach: make(map[ident.MachineKey]ident.NodeID),
		revNodeK: make(map[ident.NodeKey]ident.NodeID), former: make(map[ident.NodeKey]*FormerKey),
	}
}

// Apply makes the state what the changes say. They come from Decide on this
// very state, or from the store that rebuilds it.
func (s *State) Apply(c *Changes) {
	for _, u := range c.Users {
		if old, ok := s.users[u.ID]; ok {
			delete(s.byLogin, old.Login)
		}
		s.users[u.ID] = &u
		s.byLogin[u.Login] = u.ID
	}
	for _, k := range c.Keys {
		s.keys[k.ID] = &k
	}
	if c.Consume != nil {
		k := *s.keys[c.Consume.Key]
		k.Uses++
		s.keys[k.ID] = &k
	}
	for _, id := range c.Removed {
		s.remove(id)
	}
	for _, id := range c.RemovedKeys {
		delete(s.keys, id)
	}
	for _, d := range c.Devices {
		s.unindex(d.ID)
		s.devices[d.ID] = &d
		s.byMach[d.Machine], s.byKey[d.NodeKey], s.byName[d.Name] = d.ID, d.ID, d.ID
		s.byAddr[d.IPv4], s.byAddr[d.IPv6] = d.ID, d.ID
	}
	for _, r := range c.Revocations {
		s.revoked[r.Node] = &r
		s.revMach[r.Machine], s.revNodeK[r.NodeKey] = r.Node, r.Node
	}
	for _, k := range c.ForgottenKeys {
		delete(s.former, k)
	}
	for _, k := range c.FormerKeys {
		s.former[k.NodeKey] = &k
	}
	for _, cert := range c.Certificates {
		s.certs[cert.Node] = &cert
	}
	if c.Policy != nil {
		p := *c.Policy
		s.policy = &p
	}
	if c.Candidate != nil {
		p := *c.Candidate
		s.candidate = &p
	}
	for _, w := range c.Switches {
		s.switches[w.Feature] = &w
	}
	s.counters = s.counters.max(c.Counters)
}

func (c Counters) max(d Counters) Counters {
	// The host cursor goes round; it is taken as it comes, where it is set.
	host := c.Host
	if d.Host != 0 {
		host = d.Host
	}
	return Counters{User: max(c.User, d.User), Node: max(c.Node, d.Node), Serial: max(c.Serial, d.Serial), Host: host}
}

func (s *State) remove(id ident.NodeID) {
	s.unindex(id)
	delete(s.devices, id)
	delete(s.certs, id)
}

func (s *State) unindex(id ident.NodeID) {
	if d, ok := s.devices[id]; ok {
		delete(s.byMach, d.Machine)
		delete(s.byKey, d.NodeKey)
		delete(s.byName, d.Name)
		delete(s.byAddr, d.IPv4)
		delete(s.byAddr, d.IPv6)
	}
}

// Network returns what never changes.
func (s *State) Network() Network { return s.network }

// Counters returns what was handed out last.
func (s *State) Counters() Counters { return s.counters }

// Policy returns the policy in force.
func (s *State) Policy() *Policy { return s.policy }

// Candidate returns the document in audit beside the policy, nil where there is
// none.
func (s *State) Candidate() *Policy {
	if s.candidate.Text == "" {
		return nil
	}
	return s.candidate
}

// Off returns since when the feature is off for all nodes, zero where it is not.
func (s *State) Off(f Feature) time.Time {
	if w := s.switches[f]; w != nil {
		return w.Off
	}
	return time.Time{}
}

// User returns the user with the id, nil where there is none.
func (s *State) User(id ident.UserID) *User { return s.users[id] }

// UserByLogin returns the user with the login, in any case of letters, nil
// where there is none.
func (s *State) UserByLogin(login string) *User {
	normal, err := NormalLogin(login)
	if err != nil {
		return nil
	}
	return s.users[s.byLogin[normal]]
}

// Suspended reports whether the user is suspended; nobody, the owner of tagged
// devices, is not.
func (s *State) Suspended(id ident.UserID) bool {
	u := s.users[id]
	return u != nil && !u.Suspended.IsZero()
}

// DevicesOf returns the user's devices by ascending id.
func (s *State) DevicesOf(id ident.UserID) []*Device {
	return slices.DeleteFunc(s.Devices(), func(d *Device) bool { return d.Owner != id })
}

// Users returns all users by ascending id.
func (s *State) Users() []*User { return sorted(s.users) }

// Key returns the join key with the id, nil where there is none.
func (s *State) Key(id string) *Key { return s.keys[id] }

// Keys returns all join keys by ascending id.
func (s *State) Keys() []*Key { return sorted(s.keys) }

// Device returns the device with the id, nil where there is none.
func (s *State) Device(id ident.NodeID) *Device { return s.devices[id] }

// DeviceByMachine returns the device with the machine key, nil where there is
// none.
func (s *State) DeviceByMachine(k ident.MachineKey) *Device { return s.devices[s.byMach[k]] }

// DeviceByNodeKey returns the device with the node key, nil where there is
// none.
func (s *State) DeviceByNodeKey(k ident.NodeKey) *Device { return s.devices[s.byKey[k]] }

// DeviceByName returns the device that name names, by its id such as "n12" or
// its name; nil where there is none. An id goes before a name: devices choose
// their names.
func (s *State) DeviceByName(name string) *Device {
	if id, err := ident.ParseNodeID(name); err == nil {
		return s.devices[id]
	}
	return s.devices[s.byName[name]]
}

// Devices returns all devices by ascending id.
func (s *State) Devices() []*Device { return sorted(s.devices) }

// Certificate returns the newest certificate of the device, nil where it has
// none yet.
func (s *State) Certificate(id ident.NodeID) *Certificate { return s.certs[id] }

// Revocations returns all revocations by ascending id of the device.
func (s *State) Revocations() []*Revocation { return sorted(s.revoked) }

// FormerKeys returns the node keys that are remembered as no device's any more, the
// one that ended first at the beginning. One of them may be a device's again.
func (s *State) FormerKeys() []*FormerKey {
	return slices.SortedFunc(maps.Values(s.former), func(a, b *FormerKey) int {
		return cmp.Or(a.Ended.Compare(b.Ended), bytes.Compare(a.NodeKey[:], b.NodeKey[:]))
	})
}

// RevokedMachine reports whether the machine key was revoked.
func (s *State) RevokedMachine(k ident.MachineKey) bool { return s.revMach[k] != 0 }

// Counts returns how many users, devices and join keys there are.
func (s *State) Counts() (users, devices, keys int) {
	return len(s.users), len(s.devices), len(s.keys)
}

// Export returns the changes that turn an empty state into this one, in
// ascending order of everything. Two states are equal where these are.
func (s *State) Export() Changes {
	c := Changes{Counters: s.counters, Policy: s.policy, Candidate: s.candidate}
	for _, u := range s.Users() {
		c.Users = append(c.Users, *u)
	}
	for _, k := range s.Keys() {
		c.Keys = append(c.Keys, *k)
	}
	for _, d := range s.Devices() {
		c.Devices = append(c.Devices, *d)
	}
	for _, r := range s.Revocations() {
		c.Revocations = append(c.Revocations, *r)
	}
	for _, k := range s.FormerKeys() {
		c.FormerKeys = append(c.FormerKeys, *k)
	}
	for _, cert := range sorted(s.certs) {
		c.Certificates = append(c.Certificates, *cert)
	}
	for _, w := range sorted(s.switches) {
		c.Switches = append(c.Switches, *w)
	}
	return c
}

func sorted[K ~string | ~uint64, V any](m map[K]*V) []*V {
	out := make([]*V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}
