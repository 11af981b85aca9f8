package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
)

func (m *Main) flowsCommand() *cobra.Command {
	var (
		r      localapi.FlowsRequest
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Show which connections were allowed and denied, and by which rule",
		Long: `Show what this device's packet filter decided: a line for each connection that
it let through, and one for each kind of denial in ten seconds, the oldest
first. The latest 4096 of each are kept, in memory only.

With --follow it goes on: a connection is shown when it is opened, and again
with its totals when it has ended. With --json each line is a JSON object; the
two lines of a connection have the same "id", and the second replaces the first.`,
		Example: `  warren flows --denied
  warren flows --follow --json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e := json.NewEncoder(m.Stdout)
			e.SetEscapeHTML(false)
			err := m.client().Flows(cmd.Context(), r, func(line localapi.FlowLine) error {
				if asJSON {
					return e.Encode(line)
				}
				_, err := fmt.Fprintln(m.Stdout, flowText(line))
				return err
			})
			if r.Follow && cmd.Context().Err() != nil {
				return nil // somebody has seen enough
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.Denied, "denied", false, "leave out what was allowed")
	f.BoolVar(&r.Follow, "follow", false, "go on with what is new")
	f.BoolVar(&asJSON, "json", false, "print a JSON object a line")
	return cmd
}

// flowText is one line for people.
func flowText(line localapi.FlowLine) string {
	if line.Flow == nil {
		var parts []string
		if line.Gap {
			parts = append(parts, "records in between were pushed out by newer ones")
		}
		if line.Lost > 0 {
			parts = append(parts, fmt.Sprintf("%d events were not recorded: too many at a time", line.Lost))
		}
		return "# " + strings.Join(parts, "; ")
	}
	f := line.Flow
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-7s %-3s %s %s > %s", f.Start.Local().Format(time.DateTime), f.Verdict, f.Direction, f.Protocol, endText(f.Source), endText(f.Destination))
	switch {
	case f.Rule != "":
		fmt.Fprintf(&b, ", rule %s", f.Rule)
	case f.Reason == "drop_no_rule":
		b.WriteString(", no rule")
	}
	if f.Reason != "" {
		fmt.Fprintf(&b, " (%s)", f.Reason)
	}
	if f.Others {
		b.WriteString(" and other denials of this peer")
	}
	if f.Attempts > 1 {
		fmt.Fprintf(&b, ", %d times", f.Attempts)
	}
	if f.Would != "" {
		fmt.Fprintf(&b, ", audit: %s by rule %s", f.Would, f.WouldRule)
	}
	if f.Candidate != "" {
		by := "no rule"
		if f.CandidateRule != "" {
			by = "rule " + f.CandidateRule
		}
		fmt.Fprintf(&b, ", candidate %d: %s by %s", f.CandidateEpoch, f.Candidate, by)
	}
	if f.EndReason != "" {
		fmt.Fprintf(&b, "; ended after %v (%s), sent %d packets %d bytes, received %d packets %d bytes",
			f.End.Sub(f.Start).Round(time.Millisecond), f.EndReason, f.SentPackets, f.SentBytes, f.ReceivedPackets, f.ReceivedBytes)
	}
	return b.String()
}

// endText is one side: its name, its address where it has no name, and its
// port.
func endText(p localapi.FlowParty) string {
	name := p.Name
	if name == "" {
		name = p.Addr.String()
	}
	if p.User != "" {
		login, _, _ := strings.Cut(p.User, "@")
		name = login + "@" + name
	}
	if p.Port == 0 {
		return fmt.Sprintf("%s (%v)", name, p.Addr)
	}
	return fmt.Sprintf("%s (%v)", name, netip.AddrPortFrom(p.Addr, p.Port))
}
