package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
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
		Long: `Send ICMP echo requests to a device through the tunnel, one a second, and show
the path that each request took: over a relay, or directly. Where the path was in
doubt or changed before the answer came, the others are shown, too. The rules of both devices
apply: what they refuse is not answered.

It ends with the first answer to a ping over a direct path, or after -c pings. The exit
status is 0 where there was an answer. With --until-direct on the command line
it is 0 only where there was one to a ping over a direct path, and the reason why there
was none is printed otherwise. With --until-direct=false all pings are sent.`,
		Example: `  warren ping -c 1 db
  warren ping --until-direct --timeout 2s db`,
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: m.completePeer,
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 {
				return usagef("-c: a number from 1")
			}
			if timeout <= 0 {
				return usagef("--timeout: a time above 0, such as 2s")
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
				if untilDirect && direct(reply) {
					return nil
				}
			}
			if answered == 0 {
				return last
			}
			if untilDirect && cmd.Flags().Changed("until-direct") {
				return m.notDirect(ctx, args[0], count)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVarP(&count, "count", "c", 10, "how many pings at most")
	f.BoolVar(&untilDirect, "until-direct", true, "stop at the first answer over a direct path; where it is given, fail without one")
	f.DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for each answer")
	f.BoolVar(&asJSON, "json", false, "print each answer as a line of JSON")
	return cmd
}

// notDirect says why there is no direct path after so many pings.
func (m *Main) notDirect(ctx context.Context, target string, count int) error {
	why := ""
	// The daemon may not say it; that there is no path holds all the same.
	if paths, err := m.client().Paths(ctx, target); err == nil && paths.NotDirect != "" {
		why = ": " + paths.NotDirect
	}
	return fmt.Errorf("no direct path to %s after %d pings%s. `warren debug paths %s` shows every address", target, count, why, target)
}

func (m *Main) printPong(r localapi.PingReply, asJSON bool) error {
	if asJSON {
		return m.printJSON(r)
	}
	text := fmt.Sprintf("pong from %s (%v) via %s in %v", r.Name, r.Addr, viaText(r.Path), roundRTT(r.RTT))
	if len(r.Others) > 0 {
		var others []string
		for _, p := range r.Others {
			others = append(others, viaText(p))
		}
		text += "; or via " + strings.Join(others, ", ") + ", as the path changed or was in doubt"
	}
	_, err := fmt.Fprintln(m.Stdout, text)
	return err
}

// viaText is a path as the line of a ping has it.
func viaText(p localapi.Path) string {
	if p.Kind == "direct" {
		return p.Addr.String()
	}
	return pathText(p)
}

// direct reports whether a ping went directly, and for certain.
func direct(r localapi.PingReply) bool {
	for _, p := range append([]localapi.Path{r.Path}, r.Others...) {
		if p.Kind != "direct" {
			return false
		}
	}
	return true
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
