package commandline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Exit statuses.
const (
	Done   = 0 // it did what was asked
	Failed = 1 // it could not
	Usage  = 2 // the command line was wrong, and nothing was done
)

// UsageError is a command line that is wrong.
type UsageError struct {
	// Command is the command whose help tells what is right.
	Command *cobra.Command
	Err     error
}

// Error returns the text of Err.
func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *UsageError) Unwrap() error { return e.Err }

// Wrong returns a UsageError: err is what is wrong with the command line of c.
func Wrong(c *cobra.Command, err error) error { return &UsageError{c, err} }

// Program is a program of one command or many.
type Program struct {
	Root *cobra.Command
	// Packages are the names in front of errors' texts, such as "store: ", that are
	// for those who read code, and are not printed.
	Packages []string
	// Hint says what to do about an error, "" where its text says that; nil for no
	// hints.
	Hint func(error) string
}

// Run does what the arguments ask for, until it is done or the context ends, and
// returns the exit status. What went wrong is written to stderr.
func (p *Program) Run(ctx context.Context, args []string, stderr io.Writer) int {
	p.Root.SilenceErrors, p.Root.SilenceUsage = true, true
	p.Root.SetFlagErrorFunc(Wrong)
	p.Root.SetArgs(args)
	p.Root.SetErr(stderr)
	err := p.Root.ExecuteContext(ctx)
	if err == nil {
		return Done
	}
	text := err.Error()
	for _, name := range p.Packages {
		text = strings.TrimPrefix(text, name)
	}
	fmt.Fprintf(stderr, "%s: %s\n", p.Root.Name(), text)
	if p.Hint != nil {
		if hint := p.Hint(err); hint != "" {
			fmt.Fprintln(stderr, hint)
		}
	}
	var usage *UsageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "run '%s --help' for what it takes\n", usage.Command.CommandPath())
		return Usage
	}
	return Failed
}

// Group makes c a command that only has commands below it, and returns it.
func Group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return Wrong(c, fmt.Errorf("there is no command %q", c.CommandPath()+" "+args[0]))
		}
		return Wrong(c, errors.New("say what to do: give one of its commands"))
	}
	return c
}

// Arguments checks that a command is given exactly n arguments.
func Arguments(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return Wrong(c, fmt.Errorf("it takes %s, not %d", counted(n), len(args)))
		}
		return nil
	}
}

func counted(n int) string {
	switch n {
	case 0:
		return "no arguments"
	case 1:
		return "one argument"
	case 2:
		return "two arguments"
	}
	return fmt.Sprint(n, " arguments")
}
