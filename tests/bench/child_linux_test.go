package bench

import (
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/warren-overlay/warren/tests/lab"
)

// startChild starts a test binary on the host as what the variable of its environment
// makes of it, until the benchmark ends: the child has to leave when in is closed.
func startChild(b *testing.B, h *lab.Host, program, variable string) (in io.Writer, out io.Reader, pid int) {
	b.Helper()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err = cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Errorf("%s: %v", variable, err)
		}
	})
	return stdin, out, cmd.Process.Pid
}
