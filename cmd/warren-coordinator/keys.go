package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/admin"
)

// defaultExpiry is how long a join key can be used where nothing else is said:
// long enough to reach the device tomorrow, short enough that one that leaked
// is of little use.
const defaultExpiry = 24 * time.Hour

func (m *Main) keys() *cobra.Command {
	keys := commandline.Group(&cobra.Command{Use: "keys", Short: "Create, list and revoke join keys"})
	keys.AddCommand(m.keysCreate(), m.keysList(), m.keysRevoke())
	return keys
}

func (m *Main) keysCreate() *cobra.Command {
	var k admin.CreateKey
	var expiry time.Duration
	c := &cobra.Command{
		Use: "create (--user LOGIN | --tags TAGS)", Short: "Create a join key, which is shown this once",
		Long: `Create a join key by which devices join the network: for one device of a
user's, or for tagged devices that belong to nobody. It carries the network's
fingerprint and is shown this once.`,
		Example: `  warren-coordinator --data DIR keys create --user alice@example.com
  warren-coordinator --data DIR keys create --tags tag:db --reusable --expiry 1h`,
	}
	c.Flags().StringVar(&k.User, "user", "", "who owns the devices that join by the key")
	c.Flags().StringSliceVar(&k.Tags, "tags", nil, "tags of the devices that join by the key, such as tag:db,tag:prod")
	c.Flags().BoolVar(&k.Reusable, "reusable", false, "let any number of devices join by the key")
	c.Flags().BoolVar(&k.Ephemeral, "ephemeral", false, "remove devices that joined by the key once they are offline for 30 minutes")
	c.Flags().DurationVar(&expiry, "expiry", defaultExpiry, "how long the key can be used")
	c.Args = commandline.Arguments(0)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if (k.User == "") == (len(k.Tags) == 0) {
			return commandline.Wrong(c, errors.New("give either --user or --tags"))
		}
		if expiry < time.Second {
			return commandline.Wrong(c, errors.New("--expiry must be a second at least"))
		}
		k.ExpirySeconds = int64(expiry / time.Second)
		key, err := m.client().CreateKey(c.Context(), k)
		if err != nil {
			return err
		}
		return m.print(key, func() {
			fmt.Fprintln(m.Stdout, key.Text)
			fmt.Fprintf(m.Stderr, "shown this once; usable until %s; on the device: warren up --login-server http://HOST:PORT --auth-key KEY\n", when(key.Expires))
		})
	}
	return m.printable(c)
}

func (m *Main) keysList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the join keys, without their secrets"}
	c.Args = commandline.Arguments(0)
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := m.client().Keys(c.Context())
		if err != nil {
			return err
		}
		return m.print(all, func() {
			var rows [][]string
			for _, k := range all {
				kind := "single-use"
				if k.Reusable {
					kind = "reusable"
				}
				if k.Ephemeral {
					kind += ",ephemeral"
				}
				rows = append(rows, []string{k.ID, whose(k.User, k.Tags), kind, k.State, strconv.FormatUint(k.Uses, 10), when(k.Expires)})
			}
			m.table("ID FOR KIND STATE USES EXPIRES", rows)
		})
	}
	return m.printable(c)
}

func (m *Main) keysRevoke() *cobra.Command {
	c := &cobra.Command{Use: "revoke ID", Short: "Make a join key useless; devices that joined by it stay"}
	c.Args = commandline.Arguments(1)
	c.RunE = func(c *cobra.Command, args []string) error {
		k, err := m.client().RevokeKey(c.Context(), args[0])
		if err != nil {
			return err
		}
		return m.print(k, func() {
			fmt.Fprintf(m.Stdout, "revoked join key %s; devices that joined by it stay, `devices revoke` ends them\n", k.ID)
		})
	}
	return m.printable(c)
}
