package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/acl/authority"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m := Main{Stdout: os.Stdout, Stderr: os.Stderr, Rand: rand.Reader}
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
	Stdout, Stderr io.Writer
	Rand           io.Reader
}

// Run does what the arguments ask for, until it is done or the context ends,
// and returns the exit status.
func (m *Main) Run(ctx context.Context, args []string) int {
	root := &cobra.Command{
		Use:   "warren-relay",
		Short: "Relay packets of a Warren network",
		Long: `Relay packets between nodes of one network that find no direct path. What it
relays is sealed between the nodes.

  warren-relay serve --name NAME --coordinator URL --fingerprint FINGERPRINT`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{c, fmt.Errorf("there is no command %q", c.CommandPath()+" "+args[0])}
			}
			return &usageError{c, errors.New("say what to do: give one of its commands")}
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{c, err} })
	root.AddCommand(m.serve(), &cobra.Command{
		Use: "version", Short: "Print the version", Args: none,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(m.Stdout, "%s\n%s\n", version(), runtime.Version())
			return err
		},
	})
	root.SetArgs(args)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(m.Stderr, "warren-relay: %s\n", plain(err))
	if errors.Is(err, authority.ErrFingerprint) {
		fmt.Fprintln(m.Stderr, "is --fingerprint what `warren-coordinator status` shows, and --coordinator that network's?")
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
func plain(err error) string { return strings.TrimPrefix(err.Error(), "relayserver: ") }

// usageError is a command line that is wrong.
type usageError struct {
	command *cobra.Command
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// none is cobra.PositionalArgs for a command without arguments.
func none(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &usageError{c, fmt.Errorf("it takes no arguments, not %d", len(args))}
	}
	return nil
}

// version returns version and commit in one line.
func version() string {
	text, commit := "devel", ""
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return text
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		text = v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			commit = " (" + s.Value[:min(12, len(s.Value))] + ")"
		}
	}
	return text + commit
}
