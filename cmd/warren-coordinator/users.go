package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
)

func (m *Main) status() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Show the network at a glance"}
	c.Args, c.RunE = run(0, func(c *cobra.Command, _ []string) error {
		s, err := m.client().Status(c.Context())
		if err != nil {
			return err
		}
		return m.print(s, func() {
			fmt.Fprintf(m.Stdout, "network       %s\nversion       %s\nusers         %d\ndevices       %d, %d online\npolicy epoch  %d\n",
				s.Fingerprint, s.Version, s.Users, s.Devices, s.Online, s.Epoch)
		})
	})
	return m.printable(c)
}

func (m *Main) users() *cobra.Command {
	users := group(&cobra.Command{Use: "users", Short: "Create and list users"})

	create := &cobra.Command{
		Use: "create LOGIN", Short: "Create a user",
		Example: "  warren-coordinator --data DIR users create alice@example.com",
	}
	create.Args, create.RunE = run(1, func(c *cobra.Command, args []string) error {
		u, err := m.client().CreateUser(c.Context(), args[0])
		if err != nil {
			return err
		}
		return m.print(u, func() {
			fmt.Fprintf(m.Stdout, "created user %s (%s)\nnext, make a join key for a device: warren-coordinator --data %s keys create --user %s\n", u.Login, u.ID, m.data, u.Login)
		})
	})

	list := &cobra.Command{Use: "list", Short: "List the users"}
	list.Args, list.RunE = run(0, func(c *cobra.Command, _ []string) error {
		all, err := m.client().Users(c.Context())
		if err != nil {
			return err
		}
		return m.print(all, func() {
			var rows [][]string
			for _, u := range all {
				rows = append(rows, []string{u.ID, u.Login, strconv.Itoa(u.Devices), when(u.Created)})
			}
			m.table("ID LOGIN DEVICES CREATED", rows)
		})
	})
	users.AddCommand(m.printable(create), m.printable(list))
	return users
}
