package policy

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	language "github.com/warren-overlay/warren/acl/policy"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/compile/report"
)

func checkCommand() *cobra.Command {
	var in input
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Say what is wrong with policy files, and what is probably not meant",
		Args:  usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := in.directory(cmd)
			if err != nil {
				return err
			}
			refused := 0
			answers := map[string]*report.Answer{}
			for _, file := range args {
				text, err := readFile(cmd, file, language.MaxSize)
				if err != nil {
					return err
				}
				answer, _ := report.Compile(text, dir)
				answers[file] = answer
				if !answer.Accepted {
					refused++
				}
				if in.json {
					continue
				}
				printProblems(cmd.OutOrStdout(), file, "error", answer.Errors)
				printProblems(cmd.OutOrStdout(), file, "warning", answer.Warnings)
				if answer.Accepted {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: accepted, %s\n", file, count(len(answer.Warnings), "warning"))
				}
			}
			if in.json {
				cmd.OutOrStdout().Write(report.JSON(answers))
			}
			if refused > 0 {
				return fmt.Errorf("%d of %d files %w", refused, len(args), ErrRefused)
			}
			return nil
		},
	}
	in.inventoryFlag(cmd)
	in.jsonFlag(cmd)
	return cmd
}

func compileCommand() *cobra.Command {
	var in input
	cmd := &cobra.Command{
		Use:   "compile [--inventory FILE] POLICY",
		Short: "Print what every device of an inventory gets, as one JSON object",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := in.directory(cmd)
			if err != nil {
				return err
			}
			text, err := readFile(cmd, args[0], language.MaxSize)
			if err != nil {
				return err
			}
			answer, p := report.Compile(text, dir)
			if p != nil {
				report.Expand(answer, p, dir)
			}
			if _, err := cmd.OutOrStdout().Write(report.JSON(answer)); err != nil {
				return err
			}
			if !answer.Accepted {
				return fmt.Errorf("%s was %w with %s", args[0], ErrRefused, count(len(answer.Errors), "error"))
			}
			return nil
		},
	}
	in.inventoryFlag(cmd)
	return cmd
}

// load compiles a file, or prints why it cannot be.
func (in *input) load(cmd *cobra.Command, file string, dir compile.Directory) (*compile.Policy, error) {
	text, err := readFile(cmd, file, language.MaxSize)
	if err != nil {
		return nil, err
	}
	p, problems := report.Load(text, dir)
	if problems != nil {
		printProblems(cmd.ErrOrStderr(), file, "error", problems)
		return nil, fmt.Errorf("%s was %w", file, ErrRefused)
	}
	return p, nil
}

// directoryAt returns the directory of the inventory, and the time that is asked about.
func (in *input) directoryAt(cmd *cobra.Command) (dir compile.Directory, now time.Time, err error) {
	if now, err = in.time(); err != nil {
		return dir, now, err
	}
	dir, err = in.directory(cmd)
	return dir, now, err
}

func testCommand() *cobra.Command {
	var in input
	cmd := &cobra.Command{
		Use:   "test [--inventory FILE] POLICY...",
		Short: "Run the tests and sshTests of policy files",
		Args:  usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := in.directory(cmd)
			if err != nil {
				return err
			}
			failed := 0
			for _, file := range args {
				p, err := in.load(cmd, file, dir)
				if err != nil {
					return err
				}
				failures := p.RunTests()
				for _, f := range failures {
					fmt.Fprintf(cmd.OutOrStdout(), "%s:%d:%d: %s: %s\n", file, f.Line, f.Column, f.Section, f.Message)
				}
				doc := p.Document()
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %s\n", file, count(len(doc.Tests)+len(doc.SSHTests), "test"), count(len(failures), "failure"))
				failed += len(failures)
			}
			if failed > 0 {
				return fmt.Errorf("test(s) failed: %w", ErrRefused)
			}
			return nil
		},
	}
	in.inventoryFlag(cmd)
	return cmd
}

func explainCommand() *cobra.Command {
	var in input
	var from, to, port string
	cmd := &cobra.Command{
		Use:   "explain --from WHO --to WHAT --port PROTOCOL:PORT [--inventory FILE] POLICY",
		Short: "Say whether a flow is allowed, by which rule, or what is missing",
		Long: `Say whether a flow is allowed, by which rule at which line; or which rule came
nearest and what was missing. WHO and WHAT are a device, a user, a tag, a group,
a host or an address.`,
		Example: "  warren policy explain --from alice@example.com --to db --port tcp:5432 --inventory inventory.json policy.hujson",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if from == "" || to == "" || port == "" {
				return fmt.Errorf("%w: --from, --to and --port are needed", ErrUsage)
			}
			dir, now, err := in.directoryAt(cmd)
			if err != nil {
				return err
			}
			p, err := in.load(cmd, args[0], dir)
			if err != nil {
				return err
			}
			list, err := report.Explain(p, from, to, port, now)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrUsage, err)
			}
			if in.json {
				cmd.OutOrStdout().Write(report.JSON(list))
				return nil
			}
			for i := range list {
				fmt.Fprint(cmd.OutOrStdout(), list[i].Text())
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "who opens the flow")
	cmd.Flags().StringVar(&to, "to", "", "what the flow leads to")
	cmd.Flags().StringVar(&port, "port", "", `protocol and port, such as "tcp:5432", "443" for TCP, or "icmp"`)
	in.inventoryFlag(cmd)
	in.jsonFlag(cmd)
	in.atFlag(cmd)
	return cmd
}

func formatCommand() *cobra.Command {
	var write, check bool
	cmd := &cobra.Command{
		Use:   "format [--write | --check] FILE...",
		Short: "Print policy files in the canonical layout, comments kept",
		Args:  usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if write && check {
				return fmt.Errorf("%w: --write and --check exclude each other", ErrUsage)
			}
			different := 0
			for _, file := range args {
				text, err := readFile(cmd, file, language.MaxSize)
				if err != nil {
					return err
				}
				formatted, err := language.Format(text)
				if err != nil {
					printProblems(cmd.ErrOrStderr(), file, "error", report.Problems(err))
					return fmt.Errorf("%s was %w", file, ErrRefused)
				}
				switch same := bytes.Equal(text, formatted); {
				case check && !same:
					different++
					fmt.Fprintln(cmd.OutOrStdout(), file)
				case check:
				case write && file != "-":
					if !same {
						if err := replaceFile(file, formatted); err != nil {
							return err
						}
					}
				default:
					cmd.OutOrStdout().Write(formatted)
				}
			}
			if different > 0 {
				return fmt.Errorf("%d of %d files are not in the canonical layout: %w; run with --write", different, len(args), ErrRefused)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "write the files instead of printing them")
	cmd.Flags().BoolVar(&check, "check", false, "print the names of files that are not in the canonical layout")
	return cmd
}

// replaceFile writes a file whole or not at all, its mode kept.
func replaceFile(name string, text []byte) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	next := name + ".new"
	if err := os.WriteFile(next, text, info.Mode().Perm()); err != nil {
		return err
	}
	if err := os.Rename(next, name); err != nil {
		os.Remove(next)
		return err
	}
	return nil
}

func diffCommand() *cobra.Command {
	var in input
	cmd := &cobra.Command{
		Use:   "diff OLD NEW --inventory FILE",
		Short: "List who gains and who loses which access",
		Args:  usage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.inventory == "" {
				return fmt.Errorf("%w: --inventory is needed: access is between devices", ErrUsage)
			}
			dir, now, err := in.directoryAt(cmd)
			if err != nil {
				return err
			}
			before, err := in.load(cmd, args[0], dir)
			if err != nil {
				return err
			}
			after, err := in.load(cmd, args[1], dir)
			if err != nil {
				return err
			}
			changes := report.Diff(before, after, now)
			if in.json {
				cmd.OutOrStdout().Write(report.JSON(changes))
				return nil
			}
			fmt.Fprint(cmd.OutOrStdout(), report.Table(changes))
			return nil
		},
	}
	in.inventoryFlag(cmd)
	in.jsonFlag(cmd)
	in.atFlag(cmd)
	return cmd
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
