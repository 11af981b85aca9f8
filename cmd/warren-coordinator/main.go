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

	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/store"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m := Main{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Rand: rand.Reader, Hangup: make(chan os.Signal, 1)}
	os.Exit(m.Run(ctx, os.Args[1:]))
}

// Main is the program; tests call it with streams of their own.
type Main struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Rand           io.Reader
	// Hangup has serve say that there is nothing to read again. It is where serve has SIGHUP sent;
	// nil for nowhere.
	Hangup chan os.Signal

	data string
	json bool
}

// Run does what the arguments ask for, until it is done or the context ends,
// and returns the exit status.
func (m *Main) Run(ctx context.Context, args []string) int {
	p := commandline.Program{Root: m.root(), Packages: []string{"admin: ", "server: ", "store: ", "audit: "}, Hint: m.hint}
	p.Root.SetIn(m.Stdin)
	p.Root.SetOut(m.Stdout)
	return p.Run(ctx, args, m.Stderr)
}

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
	root := commandline.Group(&cobra.Command{
		Use:   "warren-coordinator",
		Short: "Coordinate a Warren network",
		Long: `Run a network's coordinator, and administer it.

The first start makes the network:

  warren-coordinator serve --data DIR --listen 0.0.0.0:8080`,
		Version: commandline.CurrentBuild().String(),
	})
	root.PersistentFlags().StringVar(&m.data, "data", "/var/lib/warren-coordinator", "data directory")
	root.AddCommand(m.serve(), m.status(), m.users(), m.keys(), m.devices(), m.policy(), m.settings(), m.audit(), m.version())
	return root
}
