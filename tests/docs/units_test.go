package docs

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unitFile reads the service section of a program's unit file: the last value
// of each key. Variables, which are empty where nobody sets them, are left out.
func unitFile(t testing.TB, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "cmd", name, name+".service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		fields := slices.DeleteFunc(strings.Fields(value), func(f string) bool { return strings.HasPrefix(f, "$") })
		unit[key] = strings.Join(fields, " ")
	}
	return unit
}

// TestServiceFiles checks that the command lines of the unit files are ones
// that the programs know, that the directories are those that the service
// manager makes, and that nothing that confines them is missing.
func TestServiceFiles(t *testing.T) {
	for _, name := range ours {
		unit := unitFile(t, name)
		if wrong := complaint(t, unit["ExecStart"]); wrong != "" {
			t.Errorf("%s: ExecStart: %s", name, wrong)
		}
		if !strings.HasPrefix(unit["ExecStart"], "/usr/local/bin/"+name+" ") {
			t.Errorf("%s: ExecStart %q; make install replaces /usr/local by its PREFIX", name, unit["ExecStart"])
		}
		if want := "/var/lib/" + unit["StateDirectory"] + " "; !strings.Contains(unit["ExecStart"]+" ", want) {
			t.Errorf("%s: ExecStart does not use the state directory %s", name, want)
		}
		for _, key := range []string{
			"NoNewPrivileges", "ProtectSystem", "ProtectHome", "CapabilityBoundingSet", "RestrictAddressFamilies",
			"SystemCallFilter", "StateDirectoryMode", "RestrictNamespaces",
		} {
			if _, ok := unit[key]; !ok {
				t.Errorf("%s: no %s", name, key)
			}
		}
		// systemd-analyze knows the keys, where it is there.
		if analyze, err := exec.LookPath("systemd-analyze"); err == nil {
			file := filepath.Join(root, "cmd", name, name+".service")
			out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, name+".service") && !strings.Contains(line, "is not executable") {
					t.Errorf("systemd-analyze: %v: %s", err, line)
				}
			}
		}
	}
}

// TestTypeNotifyIsTrue starts each program as a service manager would and sees
// whether it says that it is ready, as its unit file claims or not.
func TestTypeNotifyIsTrue(t *testing.T) {
	for name, args := range map[string][]string{
		"warren":             {"daemon", "--tun", "userspace", "--metrics-listen", "off", "--port", "0"},
		"warren-coordinator": {"serve", "--listen", "127.0.0.1:0", "--stun-listen", "off", "--metrics-listen", "off"},
	} {
		dir := t.TempDir()
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { socket.Close() })
		// What tells that the program serves.
		ready := filepath.Join(dir, "sock")
		if name == "warren" {
			args = append(args, "--state", filepath.Join(dir, "state"), "--socket", ready)
		} else {
			args = append(args, "--data", filepath.Join(dir, "data"))
			ready = filepath.Join(dir, "data", "coordinator.sock")
		}
		cmd := exec.Command(program(t, name), args...)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		claimed := unitFile(t, name)["Type"] == "notify"
		said := make(chan string, 1)
		go func() {
			b := make([]byte, 1000)
			n, _ := socket.Read(b)
			said <- string(b[:n])
		}()
		deadline := time.After(30 * time.Second)
		tick := time.NewTicker(20 * time.Millisecond)
		var text string
	wait:
		for {
			select {
			case text = <-said:
				break wait
			case <-deadline:
				break wait
			case <-tick.C:
				if _, err := os.Stat(ready); err == nil && !claimed {
					break wait
				}
			}
		}
		tick.Stop()
		if notifies := strings.Contains(text, "READY=1"); notifies != claimed {
			t.Errorf("%s: its unit file claims notify: %v; the program said %q", name, claimed, text)
		}
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
