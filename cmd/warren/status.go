package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/localapi"
)

func (m *Main) statusCommand() *cobra.Command {
	var asJSON, active bool
	peers, self := true, true
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this device, its peers and what is wrong",
		Long: `Show this device and its peers, one a line: address, name, owner, system, and
how packets go: "active" where there were some lately, with the path; "direct" and
an address, or "relay", its name and its region; then the last handshake, and the
bytes sent and received, where there were any. What is wrong stands below, with
stable codes.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := m.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if !peers {
				s.Peers = []localapi.Node{}
			}
			if asJSON {
				return m.printJSON(s)
			}
			return m.printStatus(s, self, active)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print everything as JSON")
	f.BoolVar(&peers, "peers", true, "show peers")
	f.BoolVar(&self, "self", true, "show this device")
	f.BoolVar(&active, "active", false, "show only peers that packets were exchanged with lately")
	return cmd
}

func (m *Main) printStatus(s localapi.Status, self, active bool) error {
	switch s.State {
	case localapi.Connected:
	case localapi.Stopped:
		fmt.Fprintln(m.Stdout, "Stopped. To connect: warren up")
	case localapi.NeedsLogin:
		fmt.Fprintln(m.Stdout, "Not a member of a network. To join: warren up --login-server URL --auth-key KEY")
	case localapi.Connecting, localapi.Offline, localapi.Revoked, localapi.Expired, localapi.Suspended:
		line := "State: " + string(s.State)
		if s.Reason != "" {
			line += " (" + s.Reason + ")"
		}
		fmt.Fprintln(m.Stdout, line)
	}
	if s.Self != nil && s.State != localapi.Stopped {
		w := tabwriter.NewWriter(m.Stdout, 0, 0, 2, ' ', 0)
		if self {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t-\n", firstAddress(*s.Self), s.Self.Name, owner(*s.Self), s.Self.OS)
		}
		for _, p := range s.Peers {
			if active && !p.Active {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", firstAddress(p), p.Name, owner(p), orDash(p.OS), activity(p))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(s.Denied) > 0 && s.State != localapi.Stopped {
		fmt.Fprintln(m.Stdout, "\n# Denied lately (`warren debug why` says why, and what is allowed):")
		for i := range s.Denied {
			fmt.Fprintf(m.Stdout, "#   %s\n", flowText(localapi.FlowLine{Flow: &s.Denied[i]}))
		}
	}
	m.printHealth(s.Health)
	return nil
}

// activity is the last column of a peer's line.
func activity(n localapi.Node) string {
	var parts []string
	switch {
	case n.Active:
		parts = append(parts, "active; "+pathText(n.Path))
	case n.Online:
		parts = append(parts, "idle")
	default:
		parts = append(parts, "offline")
	}
	if !n.LastHandshake.IsZero() {
		parts = append(parts, fmt.Sprintf("handshake %v ago", max(0, time.Since(n.LastHandshake)).Round(time.Second)))
	}
	if n.TxBytes+n.RxBytes > 0 {
		parts = append(parts, fmt.Sprintf("tx %d rx %d", n.TxBytes, n.RxBytes))
	}
	return strings.Join(parts, ", ")
}

// pathText is a path as conventions have it.
func pathText(p localapi.Path) string {
	switch p.Kind {
	case "direct":
		return "direct " + p.Addr.String()
	case "relay":
		return "relay " + relayText(p.Relay, p.Region)
	}
	return "no path"
}

// relayText is what people call a relay everywhere: its name, by which it is told
// from others of its region, and where it stands, if anybody said.
func relayText(name, region string) string {
	if region == "" {
		return name
	}
	return name + " (" + region + ")"
}

// owner is a login with its domain cut off, or what a tagged device has in its
// place.
func owner(n localapi.Node) string {
	if n.Tagged {
		return "tagged-devices"
	}
	name, _, _ := strings.Cut(n.User, "@")
	return orDash(name) + "@"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func firstAddress(n localapi.Node) netip.Addr {
	if len(n.Addresses) == 0 {
		return netip.Addr{}
	}
	return n.Addresses[0]
}

func (m *Main) printHealth(facts []health.Fact) {
	if len(facts) == 0 {
		return
	}
	fmt.Fprintln(m.Stdout, "\n# Health:")
	for _, f := range facts {
		fmt.Fprintf(m.Stdout, "#   %s [%s]: %s\n", f.Severity, f.Code, f.Text)
	}
}

func (m *Main) printJSON(v any) error {
	e := json.NewEncoder(m.Stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func (m *Main) ipCommand() *cobra.Command {
	var four, six, asJSON bool
	cmd := &cobra.Command{
		Use:               "ip [NAME]",
		Short:             "Show the overlay addresses of this device or of a peer",
		Args:              arguments(cobra.MaximumNArgs(1)),
		ValidArgsFunction: m.completePeer,
		RunE: func(cmd *cobra.Command, args []string) error {
			if four && six {
				return usagef("-4 and -6 leave nothing to show; give one of them")
			}
			s, err := m.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			node, err := pick(s, args)
			if err != nil {
				return err
			}
			shown := []netip.Addr{}
			for _, a := range node.Addresses {
				if (!four || a.Is4()) && (!six || a.Is6()) {
					shown = append(shown, a)
				}
			}
			if len(shown) == 0 {
				return fmt.Errorf("%s has no address of that family", node.Name)
			}
			if asJSON {
				return m.printJSON(shown)
			}
			for _, a := range shown {
				fmt.Fprintln(m.Stdout, a)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&four, "ipv4", "4", false, "IPv4 only")
	f.BoolVarP(&six, "ipv6", "6", false, "IPv6 only")
	f.BoolVar(&asJSON, "json", false, "print a JSON list")
	return cmd
}

// pick returns the device that args name: this one where they name none.
func pick(s localapi.Status, args []string) (localapi.Node, error) {
	if s.Self == nil {
		return localapi.Node{}, fmt.Errorf("this device is not a member of a network; join with: warren up --login-server URL --auth-key KEY")
	}
	if len(args) == 0 || args[0] == s.Self.Name {
		return *s.Self, nil
	}
	for _, p := range s.Peers {
		if p.Name == args[0] {
			return p, nil
		}
	}
	return localapi.Node{}, fmt.Errorf("%q is no device that this one may see; `warren status` lists them", args[0])
}
