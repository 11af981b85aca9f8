package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/cmd/internal/commandline"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m := Main{Stdout: os.Stdout, Stderr: os.Stderr, Rand: rand.Reader, Hangup: make(chan os.Signal, 1)}
	os.Exit(m.Run(ctx, os.Args[1:]))
}

// Main is the program; tests call it with streams of their own.
type Main struct {
	Stdout, Stderr io.Writer
	Rand           io.Reader
	// Hangup has serve read its files again. It is where serve has SIGHUP sent;
	// nil for nowhere.
	Hangup chan os.Signal
}

// Run does what the arguments ask for, until it is done or the context ends,
// and returns the exit status.
func (m *Main) Run(ctx context.Context, args []string) int {
	root := commandline.Group(&cobra.Command{
		Use:   "warren-relay",
		Short: "Relay packets of a Warren network",
		Long: `Relay packets between nodes of one network that find no direct path. What it
relays is sealed between the nodes.

  warren-relay serve --name NAME --coordinator URL --fingerprint FINGERPRINT`,
		Version: commandline.CurrentBuild().String(),
	})
	root.AddCommand(m.serve(), &cobra.Command{
		Use: "version", Short: "Print the version", Args: commandline.Arguments(0),
		RunE: func(*cobra.Command, []string) error {
			b := commandline.CurrentBuild()
			_, err := fmt.Fprintf(m.Stdout, "%v\n%s\n", b, b.Go)
			return err
		},
	})
	root.SetOut(m.Stdout)
	p := commandline.Program{Root: root, Packages: []string{"relayserver: "}, Hint: hint}
	return p.Run(ctx, args, m.Stderr)
}

// hint says what to do about an error, "" where the error says it already.
func hint(err error) string {
	if errors.Is(err, authority.ErrFingerprint) {
		return "is --fingerprint what `warren-coordinator status` shows, and --coordinator that network's?"
	}
	return ""
}
