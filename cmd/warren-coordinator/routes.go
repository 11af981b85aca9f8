package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// exitNode stands for the default routes of both families.
const exitNode = "exit-node"

func (m *Main) listRoutes() *cobra.Command {
	c := &cobra.Command{
		Use: "routes [NAME]", Short: "List what devices offer to route, and what they may",
		Long: `List what devices offer to route, and what they may. A route is active once the
device offers it and an administrator (approve-routes) or the policy
(autoApprovers) approves it.`,
	}
	c.Args = cobra.MaximumNArgs(1)
	c.RunE = func(c *cobra.Command, args []string) error {
		all, err := m.client().Devices(c.Context())
		if err != nil {
			return err
		}
		var kept []admin.Device
		var rows [][]string
		for _, d := range all {
			if len(args) == 1 && d.Name != args[0] && d.ID != args[0] || len(args) == 0 && len(d.Routes) == 0 {
				continue
			}
			kept = append(kept, d)
			for _, r := range d.Routes {
				rows = append(rows, []string{d.Name, r.Prefix.String(), yes(r.Advertised), orDash(r.Approved), yes(r.Active)})
			}
		}
		if len(args) == 1 && len(kept) == 0 {
			return fmt.Errorf("there is no device %.80q; `warren-coordinator devices list` shows those that there are", args[0])
		}
		return m.print(kept, func() { m.table("DEVICE ROUTE ADVERTISED APPROVED ACTIVE", rows) })
	}
	return c
}

func (m *Main) approveRoutes() *cobra.Command {
	c := &cobra.Command{
		Use: "approve-routes NAME PREFIX...", Short: "Let a device route prefixes, or be an exit node",
		Long: `Let a device route prefixes as soon as it offers them (warren up
--advertise-routes). The word exit-node, or a default route such as 0.0.0.0/0,
stands for everything, in both families.`,
		Example: "  warren-coordinator devices approve-routes office 10.1.0.0/24\n  warren-coordinator devices approve-routes gw exit-node",
	}
	c.Args, c.RunE = cobra.MinimumNArgs(2), m.changeRoutes("approved", func(ctx context.Context, name string, routes []netip.Prefix) (admin.Device, error) {
		return m.client().ApproveRoutes(ctx, name, routes)
	})
	return c
}

func (m *Main) removeRoutes() *cobra.Command {
	c := &cobra.Command{
		Use: "remove-routes NAME PREFIX...", Short: "Take the approval of routes back",
		Long: `Take the approval of routes back: nobody's packets go there over the device any
more. What the policy's autoApprovers approve stays approved.`,
	}
	c.Args, c.RunE = cobra.MinimumNArgs(2), m.changeRoutes("removed", func(ctx context.Context, name string, routes []netip.Prefix) (admin.Device, error) {
		return m.client().RemoveRoutes(ctx, name, routes)
	})
	return c
}

// changeRoutes returns what a command does that changes approvals.
func (m *Main) changeRoutes(done string, change func(context.Context, string, []netip.Prefix) (admin.Device, error)) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		routes, err := parseRoutes(args[1:])
		if err != nil {
			return err
		}
		d, err := change(c.Context(), args[0], routes)
		if err != nil {
			return err
		}
		return m.print(d, func() { fmt.Fprintf(m.Stdout, "%s; %s now: %s\n", done, d.Name, routeTexts(d.Routes)) })
	}
}

func parseRoutes(args []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, list := range args {
		for text := range strings.SplitSeq(list, ",") {
			if text == exitNode {
				out = append(out, registry.Exit()...)
				continue
			}
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("%q is not a prefix such as 10.1.0.0/24, or exit-node", text)
			}
			if p != p.Masked() {
				return nil, fmt.Errorf("%v has bits beyond its length; did you mean %v?", p, p.Masked())
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// routeTexts lists routes with what is still missing for each to be active.
func routeTexts(routes []admin.Route) string {
	var texts []string
	for _, r := range routes {
		switch text := r.Prefix.String(); {
		case r.Active:
			texts = append(texts, text)
		case r.Advertised:
			texts = append(texts, text+" (not approved)")
		default:
			texts = append(texts, text+" (not advertised)")
		}
	}
	return orDash(strings.Join(texts, ", "))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
