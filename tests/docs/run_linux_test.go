package docs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-overlay/warren/tests/lab"
)

// patience bounds every wait; a machine under load gets that long.
const patience = 30 * time.Second

// coordinatorAddress is the address of the coordinator in the documents.
const coordinatorAddress = "192.0.2.10"

// machine is a host with directories of its own where programs keep things.
type machine struct {
	*lab.Host
	book *book
	dir  string // working directory
	// running are the programs that run until they are stopped, by their name.
	running map[string]*service
}

type service struct {
	cmd    *exec.Cmd
	args   []string
	output bytes.Buffer
	exited chan struct{}
}

// book carries out the pages, one after another, on one network.
type book struct {
	t        *testing.T
	lab      *lab.Lab
	machines map[string]*machine
	// The keys that keys create printed last, for a person and for tags.
	userKey, tagKey string
}

// private are the directories that each machine has for itself.
var private = []string{"/run", "/var/lib", "/root"}

func (b *book) machine(name string) *machine {
	b.t.Helper()
	if m := b.machines[name]; m != nil {
		return m
	}
	m := &machine{Host: b.lab.Host(name), book: b, dir: b.t.TempDir(), running: map[string]*service{}}
	m.Do(func() error {
		// The host's thread, and so all programs that it starts, leave the
		// mounts of this machine.
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("keeping mounts private: %w", err)
		}
		for _, dir := range private {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
				return fmt.Errorf("mounting %s: %w", dir, err)
			}
		}
		return nil
	})
	b.machines[name] = m
	b.t.Cleanup(func() {
		for name := range m.running {
			m.stop(name)
		}
	})
	return m
}

// TestDocumentsRun types what the documents say, in the order of a reader who
// begins with the README.
func TestDocumentsRun(t *testing.T) {
	b := &book{t: t, lab: lab.New(t), machines: map[string]*machine{}}
	b.machine("hub") // first, for its address
	ran := 0
	for _, name := range []string{"README.md", "docs/users.md", "docs/administrators.md", "docs/policy.md", "docs/troubleshooting.md", "docs/decisions.md"} {
		p := parse(t, name)
		for i := range p.blocks {
			ran += b.block(p, &p.blocks[i])
		}
	}
	if ran < 40 {
		t.Errorf("only %d commands of the documents were typed", ran)
	}
}

// block types the lines of a block, or writes the file that it is.
func (b *book) block(p *page, k *block) (ran int) {
	b.t.Helper()
	if k.language != "console" {
		for _, word := range k.words {
			if strings.Contains(word, ".") {
				for _, m := range b.machines {
					if err := os.WriteFile(filepath.Join(m.dir, word), []byte(strings.Join(k.lines, "\n")), 0o600); err != nil {
						b.t.Fatal(err)
					}
				}
			}
		}
		return 0
	}
	i := slices.IndexFunc(k.words, func(w string) bool { return w != "fails" })
	if i < 0 {
		return 0
	}
	m := b.machine(k.words[i])
	want := 0
	if k.says("fails") {
		want = 1
	}
	for _, c := range k.commands() {
		ran++
		out, status := m.typed(c.text)
		place := fmt.Sprintf("%s:%d: %s$ %s", p.name, c.line, m.Name, c.text)
		if status != want {
			b.t.Fatalf("%s\nexit status %d, want %d; printed:\n%s%s", place, status, want, out, m.log())
		}
		if missing := unprinted(c.output, out); missing != "" {
			b.t.Fatalf("%s\ndid not print %q, but:\n%s", place, missing, out)
		}
		b.keep(c.text, out)
	}
	return ran
}

var joinKey = regexp.MustCompile(`wkey-auth-\S+`)

// keep remembers a join key that was printed.
func (b *book) keep(line, out string) {
	if strings.Contains(line, "keys create") {
		if strings.Contains(line, "--tags") {
			b.tagKey = joinKey.FindString(out)
		} else {
			b.userKey = joinKey.FindString(out)
		}
	}
}

// unprinted returns the first line of want that out lacks, in order.
func unprinted(want []string, out string) string {
	have := strings.Split(out, "\n")
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	for _, w := range want {
		parts := strings.Split(squeeze(w), "…")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		pattern := regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
		i := slices.IndexFunc(have, func(s string) bool { return pattern.MatchString(squeeze(s)) })
		if i < 0 {
			return w
		}
		have = have[i+1:]
	}
	return ""
}

// typed carries out one line and returns what it printed and its exit status.
func (m *machine) typed(line string) (string, int) {
	key := m.book.userKey
	if m.Name == "db" {
		key = m.book.tagKey
	}
	line = strings.NewReplacer(
		"wkey-auth-…", key, coordinatorAddress, m.book.machines["hub"].V4.String(), "~/", "/root/",
	).Replace(line)
	all, rest := words(line)
	if rest == "" {
		switch {
		case slices.Contains(ours, all[0]) && (slices.Contains(all, "serve") || slices.Contains(all, "daemon")):
			m.run(all[0], all)
			return "", 0
		case all[0] == "systemctl":
			m.systemctl(all[1:])
			return "", 0
		}
	}
	out, err := m.sh(line)
	if err == nil {
		return out, 0
	}
	if exit := new(exec.ExitError); asExit(err, &exit) {
		return out, exit.ExitCode()
	}
	m.book.t.Fatalf("%s$ %s: %v", m.Name, line, err)
	return "", 0
}

func asExit(err error, to **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError) //nolint:errorlint // what Cmd.Wait returns is not wrapped
	*to = e
	return ok
}

// sh runs a line by the shell.
func (m *machine) sh(line string) (string, error) {
	ctx, cancel := context.WithTimeout(m.book.t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir, cmd.Env = m.dir, m.environment()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := m.Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

func (m *machine) environment() []string {
	return append(os.Environ(), "HOME=/root",
		"PATH="+filepath.Dir(program(m.book.t, ours[0]))+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// run starts a program that runs until it is stopped, and waits until it can be
// spoken to.
func (m *machine) run(name string, args []string) {
	t := m.book.t
	t.Helper()
	if m.running[name] != nil {
		m.stop(name)
	}
	s := &service{cmd: exec.Command(program(t, filepath.Base(args[0])), args[1:]...), args: args, exited: make(chan struct{})}
	s.cmd.Dir, s.cmd.Env = m.dir, m.environment()
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	if err := m.Start(s.cmd); err != nil {
		t.Fatal(err)
	}
	m.running[name] = s
	go func() {
		s.cmd.Wait()
		close(s.exited)
	}()
	ask := "warren status"
	if name == "warren-coordinator" {
		ask = "warren-coordinator users list"
		if i := slices.Index(args, "--data"); i >= 0 {
			ask += " --data " + args[i+1]
		}
	} else if i := slices.Index(args, "--socket"); i >= 0 {
		ask += " --socket " + args[i+1]
	}
	lab.Eventually(t, patience, func() error {
		select {
		case <-s.exited:
			t.Fatalf("%s$ %s ended:\n%s", m.Name, strings.Join(args, " "), s.output.String())
		default:
		}
		_, err := m.sh(ask)
		return err
	})
}

// stop ends a program as a service manager does.
func (m *machine) stop(name string) {
	s := m.running[name]
	if s == nil {
		return
	}
	delete(m.running, name)
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(patience):
		m.book.t.Errorf("%s: %s did not end by SIGTERM", m.Name, name)
		s.cmd.Process.Kill()
		<-s.exited
	}
}

// log is what the machine's programs that have ended printed.
func (m *machine) log() string {
	var out strings.Builder
	for name, s := range m.running {
		select {
		case <-s.exited:
			fmt.Fprintf(&out, "%s has ended:\n%s", name, s.output.String())
		default:
		}
	}
	return out.String()
}

// systemctl stands for the service manager: it runs what the unit files say.
func (m *machine) systemctl(args []string) {
	t := m.book.t
	t.Helper()
	unit := strings.TrimSuffix(args[len(args)-1], ".service")
	switch args[0] {
	case "daemon-reload":
		return
	case "enable", "start", "restart":
		line := unitFile(t, unit)["ExecStart"]
		m.run(unit, strings.Fields(line))
	case "stop":
		m.stop(unit)
	default:
		t.Fatalf("systemctl %s", strings.Join(args, " "))
	}
}
