package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
)

func (m *Main) netcheckCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "netcheck",
		Short: "Measure this device's network: UDP, NAT, relays",
		Long: `Have the daemon ask its STUN servers and measure its relays anew, which takes some
seconds, and show what this device's network is like: whether UDP works, the addresses it is seen under, whether the NAT takes
another port for each destination, and how far the relays are. What is wrong,
and what to do about it, stands below.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := m.client().Netcheck(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return m.printJSON(r)
			}
			m.printNetcheck(r)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (m *Main) printNetcheck(r localapi.NetcheckReply) {
	line := func(name, value string) { fmt.Fprintf(m.Stdout, "\t* %s: %s\n", name, value) }
	fmt.Fprintln(m.Stdout, "Report:")
	line("UDP", fmt.Sprint(r.UDP))
	line("IPv4", yesAddress(r.IPv4))
	line("IPv6", yesAddress(r.IPv6))
	line("MappingVariesByDestIP", knownText(r.MappingVariesByDestIP))
	line("PortMapping", portMappingText(r.PortMapping))
	for _, p := range r.IPv6Pinholes {
		line("IPv6Pinhole", pinholeText(p))
	}
	line("CaptivePortal", knownText(r.CaptivePortal))
	nearest := "unknown"
	for _, relay := range r.Relays {
		if relay.Name == r.NearestRelay {
			nearest = relayText(relay.Name, relay.Region)
		}
	}
	line("Nearest relay", nearest)
	line("Relay latency", "")
	for _, relay := range r.Relays {
		fmt.Fprintf(m.Stdout, "\t\t- %s: %s\n", relayName(relay), latencyText(relay))
	}
	if len(r.Hints) > 0 {
		fmt.Fprintln(m.Stdout, "\n# What to do:")
		for _, hint := range r.Hints {
			fmt.Fprintln(m.Stdout, "#   "+hint)
		}
	}
}

func yesAddress(a netip.AddrPort) string {
	if !a.IsValid() {
		return "no"
	}
	return "yes, " + a.String()
}

func knownText(b *bool) string {
	if b == nil {
		return "unknown"
	}
	return fmt.Sprint(*b)
}

// relayName is a relay's name, with what it is and where.
func relayName(r localapi.Relay) string {
	name := relayText(r.Name, r.Region)
	if r.Home {
		name += ", home"
	}
	return name
}

// portMappingText says how the gateway forwards the port, or why not.
func portMappingText(p localapi.PortMapping) string {
	switch {
	case p.External.IsValid():
		return fmt.Sprintf("%s, %v", p.Protocol, p.External)
	case p.Error != "":
		return p.State + ": " + p.Error
	}
	return p.State
}

// pinholeText says whether the gateway lets in what comes to an IPv6 address.
func pinholeText(p localapi.PortMapping) string {
	if p.External.IsValid() {
		return portMappingText(p)
	}
	return fmt.Sprintf("%v: %s", p.Internal, portMappingText(p))
}

// staleRTT is from which age on a round trip is shown with it. What a check of the
// network finds is younger: it measures what is older than 10 s, and takes 12 s at most.
const staleRTT = 30 * time.Second

// latencyText says how far a relay is, or why that is not known.
func latencyText(r localapi.Relay) string {
	rtt := roundRTT(r.RTT).String()
	if r.RTTAge >= staleRTT {
		rtt += fmt.Sprintf(", measured %v ago", r.RTTAge.Round(time.Second))
	}
	switch {
	case r.Failed && r.RTT > 0:
		return "no connection: " + r.Error + "; its STUN server answers in " + rtt
	case r.Failed:
		return "no connection: " + r.Error
	case r.RTT > 0:
		return rtt
	case r.Connected:
		return "connected"
	case r.Error == "":
		return "not measured yet"
	}
	return "no connection: " + r.Error
}

// roundRTT leaves a round trip the digits that mean something.
func roundRTT(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

func (m *Main) debugPathsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "paths NAME|IP",
		Short: "Show every way to a device, and why packets go as they do",
		Long: `Show every address at which a device was looked for: who named it, whether it
answers, its round trip, when it was last heard, and why packets go there or do
not. Nothing is sent; a device that no packets were exchanged with lately is not
looked for, so send some with "warren ping" first.

An address is used only after the device answered a challenge from it.`,
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: m.completePeer,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := m.client().Paths(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return m.printJSON(r)
			}
			return m.printPaths(r)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (m *Main) printPaths(r localapi.PathsReply) error {
	ago := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return r.Time.Sub(t).Round(100*time.Millisecond).String() + " ago"
	}
	fmt.Fprintf(m.Stdout, "%s (%v): %s", r.Name, r.Addr, pathText(r.Path))
	if !r.Since.IsZero() {
		fmt.Fprintf(m.Stdout, ", since %s", ago(r.Since))
	}
	fmt.Fprintf(m.Stdout, "\nwhy: %s\n", r.Why)
	if r.NotDirect != "" {
		fmt.Fprintf(m.Stdout, "why not direct: %s\n", r.NotDirect)
	}
	if r.Guessing != "" {
		fmt.Fprintf(m.Stdout, "guessing a port: %s\n", r.Guessing)
	}
	fmt.Fprintf(m.Stdout, "last handshake: %s", ago(r.LastHandshake))
	if r.UnansweredHandshakes > 0 {
		fmt.Fprintf(m.Stdout, ", %d unanswered since", r.UnansweredHandshakes)
	}
	fmt.Fprintln(m.Stdout, "\n\nAddresses of the device:")
	w := tabwriter.NewWriter(m.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ADDRESS\tSOURCE\tSTATE\tRTT\tMTU\tHEARD\tWHY")
	for _, c := range r.Candidates {
		rtt := "-"
		if c.RTT > 0 {
			rtt = roundRTT(c.RTT).String()
		}
		mtu := "-"
		if c.MTU > 0 {
			mtu = strconv.Itoa(c.MTU)
		}
		fmt.Fprintf(w, "%v\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Addr, strings.Join(c.Sources, ","), c.State, rtt, mtu, ago(c.Heard), c.Why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(m.Stdout, "\nRelays:")
	for _, relay := range r.Relays {
		fmt.Fprintf(m.Stdout, "  %s: %s%s\n", relayName(relay), latencyText(relay), barText(r, relay.Name))
	}
	fmt.Fprintln(m.Stdout, "\nThis device:")
	for _, e := range r.Endpoints {
		fmt.Fprintf(m.Stdout, "  %v\n", e)
	}
	fmt.Fprintf(m.Stdout, "  MappingVariesByDestIP: %s\n  PortMapping: %s\n", knownText(r.MappingVariesByDestIP), portMappingText(r.PortMapping))
	for _, p := range r.IPv6Pinholes {
		fmt.Fprintf(m.Stdout, "  IPv6Pinhole: %s\n", pinholeText(p))
	}
	return nil
}

// barText says that a relay carries no data to the device, empty where it is not
// known to do so.
func barText(r localapi.PathsReply, relay string) string {
	for _, b := range r.BarredRelays {
		if b.Name == relay {
			return fmt.Sprintf("; it answers and carries no data to this device, found %v ago: not used for another %v where there is another relay",
				r.Time.Sub(b.Since).Round(time.Second), b.Until.Sub(r.Time).Round(time.Second))
		}
	}
	return ""
}

// completePeer offers the names of peers for a first argument.
func (m *Main) completePeer(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s, err := m.client().Status(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range s.Peers {
		if strings.HasPrefix(p.Name, prefix) {
			names = append(names, p.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
