package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
)

func (m *Main) pingCommand() *cobra.Command {
	var (
		count       int
		untilDirect bool
		timeout     time.Duration
		asJSON      bool
	)
	cmd := &cobra.Command{
		Use:   "ping NAME|IP",
		Short: "Ping a device inside the tunnel, and show the path",
		Long: `Send ICMP echo requests to a device through the tunnel, and show how each answer
came: over a relay, or directly. The rules of both devices apply: what they
refuse is not answered.`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 {
				return usagef("-c: a number from 1")
			}
			ctx := cmd.Context()
			answered := 0
			var last error
			for i := range count {
				if i > 0 {
					select {
					case <-time.After(time.Second):
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				reply, err := m.client().Ping(ctx, localapi.PingRequest{Target: args[0], Timeout: timeout})
				var e *localapi.Error
				if errors.As(err, &e) && e.Code == localapi.CodeNoAnswer {
					last = err
					fmt.Fprintln(m.Stderr, err)
					continue
				}
				if err != nil {
					return err
				}
				answered++
				if err := m.printPong(reply, asJSON); err != nil {
					return err
				}
				if untilDirect && reply.Path.Kind == "direct" {
					break
				}
			}
			if answered == 0 {
				return last
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVarP(&count, "count", "c", 10, "how many pings at most")
	f.BoolVar(&untilDirect, "until-direct", true, "stop after the first answer over a direct path")
	f.DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for each answer")
	f.BoolVar(&asJSON, "json", false, "print each answer as a line of JSON")
	return cmd
}

func (m *Main) printPong(r localapi.PingReply, asJSON bool) error {
	if asJSON {
		return m.printJSON(r)
	}
	via := "no path"
	switch r.Path.Kind {
	case "direct":
		via = r.Path.Addr.String()
	case "relay":
		via = "relay(" + r.Path.Relay + ")"
	}
	unit := time.Millisecond
	if r.RTT < 10*time.Millisecond {
		unit = 10 * time.Microsecond
	}
	_, err := fmt.Fprintf(m.Stdout, "pong from %s (%v) via %s in %v\n", r.Name, r.Addr, via, r.RTT.Round(unit))
	return err
}

func (m *Main) whoisCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "whois IP[:PORT]",
		Short: "Show which device and user have an overlay address",
		Args:  arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := netip.ParseAddr(args[0])
			if err != nil {
				withPort, err := netip.ParseAddrPort(args[0])
				if err != nil {
					return usagef("%q is neither IP nor IP:PORT", args[0])
				}
				addr = withPort.Addr()
			}
			r, err := m.client().WhoIs(cmd.Context(), addr)
			if err != nil {
				return err
			}
			if asJSON {
				return m.printJSON(r)
			}
			n := r.Node
			user := n.User
			if n.Tagged {
				user = "none (tagged device)"
			}
			fmt.Fprintf(m.Stdout, "Device:     %s (%s)\nUser:       %s\nAddresses:  %s\nNode key:   %s\n", n.Name, n.ID, user, joinAddresses(n.Addresses), n.NodeKey)
			if r.Self {
				fmt.Fprintln(m.Stdout, "This is the device you are on.")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}
