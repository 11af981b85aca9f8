package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/policy"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	m := &Main{Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Unsetenv: os.Unsetenv}
	status := m.Run(ctx, os.Args[1:])
	stop()
	os.Exit(status)
}

// Main is the program without its process.
type Main struct {
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Unsetenv       func(string) error

	socket string
}

// Run carries out one command line and returns the exit status.
func (m *Main) Run(ctx context.Context, args []string) int {
	root := m.root()
	root.SetArgs(args)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if errors.Is(err, policy.ErrRefused) || errors.Is(err, errDenied) {
		return 1 // what is wrong has been printed
	}
	var usage *usageError
	if errors.As(err, &usage) || errors.Is(err, policy.ErrUsage) {
		fmt.Fprintf(m.Stderr, "%s: %v\nSee '%s --help'.\n", cmd.CommandPath(), err, cmd.CommandPath())
		return 2
	}
	fmt.Fprintf(m.Stderr, "%s: %s\n", cmd.CommandPath(), m.explain(err))
	var e *localapi.Error
	if errors.As(err, &e) && e.Code == localapi.CodeBadRequest {
		return 2
	}
	return 1
}

// explain says what to do next, for errors that do not say it themselves.
func (m *Main) explain(err error) string {
	switch {
	case errors.Is(err, localapi.ErrNotRunning):
		return fmt.Sprintf("the daemon is not running at %s: start it with `warren daemon`, or name its socket with --socket", m.socket)
	case errors.Is(err, localapi.ErrNotPermitted):
		return fmt.Sprintf("not permitted to speak with the daemon at %s: run this command as root, or as the user that the daemon runs as", m.socket)
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return err.Error()
}

// usageError is an error about the command line itself.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// arguments makes wrong numbers of arguments a usage error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err}
		}
		return nil
	}
}

func (m *Main) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "warren",
		Short: "Connect this machine to a Warren network",
		Long: `Warren is an overlay network in which every packet is filtered by identity.

"warren daemon" is the node; the other commands speak with it over its socket.
On a new machine: start the daemon, then

  warren up --login-server https://warren.example.com --auth-key file:/root/key`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("unknown command %q; did you mean %q?", args[0], near[0])
			}
			return usagef("unknown command %q", args[0])
		},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.PersistentFlags().StringVar(&m.socket, "socket", defaultSocket(m.Getenv), "path of the daemon's socket")
	root.AddCommand(
		m.daemonCommand(), m.upCommand(), m.setCommand(), m.downCommand(), m.logoutCommand(), m.statusCommand(),
		m.ipCommand(), m.pingCommand(), m.netcheckCommand(), m.whoisCommand(), policy.Command(), m.flowsCommand(), m.debugCommand(), m.versionCommand(),
		m.exitNodeCommand(),
	)
	return root
}

func (m *Main) client() *localapi.Client { return localapi.NewClient(m.socket) }
