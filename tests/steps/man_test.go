package main

import (
	"strings"
	"testing"
)

func TestManualHasWhatTheHelpSays(t *testing.T) {
	root := parseHelp("tool", []byte(`Does things.

Usage:
  tool [flags]
  tool [command]

Available Commands:
  do          Do it
  help        Help about any command

Flags:
  -h, --help   help for tool

Use "tool [command] --help" for more information about a command.
`))
	if got := root.sections["Available Commands:"]; len(got) == 0 || !strings.Contains(got[0], "Do it") {
		t.Fatalf("%q", got)
	}
	do := parseHelp("tool do", []byte("Do it at once.\n.hidden\n\nUsage:\n  tool do NAME [flags]\n\nFlags:\n      --dry-run   do nothing\n"))
	got := string(manual("tool", []helpPage{root, do}))
	for _, want := range []string{
		".TH TOOL 1 ", ".SH NAME\ntool \\- Does things\n", ".SS tool do\n", "Do it at once.\n", "\\&.hidden\n", `\-\-dry\-run   do nothing`,
		".SH GLOBAL FLAGS\n.PP\n.nf\n  \\-h, \\-\\-help   help for tool\n.fi\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
