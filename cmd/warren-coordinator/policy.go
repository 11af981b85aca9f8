package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/registry"
)

func (m *Main) policy() *cobra.Command {
	policy := commandline.Group(&cobra.Command{Use: "policy", Short: "Get, check, set and audit the policy"})

	get := &cobra.Command{Use: "get", Short: "Print the policy in force"}
	get.Args = commandline.Arguments(0)
	get.RunE = func(c *cobra.Command, _ []string) error {
		p, err := m.client().Policy(c.Context())
		if err != nil {
			return err
		}
		return m.print(p, func() { fmt.Fprint(m.Stdout, p.Text) })
	}

	var ifEpoch uint64
	set := &cobra.Command{
		Use: "set FILE", Short: "Replace the policy",
		Long: `Replace the policy by the text in FILE, or on standard input where FILE is "-".
A text that does not parse, names who does not exist, or whose own tests fail is
refused, and the policy in force stays.`,
	}
	set.Flags().Uint64Var(&ifEpoch, "if-epoch", 0, "refuse unless this is the epoch of the policy in force")
	set.Args = commandline.Arguments(1)
	set.RunE = func(c *cobra.Command, args []string) error {
		text, err := m.policyText(args[0])
		if err != nil {
			return err
		}
		p, err := m.client().SetPolicy(c.Context(), admin.SetPolicy{Text: text, IfEpoch: ifEpoch})
		if err != nil {
			return err
		}
		m.warnings(p.Warnings)
		return m.print(p, func() { fmt.Fprintf(m.Stdout, "policy epoch %d is in force\n", p.Epoch) })
	}

	check := &cobra.Command{Use: "check FILE", Short: "Say whether a policy could be set, and change nothing"}
	check.Args = commandline.Arguments(1)
	check.RunE = func(c *cobra.Command, args []string) error {
		text, err := m.policyText(args[0])
		if err != nil {
			return err
		}
		answer, err := m.client().CheckPolicy(c.Context(), text)
		if err != nil {
			return err
		}
		m.warnings(answer.Warnings)
		return m.print(answer, func() { fmt.Fprintln(m.Stdout, "the policy could be set") })
	}
	policy.AddCommand(m.printable(get), m.printable(set), m.printable(check), m.policyAudit())
	return policy
}

// policyText reads a policy file.
func (m *Main) policyText(name string) (string, error) {
	in := m.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", fmt.Errorf("reading the policy: %w", errors.Unwrap(err))
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, registry.MaxPolicy+1))
	if err != nil {
		return "", fmt.Errorf("reading the policy: %w", err)
	}
	return string(text), nil
}
