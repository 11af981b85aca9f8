package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
)

// version returns the version of this program, and the commit that was built.
func version() string { return commandline.CurrentBuild().String() }

func (m *Main) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program and of the daemon",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			daemon := ""
			if s, err := m.client().Status(cmd.Context()); err == nil {
				daemon = s.Version
			}
			if asJSON {
				return m.printJSON(map[string]string{"version": version(), "daemon": daemon, "go": runtime.Version(), "system": runtime.GOOS + "/" + runtime.GOARCH})
			}
			fmt.Fprintf(m.Stdout, "warren %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			if daemon != "" && daemon != version() {
				fmt.Fprintf(m.Stdout, "the daemon runs %s: restart it to use this version\n", daemon)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}
