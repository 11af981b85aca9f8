package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/coordinator/wire"
)

// build is which program this is.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Protocol uint32 `json:"protocol"`
}

// String returns version and commit in one line.
func (b build) String() string {
	s := b.Version
	if b.Commit != "" {
		s += " (" + b.Commit[:min(12, len(b.Commit))] + ")"
	}
	return s
}

func version() build {
	b := build{Version: "devel", Go: runtime.Version(), Protocol: uint32(wire.Newest)}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (m *Main) version() *cobra.Command {
	c := &cobra.Command{Use: "version", Short: "Print the version"}
	c.Args, c.RunE = run(0, func(*cobra.Command, []string) error {
		b := version()
		return m.print(b, func() { fmt.Fprintf(m.Stdout, "%v\n%s, control protocol %d\n", b, b.Go, b.Protocol) })
	})
	return m.printable(c)
}
