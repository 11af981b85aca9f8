package cli_test

import (
	"os"
	"regexp"

	"github.com/rogpeppe/go-internal/testscript"
)

// served is the line by which the coordinator says where it listens.
var served = regexp.MustCompile(`^  (http://127\.0\.0\.1:\d+)$`)

func coordinator(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: coordinator [ARG...]")
	}
	address := "127.0.0.1:0"
	if again := ts.Getenv("LISTEN"); again != "" {
		address = again
	}
	m := start(ts, "c", served, "warren-coordinator", append([]string{
		"serve", "--data", ts.MkAbs("c"), "--listen", address, "--stun-listen", "127.0.0.1:0", "--metrics-listen", "off",
	}, args...)...)
	ts.Setenv("URL", m[1])
	ts.Setenv("LISTEN", m[1][len("http://"):])
	ts.Check(os.WriteFile(ts.MkAbs("url"), []byte(m[1]), 0o600))
}
