package commandline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var errLocked = errors.New("store: it is locked")

func program() *Program {
	root := Group(&cobra.Command{Use: "sample"})
	add := func(name string, n int, err error) *cobra.Command {
		c := &cobra.Command{Use: name, Args: Arguments(n), RunE: func(*cobra.Command, []string) error { return err }}
		c.Flags().Int("count", 0, "how many")
		return c
	}
	root.AddCommand(
		add("none", 0, nil), add("one", 1, nil), add("pair", 2, nil), add("five", 5, nil),
		add("locked", 0, fmt.Errorf("admin: %w", errLocked)),
	)
	return &Program{Root: root, Packages: []string{"admin: ", "store: "}, Hint: func(err error) string {
		if errors.Is(err, errLocked) {
			return "stop the other one"
		}
		return ""
	}}
}

func TestRun(t *testing.T) {
	for args, want := range map[string]struct {
		status int
		stderr string
	}{
		"none":           {Done, ""},
		"one a":          {Done, ""},
		"none a":         {Usage, "sample: it takes no arguments, not 1\nrun 'sample none --help' for what it takes\n"},
		"one":            {Usage, "sample: it takes one argument, not 0\nrun 'sample one --help' for what it takes\n"},
		"pair a":         {Usage, "sample: it takes two arguments, not 1\nrun 'sample pair --help' for what it takes\n"},
		"five":           {Usage, "sample: it takes 5 arguments, not 0\nrun 'sample five --help' for what it takes\n"},
		"locked":         {Failed, "sample: it is locked\nstop the other one\n"},
		"":               {Usage, "sample: say what to do: give one of its commands\nrun 'sample --help' for what it takes\n"},
		"frob":           {Usage, "sample: there is no command \"sample frob\"\nrun 'sample --help' for what it takes\n"},
		"none --count x": {Usage, "run 'sample none --help' for what it takes\n"},
		"none --frob":    {Usage, "sample: unknown flag: --frob\nrun 'sample none --help' for what it takes\n"},
	} {
		var stderr bytes.Buffer
		if status := program().Run(context.Background(), strings.Fields(args), &stderr); status != want.status || !strings.HasSuffix(stderr.String(), want.stderr) {
			t.Errorf("%q: %d %q, want %d %q", args, status, &stderr, want.status, want.stderr)
		}
	}
}

func TestBuild(t *testing.T) {
	revision := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}}
	for name, c := range map[string]struct {
		info     debug.BuildInfo
		want     string
		modified bool
	}{
		"nothing known":    {debug.BuildInfo{}, "devel", false},
		"from a tree":      {debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: revision}, "devel (0123456789ab)", true},
		"released":         {debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "v1.2.3", false},
		"a short revision": {debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "01"}}}, "devel (01)", false},
	} {
		if b := buildOf(&c.info); b.String() != c.want || b.Modified != c.modified {
			t.Errorf("%s: %v, modified %v; want %s, %v", name, b, b.Modified, c.want, c.modified)
		}
	}
}
