package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/wire"
)

func (m *Main) version() *cobra.Command {
	return m.printable(&cobra.Command{
		Use: "version", Short: "Print the version", Args: commandline.Arguments(0),
		RunE: func(*cobra.Command, []string) error {
			b := struct {
				commandline.Build
				Protocol uint32 `json:"protocol"`
			}{commandline.CurrentBuild(), uint32(wire.Newest)}
			return m.print(b, func() { fmt.Fprintf(m.Stdout, "%v\n%s, control protocol %d\n", b, b.Go, b.Protocol) })
		},
	})
}
