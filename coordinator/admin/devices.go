package admin

import (
	"fmt"
	"net/http"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
)

func (h *Handler) devices(r *http.Request) ([]Device, error) {
	return look(h, r, func(v *View) ([]Device, error) {
		out := []Device{}
		for _, d := range v.State.Devices() {
			out = append(out, describeDevice(v, d))
		}
		return out, nil
	})
}

func describeDevice(v *View, d *registry.Device) Device {
	out := Device{
		ID: d.ID.String(), Name: d.Name, Tags: texts(d.Tags), Addresses: []string{d.IPv4.String(), d.IPv6.String()},
		Online: v.Network.Presence(d.ID).Online, LastSeen: v.LastSeen[d.ID], Ephemeral: d.Ephemeral,
		OS: d.Host.OS, OSVersion: d.Host.OSVersion, Version: d.Host.ProgramVersion,
		Suspended: v.State.Suspended(d.Owner), NodeKey: d.NodeKey.String(), Created: d.Created, Routes: describeRoutes(v, d),
	}
	if u := v.State.User(d.Owner); u != nil {
		out.User = u.Login
	}
	if out.Online {
		out.LastSeen = v.Now
	}
	return out
}

func notFound(name string) error {
	return fmt.Errorf("%w: there is no device %.80q; `warren-coordinator devices list` shows those that there are", registry.ErrNotFound, name)
}

func (h *Handler) device(r *http.Request) (DeviceDetail, error) {
	name := r.PathValue("name")
	return look(h, r, func(v *View) (DeviceDetail, error) {
		d := v.State.DeviceByName(name)
		if d == nil {
			return DeviceDetail{}, notFound(name)
		}
		out := DeviceDetail{
			Device: describeDevice(v, d), MachineKey: d.Machine.String(), JoinKey: d.Key,
			Labels: v.Network.Policy().LabelNames(d.ID),
		}
		for _, e := range v.Network.Presence(d.ID).Endpoints {
			out.Endpoints = append(out.Endpoints, e.String())
		}
		for _, id := range v.Network.Peers(d.ID) {
			if peer := v.State.Device(id); peer != nil {
				out.Peers = append(out.Peers, peer.Name)
			}
		}
		if c := v.State.Certificate(d.ID); c != nil {
			out.Certificate = &Certificate{c.Serial, c.NotBefore, c.NotAfter}
		}
		return out, nil
	})
}

func (h *Handler) revokeDevice(r *http.Request) (RevokedDevice, error) {
	var body RevokeDevice
	if err := decode(r, &body); err != nil {
		return RevokedDevice{}, err
	}
	name := r.PathValue("name")
	var id ident.NodeID // a name may go to another device before the command runs
	device, err := look(h, r, func(v *View) (Device, error) {
		d := v.State.DeviceByName(name)
		if d == nil {
			return Device{}, notFound(name)
		}
		id = d.ID
		return describeDevice(v, d), nil
	})
	if err != nil {
		return RevokedDevice{}, err
	}
	result, err := h.execute(r, registry.RevokeDevice{Node: id, KeepKey: body.KeepKey})
	if err != nil {
		return RevokedDevice{}, err
	}
	device.Online = false
	out := RevokedDevice{Device: device}
	if result.Key != nil {
		out.RevokedKey = result.Key.ID
	}
	return out, nil
}

func (h *Handler) setTags(r *http.Request) (Device, error) {
	var body SetTags
	if err := decode(r, &body); err != nil {
		return Device{}, err
	}
	var tags []ident.Tag
	for _, t := range body.Tags {
		tags = append(tags, ident.Tag(t))
	}
	return h.changeDevice(r, func(id ident.NodeID) registry.Command { return registry.SetTags{Node: id, Tags: tags} })
}

// changeDevice runs a command about the device that the path names, and returns
// it as it is then.
func (h *Handler) changeDevice(r *http.Request, command func(ident.NodeID) registry.Command) (Device, error) {
	name := r.PathValue("name")
	id, err := look(h, r, func(v *View) (ident.NodeID, error) {
		d := v.State.DeviceByName(name)
		if d == nil {
			return 0, notFound(name)
		}
		return d.ID, nil
	})
	if err != nil {
		return Device{}, err
	}
	if _, err := h.execute(r, command(id)); err != nil {
		return Device{}, err
	}
	return look(h, r, func(v *View) (Device, error) {
		d := v.State.Device(id)
		if d == nil {
			return Device{}, notFound(name)
		}
		return describeDevice(v, d), nil
	})
}
