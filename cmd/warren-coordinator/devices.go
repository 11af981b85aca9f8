package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/admin"
)

func (m *Main) devices() *cobra.Command {
	devices := commandline.Group(&cobra.Command{Use: "devices", Short: "List, show, tag and revoke devices, and approve what they route"})

	list := &cobra.Command{Use: "list", Short: "List the devices"}
	list.Args = commandline.Arguments(0)
	list.RunE = func(c *cobra.Command, _ []string) error {
		all, err := m.client().Devices(c.Context())
		if err != nil {
			return err
		}
		return m.print(all, func() {
			var rows [][]string
			for _, d := range all {
				rows = append(rows, []string{d.ID, d.Name, d.Addresses[0], whose(d.User, d.Tags), d.OS, lastSeen(&d)})
			}
			m.table("ID NAME ADDRESS OWNER OS SEEN", rows)
		})
	}

	show := &cobra.Command{Use: "show NAME", Short: "Show what is known of a device, and what it may see"}
	show.Args = commandline.Arguments(1)
	show.RunE = func(c *cobra.Command, args []string) error {
		d, err := m.client().Device(c.Context(), args[0])
		if err != nil {
			return err
		}
		return m.print(d, func() { m.showDevice(&d) })
	}

	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "End a device's membership for good",
		Long: `End a device's membership for good: its peers drop it, its connections end, and
neither its machine key nor its node key is ever admitted again. A reusable join
key that it joined by is revoked too, or it could join again by it as a new
device; --keep-key leaves the key to those that are yet to join. NAME is the
device's name or id.`,
	}
	var keepKey bool
	revoke.Flags().BoolVar(&keepKey, "keep-key", false, "leave the join key that the device joined by usable")
	revoke.Args = commandline.Arguments(1)
	revoke.RunE = func(c *cobra.Command, args []string) error {
		d, err := m.client().RevokeDevice(c.Context(), args[0], keepKey)
		if err != nil {
			return err
		}
		return m.print(d, func() {
			fmt.Fprintf(m.Stdout, "revoked %s (%s, %s)\n", d.Name, d.ID, d.Addresses[0])
			if d.RevokedKey != "" {
				fmt.Fprintf(m.Stdout, "revoked join key %s, by which it had joined; other devices that joined by it stay\n", d.RevokedKey)
			}
		})
	}
	devices.AddCommand(m.printable(list), m.printable(show), m.printable(m.tagDevice()), m.printable(revoke),
		m.printable(m.listRoutes()), m.printable(m.approveRoutes()), m.printable(m.removeRoutes()))
	return devices
}

func (m *Main) tagDevice() *cobra.Command {
	c := &cobra.Command{
		Use: "tag NAME", Short: "Give a device other tags",
		Long: `Give a device exactly the tags named: others that it had are gone, and
connections that only they allowed end. A device of a user's belongs to nobody
from then on, and rules that name the user do not match it any more. NAME is the
device's name or id. To give a device to a user, let it join again by that
user's join key.`,
		Example: "  warren-coordinator --data DIR devices tag db --tags tag:db,tag:prod",
	}
	var tags []string
	c.Flags().StringSliceVar(&tags, "tags", nil, "all tags that the device is to have")
	c.MarkFlagRequired("tags")
	c.Args = commandline.Arguments(1)
	c.RunE = func(c *cobra.Command, args []string) error {
		d, err := m.client().SetTags(c.Context(), args[0], tags)
		if err != nil {
			return err
		}
		return m.print(d, func() { fmt.Fprintf(m.Stdout, "%s (%s) now has %s\n", d.Name, d.ID, whose("", d.Tags)) })
	}
	return c
}

func lastSeen(d *admin.Device) string {
	if d.Suspended {
		return "suspended"
	}
	if d.Online {
		return "online"
	}
	return when(d.LastSeen)
}

func (m *Main) showDevice(d *admin.DeviceDetail) {
	row := func(name, value string) {
		if value == "" {
			value = "-"
		}
		fmt.Fprintf(m.Stdout, "%-12s  %s\n", name, value)
	}
	row("name", d.Name)
	row("id", d.ID)
	row("owner", whose(d.User, d.Tags))
	row("addresses", strings.Join(d.Addresses, ", "))
	row("seen", lastSeen(&d.Device))
	row("endpoints", strings.Join(d.Endpoints, ", "))
	row("system", strings.TrimSpace(d.OS+" "+d.OSVersion))
	row("version", d.Version)
	row("node key", d.NodeKey)
	row("machine key", d.MachineKey)
	row("join key", d.JoinKey)
	row("joined", when(d.Created))
	if c := d.Certificate; c != nil {
		row("certificate", fmt.Sprintf("serial %d, until %s", c.Serial, when(c.NotAfter)))
	}
	row("labels", strings.Join(d.Labels, ", "))
	row("routes", routeTexts(d.Routes))
	row("may see", strings.Join(d.Peers, ", "))
}
