package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
)

// authKeyVariable holds a join key for scripts. It is read here and removed
// from the environment.
const authKeyVariable = "WARREN_AUTH_KEY"

func (m *Main) upCommand() *cobra.Command {
	var (
		r         localapi.UpRequest
		authKey   string
		hostname  string
		shieldsUp bool
		routing   routingFlags
		reach     reachFlags
		timeout   time.Duration
		asJSON    bool
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Connect, joining the network first where needed",
		Long: `Connect this device, and wait until it is connected.

A device that is no member yet needs the coordinator's address and a key from
an administrator (warren-coordinator keys create). The key carries the network's
fingerprint, by which the device knows the coordinator, also over plain HTTP.
A key on the command line can be seen by others on this machine while the
command runs: give file:PATH, or set ` + authKeyVariable + `.

Without options it connects as before. Options that are given are kept; a
command that mentions some settings must mention all that are not at their
defaults.`,
		Example: `  warren up --login-server http://10.0.0.5:8080 --auth-key file:/root/key --hostname db
  warren up`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := m.authKey(authKey)
			if err != nil {
				return err
			}
			r.AuthKey = key
			if cmd.Flags().Changed("hostname") {
				r.Hostname = &hostname
			}
			if cmd.Flags().Changed("shields-up") {
				r.ShieldsUp = &shieldsUp
			}
			if r.Routing, err = routing.changed(cmd); err != nil {
				return err
			}
			if r.Reach, err = reach.changed(cmd); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if err := m.client().Up(ctx, r); err != nil {
				return err
			}
			s, err := m.waitConnected(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return m.printJSON(s.Self)
			}
			fmt.Fprintf(m.Stdout, "Connected as %s: %s\n", s.Self.Name, joinAddresses(s.Self.Addresses))
			m.printHealth(s.Health)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.LoginServer, "login-server", "", "URL of the coordinator")
	f.StringVar(&authKey, "auth-key", "", "key to join with, or file:PATH of one; also "+authKeyVariable)
	f.StringVar(&hostname, "hostname", "", "name to join under; the machine's own where it is not given")
	f.BoolVar(&shieldsUp, "shields-up", false, "refuse all connections that peers open, whatever the rules")
	routing.add(cmd)
	reach.add(cmd)
	f.BoolVar(&r.Reset, "reset", false, "put settings that are not mentioned back to their defaults")
	f.DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait until connected")
	f.BoolVar(&asJSON, "json", false, "print this device as JSON")
	return cmd
}

// authKey returns the key that the flag or the environment gives.
func (m *Main) authKey(flag string) (string, error) {
	if flag == "" {
		flag = m.Getenv(authKeyVariable)
		if flag != "" {
			if err := m.Unsetenv(authKeyVariable); err != nil {
				return "", fmt.Errorf("removing %s from the environment: %w", authKeyVariable, err)
			}
		}
	}
	path, isFile := strings.CutPrefix(flag, "file:")
	if !isFile {
		return flag, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the key: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// waitConnected follows the node until it is connected, or only a person can
// help, and says on the error output what it waits for.
func (m *Main) waitConnected(ctx context.Context) (localapi.Status, error) {
	c := m.client()
	var last localapi.Status
	told := ""
	for {
		s, err := c.StatusAfter(ctx, last.Generation)
		switch {
		case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
			return last, notConnected(last)
		case err != nil:
			return last, err
		}
		last = s
		switch s.State {
		case localapi.Connected:
			if s.Self != nil {
				return s, nil
			}
		case localapi.NeedsLogin, localapi.Revoked, localapi.Expired, localapi.Suspended:
			return s, refusal(s)
		case localapi.Stopped:
			return s, errors.New("the node was stopped meanwhile")
		case localapi.Connecting, localapi.Offline:
			if s.Reason != "" && s.Reason != told {
				told = s.Reason
				fmt.Fprintf(m.Stderr, "waiting for the coordinator at %s: %s\n", s.LoginServer, s.Reason)
			}
		}
	}
}

// refusal says why only a person can help, by the health fact that does.
func refusal(s localapi.Status) error {
	if len(s.Health) > 0 {
		return fmt.Errorf("%s [%s]", s.Health[0].Text, s.Health[0].Code)
	}
	return fmt.Errorf("not connected: %s", s.Reason)
}

func notConnected(s localapi.Status) error {
	text := fmt.Sprintf("no coordinator answered at %s in time", s.LoginServer)
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	if s.State == localapi.Offline {
		return errors.New(text + ". Tunnels between known devices work; it goes on trying")
	}
	return errors.New(text + ". Check the address, and that the coordinator is running; it goes on trying")
}

func joinAddresses(all []netip.Addr) string {
	texts := make([]string, 0, len(all))
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

func (m *Main) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Disconnect, and stay a member of the network",
		Long:  "Disconnect. The device stays a member; `warren up` connects again, and until then it stays disconnected over restarts too.",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return m.client().Down(cmd.Context()) },
	}
}

func (m *Main) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Leave the network and forget its keys",
		Long:  "Leave the network: the coordinator removes the device, and the daemon forgets its keys. To come back, the device needs a new key.",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := m.client().Logout(cmd.Context())
			if err != nil {
				return err
			}
			if !r.Told {
				fmt.Fprintf(m.Stderr, "logged out here, but the coordinator could not be told; an administrator can remove the device there: warren-coordinator devices revoke %s\n", r.Name)
			}
			return nil
		},
	}
}
