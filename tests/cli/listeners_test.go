package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// listeners wants a node to listen on exactly so many TCP ports, and on
// loopback addresses only: the local API is on none.
func listeners(ts *testscript.TestScript, neg bool, args []string) {
	noNegation(ts, neg, args, 2, "listeners NAME NUMBER")
	p, ok := of(ts).processes[args[0]]
	if !ok {
		ts.Fatalf("%s does not run", args[0])
	}
	own := map[string]bool{}
	descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.cmd.Process.Pid))
	ts.Check(err)
	for _, d := range descriptors {
		if target, err := os.Readlink(d); err == nil && strings.HasPrefix(target, "socket:[") {
			own[strings.Trim(target, "socket:[]")] = true
		}
	}
	if len(own) == 0 {
		ts.Fatalf("%s has no sockets at all, which cannot be", args[0])
	}
	var found []string
	for _, table := range []string{"tcp", "tcp6"} {
		raw, err := os.ReadFile("/proc/net/" + table)
		ts.Check(err)
		for line := range strings.Lines(string(raw)) {
			// sl local_address rem_address st ... inode is the tenth field
			// (proc_net_tcp); 0A is LISTEN.
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == "0A" && own[f[9]] {
				found = append(found, f[1])
			}
		}
	}
	if fmt.Sprint(len(found)) != args[1] {
		ts.Fatalf("%s listens at %v, want %s listeners", args[0], found, args[1])
	}
	for _, address := range found {
		if !strings.HasPrefix(address, "0100007F:") { // 127.0.0.1 in host order
			ts.Fatalf("%s listens at %s, which is not 127.0.0.1", args[0], address)
		}
	}
}
