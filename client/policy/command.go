package policy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/compile/report"
)

// ErrUsage is wrapped by errors about the command line itself, for which the
// program ends with status 2.
var ErrUsage = errors.New("wrong usage")

// ErrRefused is wrapped by the errors of a policy that is refused, a test that
// fails and a file that is not in the canonical layout, for which the program
// ends with status 1. What is wrong has been printed.
var ErrRefused = errors.New("refused")

// Status returns the exit status that an error of the command stands for.
func Status(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrUsage):
		return 2
	default:
		return 1
	}
}

// Command returns the command, to be added to the program's root. Output goes
// to the command's own writers. Errors wrap ErrUsage or ErrRefused, or are the
// operating system's about a file.
func Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Check, compile, test, explain, format and compare policy files",
		Long: `Work on policy files offline: no daemon and no coordinator are asked.

A policy file is HuJSON: JSON with comments and trailing commas. Where a command
takes --inventory, the file lists users and devices:

  {"users": [{"id", "name", "email", "role"}],
   "nodes": [{"name", "user", "tags", "ipv4", "ipv6", "advertised_routes", "approved_routes"}]}

FILE may be "-" for standard input.`,
		Args:          usage(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", ErrUsage, err) })
	c.AddCommand(checkCommand(), compileCommand(), testCommand(), explainCommand(), formatCommand(), diffCommand())
	return c
}

func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
		return nil
	}
}

// input is the flags and files that the commands share.
type input struct {
	inventory string
	json      bool
	at        string
}

func (in *input) inventoryFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&in.inventory, "inventory", "", "file that lists users and devices")
}

func (in *input) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&in.json, "json", false, "print JSON")
}

func (in *input) atFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&in.at, "at", "", "the time to judge rules at, such as 2026-12-31T18:00:00Z (default now)")
}

func (in *input) time() (time.Time, error) {
	if in.at == "" {
		return time.Now(), nil
	}
	t, err := time.Parse(time.RFC3339, in.at)
	if err != nil {
		return t, fmt.Errorf("%w: --at %q is not a time; write one such as 2026-12-31T18:00:00Z", ErrUsage, in.at)
	}
	return t, nil
}

func (in *input) directory(cmd *cobra.Command) (compile.Directory, error) {
	if in.inventory == "" {
		return compile.Directory{}, nil
	}
	text, err := readFile(cmd, in.inventory, report.MaxInventorySize)
	if err != nil {
		return compile.Directory{}, err
	}
	dir, err := report.ParseInventory(text)
	if err != nil {
		return dir, fmt.Errorf("%s: %w", in.inventory, err)
	}
	return dir, nil
}

// readFile reads a file, or standard input for "-", one byte beyond the limit
// at most: what is too long is refused by who knows the limit.
func readFile(cmd *cobra.Command, name string, limit int64) ([]byte, error) {
	if name == "-" {
		text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), limit+1))
		if err != nil {
			return nil, fmt.Errorf("reading standard input: %w", err)
		}
		return text, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return text, nil
}

func printProblems(w io.Writer, file, kind string, list []report.Problem) {
	for _, p := range list {
		text := p.Message
		if p.Hint != "" {
			text += "; " + p.Hint
		}
		if p.Line > 0 {
			fmt.Fprintf(w, "%s:%d:%d: %s: %s\n", file, p.Line, p.Column, kind, text)
		} else {
			fmt.Fprintf(w, "%s: %s: %s\n", file, kind, text)
		}
	}
}
