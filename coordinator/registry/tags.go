package registry

import (
	"slices"
	"strings"
)

func (d *decision) setTags(c SetTags) error {
	old, err := d.device(c.Node)
	if err != nil {
		return err
	}
	tags, err := normalTags(c.Tags)
	if err != nil {
		return err
	}
	switch {
	case len(tags) == 0:
		return refuse(ErrInvalid, "a device without tags belongs to a user: to give it to one, let it join again by that user's join key")
	case d.state.Suspended(old.Owner):
		return refuse(ErrSuspended, "%v stays with its user until the user is resumed, or the device is revoked", old.ID)
	}
	d.result.Device = old
	if old.Owner == 0 && slices.Equal(old.Tags, tags) {
		return nil
	}
	device := *old
	device.Owner, device.Tags, device.Approved = 0, tags, nil
	d.changes.Devices = []Device{device}
	d.result.Device = &device
	d.tell("device.tag", device.ID.String())
	d.detail("name", device.Name)
	d.detail("tags", strings.Join(tagTexts(device.Tags), ","))
	before := strings.Join(tagTexts(old.Tags), ",")
	if u := d.state.User(old.Owner); u != nil {
		before = u.Login
	}
	d.detail("owner before", before)
	return nil
}
