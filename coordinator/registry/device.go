package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/ident"
)

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func (d *decision) registerDevice(c RegisterDevice) error {
	if c.Machine.IsZero() {
		return refuse(ErrInvalid, "a device without a machine key")
	}
	// Revocation goes before the join key: whoever was revoked is told so, and
	// spends nothing.
	if d.state.RevokedMachine(c.Machine) {
		return refuse(ErrRevoked, "the device %v", d.state.revMach[c.Machine])
	}
	// So does suspension: another's key does not free a suspended user's device.
	if device := d.state.DeviceByMachine(c.Machine); device != nil && d.state.Suspended(device.Owner) {
		return refuse(ErrSuspended, "the device %v", device.ID)
	}
	key, err := d.authKey(c.Key, c.Secret)
	if err != nil {
		return err
	}
	if err := c.Host.Validate(); err != nil {
		return err
	}
	asked, err := normalTags(c.Tags)
	if err != nil {
		return err
	}
	tags, owner := key.Tags, key.User
	for _, t := range asked {
		switch {
		case slices.Contains(key.Tags, t):
		case slices.Contains(c.Granted, t):
			// A tagged device acts for itself: the user gives it away.
			tags, owner = asked, 0
		default:
			return refuse(ErrDenied, "neither the join key carries %s nor may its user give it: name it when creating the key, or name the user in tagOwners of the policy", t)
		}
	}
	device, err := d.deviceFor(c)
	if err != nil {
		return err
	}
	// The key's identity holds exactly: nothing of an earlier registration
	// stays.
	if device.Owner != owner || !slices.Equal(device.Tags, tags) {
		device.Approved = nil
	}
	device.Owner, device.Tags, device.Ephemeral, device.Key = owner, tags, key.Ephemeral, key.ID
	device.Host = c.Host
	d.changes.Devices = []Device{device}
	d.changes.Consume = &Consume{Key: key.ID, Now: d.now}
	d.result.Device = &device
	d.tell("device.register", device.ID.String())
	d.detail("name", device.Name)
	d.detail("key", key.ID)
	if u := d.state.User(device.Owner); u != nil {
		d.detail("owner", u.Login)
	}
	if len(device.Tags) > 0 {
		d.detail("tags", strings.Join(tagTexts(device.Tags), ","))
	}
	d.detail("machine", device.Machine.String())
	d.detail("nodekey", device.NodeKey.String())
	d.detail("address", device.IPv4.String())
	return nil
}

// deviceFor returns the device of the machine key with the new node key and
// name: the one that there is, or a new one.
func (d *decision) deviceFor(c RegisterDevice) (Device, error) {
	var device Device
	existing := d.state.DeviceByMachine(c.Machine)
	if err := d.mayHold(c.NodeKey, existing); err != nil {
		return device, err
	}
	if existing != nil {
		device = *existing
		if existing.NodeKey != c.NodeKey {
			d.result.Revoked = append(d.result.Revoked, existing.NodeKey)
		}
	} else {
		if len(d.state.devices) >= maxDevices {
			return device, refuse(ErrFull, "there are %d devices", maxDevices)
		}
		v4, v6, host, err := d.state.allocate(d.state.counters.Host)
		if err != nil {
			return device, err
		}
		device = Device{ID: d.state.counters.Node + 1, Machine: c.Machine, IPv4: v4, IPv6: v6, Created: d.now}
		d.changes.Counters.Node, d.changes.Counters.Host = device.ID, host
	}
	device.NodeKey = c.NodeKey
	if base := nameBase(c.Hostname); existing == nil || c.Hostname != "" && !hasBase(existing.Name, base) {
		device.Name = d.state.freeName(base, existing)
	}
	return device, nil
}

// hasBase reports whether name is base or base with the suffix that made it
// unique: a device that registers again keeps its name.
func hasBase(name, base string) bool {
	rest, ok := strings.CutPrefix(name, base)
	if !ok || rest == "" {
		return ok
	}
	digits, ok := strings.CutPrefix(rest, "-")
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// mayHold reports why own, nil for a new device, cannot have the node key.
func (d *decision) mayHold(k ident.NodeKey, own *Device) error {
	if k.IsZero() {
		return refuse(ErrInvalid, "a device without a node key")
	}
	if id, revoked := d.state.revNodeK[k]; revoked {
		return refuse(ErrRevoked, "the node key of the revoked device %v", id)
	}
	if other := d.state.DeviceByNodeKey(k); other != nil && (own == nil || other.ID != own.ID) {
		return refuse(ErrKeyInUse, "%s is the key of %v", k.Short(), other.ID)
	}
	return nil
}

func (d *decision) device(id ident.NodeID) (*Device, error) {
	if device := d.state.Device(id); device != nil {
		return device, nil
	}
	return nil, refuse(ErrNotFound, "there is no device %v", id)
}

func (d *decision) rotateNodeKey(c RotateNodeKey) error {
	old, err := d.device(c.Node)
	if err != nil {
		return err
	}
	if err := d.mayHold(c.NodeKey, old); err != nil {
		return err
	}
	d.result.Device = old
	if old.NodeKey == c.NodeKey {
		return nil
	}
	device := *old
	device.NodeKey = c.NodeKey
	d.changes.Devices = []Device{device}
	d.result.Device = &device
	d.result.Revoked = []ident.NodeKey{old.NodeKey}
	d.tell("device.rotate-key", device.ID.String())
	d.detail("nodekey", device.NodeKey.String())
	d.detail("nodekey before", old.NodeKey.String())
	return nil
}

func (d *decision) revokeDevice(c RevokeDevice) error {
	device, err := d.device(c.Node)
	if err != nil {
		return err
	}
	d.drop(device)
	d.changes.Revocations = []Revocation{{
		Node: device.ID, Machine: device.Machine, NodeKey: device.NodeKey, Name: device.Name, Owner: device.Owner, Revoked: d.now,
	}}
	d.tell("device.revoke", device.ID.String())
	d.detail("name", device.Name)
	d.detail("machine", device.Machine.String())
	d.detail("nodekey", device.NodeKey.String())
	if key := d.state.Key(device.Key); key != nil && !c.KeepKey && key.Usable(d.now) == "" {
		k := *key
		k.Revoked = d.now
		d.changes.Keys = []Key{k}
		d.result.Key = &k
		d.detail("key revoked", k.ID)
	}
	return nil
}

func (d *decision) logout(c Logout) error {
	device, err := d.device(c.Node)
	if err != nil {
		return err
	}
	d.drop(device)
	d.tell("device.logout", device.ID.String())
	d.detail("name", device.Name)
	return nil
}
