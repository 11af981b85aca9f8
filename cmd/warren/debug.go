package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
)

// errDenied ends `debug why` for a flow that is not allowed.
var errDenied = errors.New("denied")

func (m *Main) debugCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Find out why something does or does not work",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(m.whyCommand())
	return cmd
}

func (m *Main) whyCommand() *cobra.Command {
	var (
		protocol string
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "why NAME|IP [PORT]",
		Short: "Say whether this device may connect, and which rule decides",
		Long: `Say whether this device may open a connection to a port of another device, and
which rule of the policy decides that. Without a port it is about pings. The
exit status is 0 where it is allowed and 1 where it is denied.`,
		Example: "  warren debug why db 5432",
		Args:    arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := localapi.ExplainRequest{Target: args[0], Protocol: "icmp"}
			if len(args) == 2 {
				port, err := strconv.ParseUint(args[1], 10, 16)
				if err != nil || port == 0 {
					return usagef("%q is no port from 1 to 65535", args[1])
				}
				r.Protocol, r.Port = protocol, uint16(port)
			}
			reply, err := m.client().Explain(cmd.Context(), r)
			if err != nil {
				return err
			}
			if asJSON {
				err = m.printJSON(reply)
			} else {
				_, err = fmt.Fprintf(m.Stdout, "%s: %s\n", map[bool]string{true: "allowed", false: "denied"}[reply.Allowed], reply.Reason)
			}
			if err == nil && !reply.Allowed {
				return errDenied
			}
			return err
		},
	}
	cmd.Flags().StringVar(&protocol, "protocol", "tcp", "tcp or udp")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}
