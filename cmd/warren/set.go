package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
)

// routingFlags are the flags about what is routed, which up and set share.
type routingFlags struct {
	advertiseRoutes           string
	advertiseExitNode, accept bool
	exitNode                  string
	exitNodeAllowLAN          bool
}

func (r *routingFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.advertiseRoutes, "advertise-routes", "", "subnets behind this device to offer to the network, such as 10.1.0.0/24,10.2.0.0/24; \"\" for none")
	f.BoolVar(&r.advertiseExitNode, "advertise-exit-node", false, "offer to be an exit node: to route what goes to the internet")
	f.BoolVar(&r.accept, "accept-routes", false, "use the subnets that other devices route")
	f.StringVar(&r.exitNode, "exit-node", "", "name or address of the exit node to use; \"\" for none")
	f.BoolVar(&r.exitNodeAllowLAN, "exit-node-allow-lan-access", false, "reach the local networks directly while an exit node is used")
}

// changed returns the settings that the command line mentions.
func (r *routingFlags) changed(cmd *cobra.Command) (localapi.Routing, error) {
	var out localapi.Routing
	mentioned := cmd.Flags().Changed
	if mentioned("advertise-routes") {
		routes, err := parseRoutes(r.advertiseRoutes)
		if err != nil {
			return out, err
		}
		out.AdvertiseRoutes = &routes
	}
	if mentioned("advertise-exit-node") {
		out.AdvertiseExitNode = &r.advertiseExitNode
	}
	if mentioned("accept-routes") {
		out.AcceptRoutes = &r.accept
	}
	if mentioned("exit-node") {
		out.ExitNode = &r.exitNode
	}
	if mentioned("exit-node-allow-lan-access") {
		out.ExitNodeAllowLAN = &r.exitNodeAllowLAN
	}
	return out, nil
}

func parseRoutes(text string) ([]netip.Prefix, error) {
	routes := []netip.Prefix{}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			return nil, usagef("--advertise-routes: %q is not a prefix such as 10.1.0.0/24", part)
		}
		routes = append(routes, p)
	}
	return routes, nil
}

func (m *Main) setCommand() *cobra.Command {
	var (
		routing   routingFlags
		reach     reachFlags
		shieldsUp bool
		asJSON    bool
	)
	cmd := &cobra.Command{
		Use:     "set",
		Short:   "Change settings, and leave the others as they are",
		Long:    "Change the settings that are mentioned, and leave the others as they are. Without any it shows them with --json.",
		Example: "  warren set --advertise-routes 10.1.0.0/24\n  warren set --accept-routes --exit-node gw",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var c localapi.PreferencesChange
			var err error
			if c.Routing, err = routing.changed(cmd); err != nil {
				return err
			}
			if c.Reach, err = reach.changed(cmd); err != nil {
				return err
			}
			if cmd.Flags().Changed("shields-up") {
				c.ShieldsUp = &shieldsUp
			}
			if !asJSON && (c == localapi.PreferencesChange{}) {
				return usagef("nothing to set; see the flags below")
			}
			p, err := m.client().ChangePreferences(cmd.Context(), c)
			if err != nil {
				return err
			}
			if asJSON {
				return m.printJSON(p)
			}
			return nil
		},
	}
	routing.add(cmd)
	reach.add(cmd)
	cmd.Flags().BoolVar(&shieldsUp, "shields-up", false, "refuse all connections that peers open, whatever the rules")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all settings as JSON")
	return cmd
}

func (m *Main) exitNodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "exit-node", Short: "List the exit nodes that this device may use",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List the exit nodes that this device may use",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := m.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if !slices.ContainsFunc(p.Routes, func(r netip.Prefix) bool { return r.Bits() == 0 }) {
					continue
				}
				state := "offline"
				if p.Online {
					state = "online"
				}
				fmt.Fprintf(m.Stdout, "%-16v %-20s %s\n", p.Addresses[0], p.Name, state)
			}
			return nil
		},
	})
	return cmd
}
