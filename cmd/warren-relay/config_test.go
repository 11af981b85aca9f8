package main

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
)

// someFlags are flags of each kind that serve has.
func someFlags() (*cobra.Command, func() string) {
	c := &cobra.Command{Use: "serve"}
	f := c.Flags()
	name, listen := f.String("name", "", ""), f.String("listen", "0.0.0.0:8443", "")
	proxy, clients := f.Bool("behind-proxy", false, ""), f.Int("max-clients", 10_000, "")
	f.String("config", "", "")
	return c, func() string {
		return strings.Join([]string{*name, *listen, map[bool]string{true: "proxy"}[*proxy], strconv.Itoa(*clients)}, " ")
	}
}

// TestApply: what a file may say, and what of it is refused, with the line.
func TestApply(t *testing.T) {
	for _, c := range []struct {
		args, text string
		want       string // the settings, or the error as a pattern
	}{
		{"", "", " 0.0.0.0:8443  10000"},
		{"", "# nothing yet\n---\n", " 0.0.0.0:8443  10000"},
		{"", "name: fra-1\nlisten: \"0.0.0.0:443\" # TLS\nbehind-proxy: true\nmax-clients: 5\n", "fra-1 0.0.0.0:443 proxy 5"},
		{"", "name: 17\n", "17 0.0.0.0:8443  10000"},
		{"--name=ams-1 --max-clients=7", "name: fra-1\nlisten: :1\nmax-clients: 5", "ams-1 :1  7"},
		{"--behind-proxy=false", "behind-proxy: true", " 0.0.0.0:8443  10000"},
		{"", "name: fra-1\nlisen: :1", "^line 2: there is no setting \"lisen\"; .*--help"},
		{"--name=x", "name: fra-1\nName: y", "^line 2: there is no setting \"Name\""},
		{"", "config: other.yaml", "^line 1: there is no setting \"config\""},
		{"", "name: a\nlisten: :1\nname: b", "^line 3: name is on line 1 already"},
		{"", "max-clients: many", "^line 1: max-clients: .*many"},
		{"", "behind-proxy: perhaps", "^line 1: behind-proxy: .*perhaps"},
		{"", "name: fra-1\nlisten: [a, b]", "^line 2: listen takes one value"},
		{"", "listen:\n  host: a", "^line 2: listen takes one value"},
		{"", "name:", "^line 1: name takes one value"},
		{"", "a: &a x\nname: *a", "^line 1: there is no setting \"a\""},
		{"", "name: &a x\nlisten: *a", "^line 2: listen takes one value"},
		{"", "- name", "^line 1: it is no list of settings"},
		{"", "fra-1", "^line 1: it is no list of settings"},
		{"", "name: fra-1\n\tlisten: x", "^yaml: line 2"},
		{"", "? [a]\n: b", "^line 1: there is no setting"},
	} {
		flags, settings := someFlags()
		if err := flags.ParseFlags(strings.Fields(c.args)); err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := apply(flags, []byte(c.text)); err != nil {
			if !errors.Is(err, errConfig) {
				t.Errorf("%q: %v", c.text, err)
			}
			got = strings.TrimPrefix(err.Error(), errConfig.Error()+": ")
		} else {
			got = settings()
		}
		if strings.HasPrefix(c.want, "^") {
			if !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("%q: %q, want %q", c.text, got, c.want)
			}
		} else if got != c.want {
			t.Errorf("%q with %q: %q, want %q", c.text, c.args, got, c.want)
		}
	}
}

// FuzzApply: no file makes it panic, and none is half understood: what is taken
// once is taken again.
func FuzzApply(f *testing.F) {
	for _, text := range []string{"", "name: fra-1\nlisten: :1\n", "name: &a x\nlisten: *a", "{name: a, max-clients: 5}", "- a", "a: b: c", "--- !!str\nname: x", "name: |\n  x\n  y\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		flags, settings := someFlags()
		if err := apply(flags, text); err != nil {
			if !errors.Is(err, errConfig) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, repeated := someFlags()
		if err := apply(again, text); err != nil || settings() != repeated() {
			t.Errorf("%q: %q, and then %q, %v", text, settings(), repeated(), err)
		}
	})
}

// TestConfigFile runs the program with a file; the command line goes before it,
// and what is wrong with it is a usage error with the place.
func TestConfigFile(t *testing.T) {
	s := newSite(t)
	write := func(text string) string {
		t.Helper()
		if err := os.WriteFile(s.path("config.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return s.path("config.yaml")
	}
	file := write("region: from-the-file\nlisten: nowhere\ngenesis: " + s.path("genesis") + "\n")
	_, _, out, stop := s.serve("--config", file) // --listen is given too
	if got := out.wait(t, `msg=relaying .*region=(\S+)`); got != "from-the-file" {
		t.Errorf("region %q", got)
	}
	if status := stop(); status != commandline.Done {
		t.Errorf("it stopped with %d", status)
	}
	for text, says := range map[string]string{
		"region: x\nregon: y\n":                            `config.yaml: the configuration file is wrong: line 2: there is no setting "regon"`,
		"name: fra\nlog-level: w\n":                        "--log-level",
		"rate: 0\nname: fra\nfingerprint: x\ngenesis: x\n": "--max-clients and --rate are above zero",
		strings.Repeat("# much\n", maxConfig/7+1):          "more than 65536 bytes",
	} {
		out := new(output)
		m := Main{Stdout: io.Discard, Stderr: out, Rand: rand.Reader}
		if status := m.Run(t.Context(), []string{"serve", "--config", write(text)}); status != commandline.Usage || !strings.Contains(out.String(), says) {
			t.Errorf("%.20q: status %d, %q; want %q", text, status, out, says)
		}
	}
	nowhere := new(output)
	m := Main{Stdout: io.Discard, Stderr: nowhere, Rand: rand.Reader}
	if status := m.Run(t.Context(), []string{"serve", "--config", "/nowhere.yaml"}); status != commandline.Usage || !strings.Contains(nowhere.String(), "/nowhere.yaml") {
		t.Errorf("a file that is not there: status %d, %q", status, nowhere)
	}
}
