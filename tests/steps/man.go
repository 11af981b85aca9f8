package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// man writes the manual page of a program into dir, and its completions for
// the shells beside it: all from what the program says of itself, so that
// neither can differ from it.
func man(program, dir string) error {
	name := filepath.Base(program)
	pages, err := helpPages(program, name, nil)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("man: %w", err)
	}
	files := map[string][]byte{name + ".1": manual(name, pages)}
	for _, shell := range []struct{ name, file string }{{"bash", name}, {"zsh", "_" + name}, {"fish", name + ".fish"}} {
		out, err := exec.Command(program, "completion", shell.name).Output()
		if err != nil {
			return fmt.Errorf("man: %s completion %s: %w", name, shell.name, err)
		}
		files[shell.file] = out
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
			return fmt.Errorf("man: %w", err)
		}
	}
	fmt.Printf("man: %s: %d commands, %d files in %s\n", name, len(pages), len(files), dir)
	return nil
}

// helpPage is what one command says of itself.
type helpPage struct {
	path     string // "warren policy check"
	short    string // as the command above has it
	long     []string
	sections map[string][]string // by "Usage:", "Flags:" and so on
}

// helpPages asks a program's command and all below it for help.
func helpPages(program, name string, args []string) ([]helpPage, error) {
	path := strings.Join(append([]string{name}, args...), " ")
	out, err := exec.Command(program, append(args[:len(args):len(args)], "--help")...).Output()
	if err != nil {
		return nil, fmt.Errorf("man: %s --help: %w", path, err)
	}
	page := parseHelp(path, out)
	pages := []helpPage{page}
	for _, line := range page.sections["Available Commands:"] {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "help" || fields[0] == "completion" {
			continue
		}
		below, err := helpPages(program, name, append(args[:len(args):len(args)], fields[0]))
		if err != nil {
			return nil, err
		}
		below[0].short = strings.Join(fields[1:], " ")
		pages = append(pages, below...)
	}
	return pages, nil
}

// parseHelp takes help apart: text, then sections that begin with a line such
// as "Flags:".
func parseHelp(path string, out []byte) helpPage {
	page := helpPage{path: path, sections: map[string][]string{}}
	section := ""
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		line := lines.Text()
		switch line {
		case "Usage:", "Examples:", "Available Commands:", "Flags:", "Global Flags:":
			section = line
			continue
		}
		if section == "" {
			page.long = append(page.long, line)
		} else if !strings.HasPrefix(line, "Use \"") {
			page.sections[section] = append(page.sections[section], line)
		}
	}
	return page
}

// manual lays the pages out in the man macros (man(7)).
func manual(name string, pages []helpPage) []byte {
	var b bytes.Buffer
	first := "program"
	if len(pages[0].long) > 0 {
		first = strings.TrimSuffix(pages[0].long[0], ".")
	}
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"Warren\" \"User Commands\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(name), name, roff(first))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n.I COMMAND\n[\\fIFLAGS\\fR]\n.SH DESCRIPTION\n", name)
	verbatim(&b, pages[0].long)
	b.WriteString(".SH COMMANDS\n")
	for _, p := range pages[1:] {
		if p.sections["Available Commands:"] != nil {
			continue // its commands have sections of their own
		}
		fmt.Fprintf(&b, ".SS %s\n", roff(p.path))
		for _, title := range []string{"Usage:", "", "Flags:", "Examples:"} {
			lines := p.sections[title]
			if title == "" {
				lines = p.long
			}
			if len(lines) == 0 {
				continue
			}
			if title == "Flags:" || title == "Examples:" {
				fmt.Fprintf(&b, ".PP\n\\fB%s\\fR\n", title)
			}
			verbatim(&b, lines)
		}
	}
	b.WriteString(".SH GLOBAL FLAGS\n")
	verbatim(&b, pages[0].sections["Flags:"])
	b.WriteString(".SH EXIT STATUS\n0 where it was done, 1 where it failed, 2 where the command line was wrong.\n")
	return b.Bytes()
}

// verbatim writes lines as they stand.
func verbatim(b *bytes.Buffer, lines []string) {
	b.WriteString(".PP\n.nf\n")
	text := strings.TrimRight(strings.Join(lines, "\n"), "\n ")
	for line := range strings.Lines(text + "\n") {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			b.WriteString(".sp\n")
			continue
		}
		fmt.Fprintln(b, roff(line))
	}
	b.WriteString(".fi\n")
}

// roff escapes what troff would take for its own.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
