package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
)

func (m *Main) captureCommand() *cobra.Command {
	var (
		r    localapi.CaptureRequest
		file string
	)
	cmd := &cobra.Command{
		Use:   "capture -w FILE",
		Short: "Write packets inside the tunnel to a file, with what was decided on each",
		Long: `Write the packets that this device's packet filter decides on, in both directions
and as they are inside the tunnel, as pcapng, which Wireshark and tcpdump read.
Each has the verdict, the reason and the rule as its comment; denied packets are
among them.

It goes on until it is interrupted, or until the bounds that are given: an hour
and 256 MiB at most. What cannot be written fast enough is left out, and counted
at the end of a file that was not interrupted. The file holds what people said in confidence.`,
		Example: `  warren debug capture -w denied.pcapng --denied --for 30s
  warren debug capture -w - --peer db | wireshark -k -i -`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if file == "" {
				return usagef("-w FILE is missing; - writes to the standard output")
			}
			if r.Duration < 0 {
				return usagef("--for: a time such as 30s")
			}
			body, err := m.client().Capture(cmd.Context(), r)
			if err != nil {
				return err
			}
			defer body.Close()
			out := m.Stdout
			if file != "-" {
				f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
				if err != nil {
					return fmt.Errorf("opening the file: %w", err)
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				out = f
				fmt.Fprintf(m.Stderr, "capturing to %s; interrupt to end\n", file)
			}
			_, err = io.Copy(out, body)
			if cmd.Context().Err() != nil {
				return nil // somebody has seen enough
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "write", "w", "", "file to write, - for the standard output")
	f.StringVar(&r.Peer, "peer", "", "name or address of the one device whose packets are wanted")
	f.BoolVar(&r.Denied, "denied", false, "leave out what passed")
	f.Uint64VarP(&r.Packets, "count", "c", 0, "end after so many packets")
	f.DurationVar(&r.Duration, "for", 0, "end after this time, such as 30s")
	return cmd
}
