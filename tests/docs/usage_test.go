package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// programs are those that the documents may tell people to run, beside ours.
var programs = []string{"make", "git", "tar", "install", "systemctl", "journalctl", "curl", "scp", "apt-get", "cat", "cd", "wg", "psql", "ssh", "mkdir", "man"}

// ours are Warren's.
var ours = []string{"warren", "warren-coordinator", "warren-relay"}

// help is what a command's --help says.
type help struct {
	commands map[string]bool
	flags    map[string]bool // by name, with dashes; whether it takes a value
}

var (
	helpMu sync.Mutex
	known  = map[string]*help{} // protected by helpMu
)

var (
	commandLine = regexp.MustCompile(`^  ([a-z][a-z-]*)\s`)
	flagLine    = regexp.MustCompile(`^ +(?:(-\w), )?(--[a-z][a-z0-9-]*)(?: (\w+))?(?:  +|$)`)
)

// helpOf asks a command for its help.
func helpOf(t testing.TB, path ...string) *help {
	t.Helper()
	helpMu.Lock()
	defer helpMu.Unlock()
	name := strings.Join(path, " ")
	if h := known[name]; h != nil {
		return h
	}
	out, err := exec.Command(program(t, path[0]), append(slices.Clone(path[1:]), "--help")...).Output()
	if err != nil {
		t.Fatalf("%s --help: %v", name, err)
	}
	h := &help{commands: map[string]bool{}, flags: map[string]bool{}}
	section := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasSuffix(line, ":") && !strings.HasPrefix(line, " "):
			section = line
		case section == "Available Commands:":
			if m := commandLine.FindStringSubmatch(line); m != nil {
				h.commands[m[1]] = true
			}
		case strings.HasSuffix(section, "Flags:"):
			if m := flagLine.FindStringSubmatch(line); m != nil {
				h.flags[m[2]] = m[3] != ""
				if m[1] != "" {
					h.flags[m[1]] = m[3] != ""
				}
			}
		}
	}
	known[name] = h
	return h
}

// words splits a command line as a shell does, as far as documents need it.
// Redirections and what follows a pipe, && or ; end it: rest is what follows.
func words(line string) (all []string, rest string) {
	var word strings.Builder
	quote, inWord := rune(0), false
	end := func() {
		if inWord {
			all = append(all, word.String())
			word.Reset()
			inWord = false
		}
	}
	for i, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ':
			end()
		case r == '|' || r == ';' || r == '&':
			end()
			return all, strings.TrimLeft(line[i:], "|;& ")
		case r == '>' || r == '<' || r == '#' && !inWord:
			end()
			return all, ""
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	end()
	return all, ""
}

// placeholder matches a word that stands for what the reader puts there.
var placeholder = regexp.MustCompile(`^(…|[A-Z][A-Z|:]*)$`)

// complaint says what is wrong with a command line, "" where nothing is.
func complaint(t testing.TB, line string) string {
	t.Helper()
	all, rest := words(line)
	for len(all) > 0 && (all[0] == "sudo" || strings.Contains(all[0], "=") && !strings.HasPrefix(all[0], "-")) {
		all = all[1:]
	}
	if len(all) == 0 {
		return "nothing to run"
	}
	switch name := filepath.Base(all[0]); {
	case slices.Contains(ours, name):
		if wrong := complaintOfOurs(t, name, all[1:]); wrong != "" {
			return wrong
		}
	case !slices.Contains(programs, name) && !strings.HasPrefix(all[0], "./"):
		return fmt.Sprintf("%s is none of the programs that the documents use", name)
	}
	if rest != "" {
		return complaint(t, rest)
	}
	return ""
}

func complaintOfOurs(t testing.TB, name string, args []string) string {
	path := []string{name}
	h := helpOf(t, path...)
	for i := 0; i < len(args); i++ {
		arg := args[i]
		flag, _, hasValue := strings.Cut(arg, "=")
		switch {
		case arg == "-" || placeholder.MatchString(arg):
		case strings.HasPrefix(arg, "-"):
			takes, ok := h.flags[flag]
			if !ok {
				return fmt.Sprintf("%s has no flag %s", strings.Join(path, " "), flag)
			}
			if takes && !hasValue {
				if i++; i == len(args) {
					return fmt.Sprintf("%s %s wants a value", strings.Join(path, " "), flag)
				}
			}
		case len(h.commands) == 0:
		case h.commands[arg]:
			path = append(path, arg)
			h = helpOf(t, path...)
		default:
			return fmt.Sprintf("%s has no command %q", strings.Join(path, " "), arg)
		}
	}
	return ""
}

// TestTypedLinesAreOurs holds every line to type, and every command named in
// the text, against the programs' help.
func TestTypedLinesAreOurs(t *testing.T) {
	checked := 0
	for _, p := range pages(t) {
		for i := range p.blocks {
			if p.blocks[i].language != "console" {
				continue
			}
			for _, c := range p.blocks[i].commands() {
				checked++
				if wrong := complaint(t, c.text); wrong != "" {
					t.Errorf("%s:%d: `%s`: %s", p.name, c.line, c.text, wrong)
				}
			}
		}
		for _, s := range p.inline {
			first, _, _ := strings.Cut(s.text, " ")
			if !slices.Contains(ours, first) {
				continue
			}
			checked++
			if wrong := complaint(t, s.text); wrong != "" {
				t.Errorf("%s:%d: `%s`: %s", p.name, s.line, s.text, wrong)
			}
		}
	}
	if checked < 60 {
		t.Errorf("found only %d commands in the documents", checked)
	}
}

var flagName = regexp.MustCompile(`^(--[a-z][a-z0-9-]+)`)

// TestFlagsNamedAlone checks that flags that the text names without their
// command belong to some command.
func TestFlagsNamedAlone(t *testing.T) {
	all := map[string]bool{}
	var walk func(path ...string)
	walk = func(path ...string) {
		h := helpOf(t, path...)
		for flag := range h.flags {
			all[flag] = true
		}
		for name := range h.commands {
			if name != "help" && name != "completion" {
				walk(append(slices.Clone(path), name)...)
			}
		}
	}
	for _, name := range ours {
		walk(name)
	}
	for _, p := range pages(t) {
		for _, s := range p.inline {
			if m := flagName.FindString(s.text); m != "" && !all[m] {
				t.Errorf("%s:%d: no command has the flag %s", p.name, s.line, m)
			}
		}
	}
}

// TestStaleLinesAreFound checks the check.
func TestStaleLinesAreFound(t *testing.T) {
	for _, test := range []struct {
		line  string
		wrong bool
	}{
		{"warren status --json", false},
		{"warren --socket /run/x status", false},
		{"sudo warren up --auth-key file:/root/key && warren status", false},
		{"warren debug why db tcp:5432 > out.txt", false},
		{"warren policy explain --from alice@example.com --to tag:db --port tcp:5432 policy.hujson", false},
		{"WARREN_AUTH_KEY=… warren up", false},
		{"warren COMMAND --help", false},
		{"warren stat", true},
		{"warren status --jsn", true},
		{"warren up --auth-key", true},
		{"warren-coordinator users delete bob@example.com", true},
		{"warren version && warren sync", true},
		{"headscale nodes list", true},
	} {
		if got := complaint(t, test.line); (got != "") != test.wrong {
			t.Errorf("%s: %q", test.line, got)
		}
	}
}

// program returns the path of one of our programs, built from this tree.
func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "warren-docs-")
	if err != nil {
		return "", err
	}
	for _, name := range ours {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "./cmd/"+name)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := build(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}
