package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/admin"
)

func (m *Main) settings() *cobra.Command {
	settings := commandline.Group(&cobra.Command{
		Use: "settings", Short: "Turn off for all devices what they do by themselves",
		Long: `Turn off for all devices what they do by themselves, such as when a fault is found
in it: devices that are connected stop within seconds, others when they come
back. Nothing can be turned on that a device's own settings have off.

  port-mapping  asking routers to forward ports (PCP, NAT-PMP, UPnP) and to let
                in IPv6; devices delete what they had opened`,
	})

	list := &cobra.Command{Use: "list", Short: "Show what can be turned off, and what is"}
	list.Args = commandline.Arguments(0)
	list.RunE = func(c *cobra.Command, _ []string) error {
		all, err := m.client().Settings(c.Context())
		if err != nil {
			return err
		}
		return m.print(all, func() {
			var rows [][]string
			for _, s := range all {
				rows = append(rows, []string{s.Name, onOff(s.On), when(s.Off)})
			}
			m.table("NAME VALUE SINCE", rows)
		})
	}

	set := &cobra.Command{
		Use: "set NAME on|off", Short: "Turn something off for all devices, or leave it to each of them again",
		Example: `  warren-coordinator --data DIR settings set port-mapping off
  warren-coordinator --data DIR settings set port-mapping on`,
	}
	set.Args = commandline.Arguments(2)
	set.RunE = func(c *cobra.Command, args []string) error {
		if args[1] != "on" && args[1] != "off" {
			return commandline.Wrong(c, fmt.Errorf("%q is neither on nor off", args[1]))
		}
		s, err := m.client().SetSetting(c.Context(), args[0], args[1] == "on")
		if err != nil {
			return err
		}
		return m.print(s, func() { m.tellSetting(s) })
	}
	settings.AddCommand(m.printable(list), m.printable(set))
	return settings
}

func (m *Main) tellSetting(s admin.Setting) {
	if s.On {
		fmt.Fprintf(m.Stdout, "%s is on, where a device's own settings have it on\n", s.Name)
		return
	}
	fmt.Fprintf(m.Stdout, "%s is off for all devices\n", s.Name)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
