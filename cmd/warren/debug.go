package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/client/localapi"
)

// errDenied ends a command with status 1 after its answer was printed.
var errDenied = errors.New("denied")

func (m *Main) debugCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Find out why something is allowed or not, and how packets go",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usagef("unknown command %q", args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(m.whyCommand(), m.debugPathsCommand(), m.captureCommand())
	return cmd
}

func (m *Main) whyCommand() *cobra.Command {
	var (
		asJSON bool
		from   string
	)
	cmd := &cobra.Command{
		Use:   "why DEVICE|IP PORT",
		Short: "Say whether a connection is allowed, by which rule, or why not",
		Long: `Ask this device's packet filter whether it lets a connection be opened: by
which rule, or why not and what may be opened instead. Nothing is sent.

PORT is tcp:5432, udp:53, icmp for pings, another protocol by name or number,
or a number alone, for TCP. With --from the question is about connections that
another device opens to this one.

The exit status is 0 where it is allowed, 1 where it is not, 2 for wrong usage.`,
		Example: `  warren debug why db tcp:5432
  warren debug why 100.64.0.7 icmp
  warren debug why --from laptop 22`,
		Args: arguments(func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 2, len(args) == 1 && from != "":
				return nil
			case from != "":
				return errors.New("with --from: give PORT, or this device's name or address and PORT")
			}
			return errors.New("give a device's name or address, and a port such as tcp:5432")
		}),
		ValidArgsFunction: m.completePeer,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := localapi.WhyRequest{From: from}
			if len(args) == 2 {
				r.To = args[0]
			}
			var err error
			if r.Protocol, r.Port, err = parseService(args[len(args)-1]); err != nil {
				return err
			}
			reply, err := m.client().Why(cmd.Context(), r)
			if err != nil {
				return err
			}
			if asJSON {
				err = m.printJSON(reply)
			} else {
				_, err = fmt.Fprintln(m.Stdout, reply.Text)
			}
			if err == nil && !reply.Allowed {
				err = errDenied
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	cmd.Flags().StringVar(&from, "from", "", "the device that opens the connection; this one where it is not given")
	return cmd
}

// parseService reads a protocol and the port that belongs to it.
func parseService(text string) (protocol uint8, port uint16, err error) {
	const form = "write tcp:5432, udp:53, icmp, or a number for a TCP port"
	name, portText, hasPort := strings.Cut(text, ":")
	if _, err := strconv.Atoi(text); err == nil {
		name, portText, hasPort = "tcp", text, true
	}
	protocol, ok := policy.ParseProtocol(name)
	switch {
	case !ok:
		return 0, 0, usagef("%q: unknown protocol %q; %s", text, name, form)
	case !policy.HasPorts(protocol) && hasPort:
		return 0, 0, usagef("%q: %s has no ports; %s", text, name, form)
	case !policy.HasPorts(protocol):
		return protocol, 0, nil
	}
	n, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || n == 0 {
		return 0, 0, usagef("%q: %q is no port from 1 to 65535; %s", text, portText, form)
	}
	return protocol, uint16(n), nil
}
