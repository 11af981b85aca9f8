package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
)

func (m *Main) status() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Show the network at a glance"}
	c.Args = commandline.Arguments(0)
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := m.client().Status(c.Context())
		if err != nil {
			return err
		}
		return m.print(s, func() {
			fmt.Fprintf(m.Stdout, "network       %s\nversion       %s\nusers         %d\ndevices       %d, %d online\npolicy epoch  %d\n",
				s.Fingerprint, s.Version, s.Users, s.Devices, s.Online, s.Epoch)
			if s.Candidate != 0 {
				fmt.Fprintf(m.Stdout, "candidate     epoch %d, in audit\n", s.Candidate)
			}
			for _, name := range s.Off {
				fmt.Fprintf(m.Stdout, "turned off    %s, for all devices\n", name)
			}
		})
	}
	return m.printable(c)
}

func (m *Main) users() *cobra.Command {
	users := commandline.Group(&cobra.Command{Use: "users", Short: "Create, list, suspend and resume users"})

	create := &cobra.Command{
		Use: "create LOGIN", Short: "Create a user",
		Example: "  warren-coordinator --data DIR users create alice@example.com",
	}
	create.Args = commandline.Arguments(1)
	create.RunE = func(c *cobra.Command, args []string) error {
		u, err := m.client().CreateUser(c.Context(), args[0])
		if err != nil {
			return err
		}
		return m.print(u, func() {
			fmt.Fprintf(m.Stdout, "created user %s (%s)\nnext, make a join key for a device: warren-coordinator --data %s keys create --user %s\n", u.Login, u.ID, m.data, u.Login)
		})
	}

	list := &cobra.Command{Use: "list", Short: "List the users"}
	list.Args = commandline.Arguments(0)
	list.RunE = func(c *cobra.Command, _ []string) error {
		all, err := m.client().Users(c.Context())
		if err != nil {
			return err
		}
		return m.print(all, func() {
			var rows [][]string
			for _, u := range all {
				rows = append(rows, []string{u.ID, u.Login, strconv.Itoa(u.Devices), when(u.Created), when(u.Suspended)})
			}
			m.table("ID LOGIN DEVICES CREATED SUSPENDED", rows)
		})
	}
	users.AddCommand(m.printable(create), m.printable(list), m.printable(m.suspendUser()), m.printable(m.resumeUser()))
	return users
}

func (m *Main) suspendUser() *cobra.Command {
	c := &cobra.Command{
		Use: "suspend LOGIN", Short: "Cut all devices of a user off until the user is resumed",
		Long: `Cut all devices of a user off until the user is resumed: their peers drop them,
their connections end, they cannot come back, and the user's join keys do not
work. Nothing is forgotten. Devices with tags belong to nobody and stay.`,
		Example: "  warren-coordinator --data DIR users suspend bob@example.com",
	}
	c.Args = commandline.Arguments(1)
	c.RunE = func(c *cobra.Command, args []string) error {
		u, err := m.client().SuspendUser(c.Context(), args[0])
		if err != nil {
			return err
		}
		return m.print(u, func() {
			fmt.Fprintf(m.Stdout, "suspended %s (%s) with %s\n", u.Login, u.ID, devicesOf(u.Devices))
		})
	}
	return c
}

func (m *Main) resumeUser() *cobra.Command {
	c := &cobra.Command{
		Use: "resume LOGIN", Short: "Let a suspended user's devices and join keys work again",
		Long: `Let a suspended user's devices and join keys work again. Devices come back by
themselves, within a minute.`,
		Example: "  warren-coordinator --data DIR users resume bob@example.com",
	}
	c.Args = commandline.Arguments(1)
	c.RunE = func(c *cobra.Command, args []string) error {
		u, err := m.client().ResumeUser(c.Context(), args[0])
		if err != nil {
			return err
		}
		return m.print(u, func() {
			fmt.Fprintf(m.Stdout, "resumed %s (%s) with %s\n", u.Login, u.ID, devicesOf(u.Devices))
		})
	}
	return c
}

func devicesOf(n int) string {
	if n == 1 {
		return "1 device"
	}
	return fmt.Sprintf("%d devices", n)
}
