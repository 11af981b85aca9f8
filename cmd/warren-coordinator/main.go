package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/store"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m := Main{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Rand: rand.Reader}
	os.Exit(m.Run(ctx, os.Args[1:]))
}

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Main is the program; tests call it with streams of their own.
type Main struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Rand           io.Reader

	data string
	json bool
}

// Run does what the arguments ask for, until it is done or the context ends,
// and returns the exit status.
func (m *Main) Run(ctx context.Context, args []string) int {
	root := m.root()
	root.SetArgs(args)
	root.SetIn(m.Stdin)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(m.Stderr, "warren-coordinator: %s\n", plain(err))
	if hint := m.hint(err); hint != "" {
		fmt.Fprintln(m.Stderr, hint)
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(m.Stderr, "run '%s --help' for what it takes\n", usage.command.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// plain returns an error's text without the name of the package in front, which
// is for those who read code.
func plain(err error) string {
	text := err.Error()
	for _, name := range []string{"admin: ", "server: ", "store: ", "audit: "} {
		text = strings.TrimPrefix(text, name)
	}
	return text
}

// usageError is a command line that is wrong.
type usageError struct {
	command *cobra.Command
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// hint says what to do about an error, "" where the error says it already.
func (m *Main) hint(err error) string {
	switch {
	case errors.Is(err, os.ErrPermission):
		return "run it as the user who runs the coordinator"
	case errors.Is(err, admin.ErrNotRunning):
		return fmt.Sprintf("start it with: warren-coordinator serve --data %s", m.data)
	case errors.Is(err, store.ErrLocked):
		return "stop that one first, or choose another --data"
	case errors.Is(err, store.ErrNoNetwork):
		return fmt.Sprintf("is --data right? a network begins with: warren-coordinator serve --data %s", m.data)
	}
	return ""
}

func (m *Main) root() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "warren-coordinator",
		Short: "Coordinate a Warren network",
		Long: `Run a network's coordinator, and administer it.

The first start makes the network:

  warren-coordinator serve --data DIR --listen 0.0.0.0:8080`,
		Version:       version().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
	})
	root.PersistentFlags().StringVar(&m.data, "data", "/var/lib/warren-coordinator", "data directory")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{c, err} })
	root.AddCommand(m.serve(), m.status(), m.users(), m.keys(), m.devices(), m.policy(), m.settings(), m.audit(), m.version())
	return root
}

// group is a command that only has commands below it.
func group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return &usageError{c, fmt.Errorf("there is no command %q", c.CommandPath()+" "+args[0])}
		}
		return &usageError{c, errors.New("say what to do: give one of its commands")}
	}
	return c
}

// run makes a command's action of f, with exactly n arguments.
func run(n int, f func(c *cobra.Command, args []string) error) (cobra.PositionalArgs, func(*cobra.Command, []string) error) {
	check := func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return &usageError{c, fmt.Errorf("it takes %s, not %d", counted(n), len(args))}
		}
		return nil
	}
	return check, f
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
