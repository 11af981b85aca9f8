package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/admin"
)

func (m *Main) policyAudit() *cobra.Command {
	audit := commandline.Group(&cobra.Command{
		Use: "audit", Short: "Try a whole policy beside the one in force",
		Long: `Try a whole policy beside the one in force. Each device computes what the
candidate would make of every new connection and of every one that is denied, and
says so in its records (warren flows) and in warren debug why; nothing else
changes. Who sees whom, too, stays as it is in the policy in force.`,
	})
	var ifEpoch uint64
	set := &cobra.Command{
		Use: "set FILE", Short: "Put a policy into audit, in place of the one that is in it",
		Long: `Put the policy in FILE, or on standard input where FILE is "-", into audit. It is
checked as policy set checks it.`,
		Example: "  warren-coordinator --data DIR policy audit set next.hujson",
	}
	set.Flags().Uint64Var(&ifEpoch, "if-epoch", 0, "refuse unless this is the epoch of the candidate in audit")
	set.Args = commandline.Arguments(1)
	set.RunE = func(c *cobra.Command, args []string) error {
		text, err := m.policyText(args[0])
		if err != nil {
			return err
		}
		p, err := m.client().SetCandidate(c.Context(), admin.SetPolicy{Text: text, IfEpoch: ifEpoch})
		if err != nil {
			return err
		}
		m.warnings(p.Warnings)
		return m.print(p, func() {
			fmt.Fprintf(m.Stdout, "candidate epoch %d is in audit; what it would change is in `warren flows` of the devices\n", p.Epoch)
		})
	}

	get := &cobra.Command{Use: "get", Short: "Print the policy in audit"}
	get.Args = commandline.Arguments(0)
	get.RunE = func(c *cobra.Command, _ []string) error {
		p, err := m.client().Candidate(c.Context())
		if err != nil {
			return err
		}
		if p.Error != "" {
			fmt.Fprintln(m.Stderr, "warning: no device is told of it:", p.Error)
		}
		return m.print(p, func() { fmt.Fprint(m.Stdout, p.Text) })
	}

	clear := &cobra.Command{Use: "clear", Short: "End the audit; the policy in force stays"}
	clear.Args = commandline.Arguments(0)
	clear.RunE = func(c *cobra.Command, _ []string) error {
		p, err := m.client().ClearCandidate(c.Context())
		if err != nil {
			return err
		}
		return m.print(p, func() { fmt.Fprintf(m.Stdout, "candidate epoch %d is not in audit any more\n", p.Epoch) })
	}

	promote := &cobra.Command{
		Use: "promote", Short: "Put the policy in audit in force",
		Long: `Put the policy in audit in force, and end the audit, in one step. It is checked
again as policy set checks it.`,
	}
	promote.Flags().Uint64Var(&ifEpoch, "if-epoch", 0, "refuse unless this is the epoch of the candidate in audit")
	promote.Args = commandline.Arguments(0)
	promote.RunE = func(c *cobra.Command, _ []string) error {
		p, err := m.client().PromoteCandidate(c.Context(), admin.PromoteCandidate{IfEpoch: ifEpoch})
		if err != nil {
			return err
		}
		m.warnings(p.Warnings)
		return m.print(p, func() { fmt.Fprintf(m.Stdout, "policy epoch %d is in force\n", p.Epoch) })
	}
	audit.AddCommand(m.printable(set), m.printable(get), m.printable(clear), m.printable(promote))
	return audit
}
