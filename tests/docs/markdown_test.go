package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the module's directory.
const root = "../.."

// page is a document that people read.
type page struct {
	name   string // from the module's directory
	blocks []block
	// inline are the spans of code in the text, with their lines.
	inline []span
}

// block is a fenced block.
type block struct {
	line     int
	language string
	words    []string // after the language
	lines    []string
}

type span struct {
	line int
	text string
}

func (b *block) says(word string) bool { return slices.Contains(b.words, word) }

// command is a line to type, and what it prints as the document has it.
type command struct {
	line   int
	text   string
	output []string
}

// commands returns the lines of a console block that are typed.
func (b *block) commands() []command {
	var all []command
	for i, line := range b.lines {
		if text, ok := strings.CutPrefix(line, "$ "); ok {
			all = append(all, command{line: b.line + 1 + i, text: text})
			continue
		}
		if len(all) == 0 {
			continue
		}
		last := &all[len(all)-1]
		if strings.HasSuffix(last.text, `\`) {
			last.text = strings.TrimSuffix(last.text, `\`) + " " + strings.TrimSpace(line)
			continue
		}
		if strings.TrimSpace(line) != "" {
			last.output = append(last.output, line)
		}
	}
	return all
}

var code = regexp.MustCompile("`([^`\n]+)`")

// parse reads a document.
func parse(t testing.TB, name string) *page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	p := &page{name: name}
	var open *block
	for i, line := range strings.Split(string(text), "\n") {
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open == nil:
			words := strings.Fields(fence)
			open = &block{line: i + 1}
			if len(words) > 0 {
				open.language, open.words = words[0], words[1:]
			}
		case isFence:
			p.blocks = append(p.blocks, *open)
			open = nil
		case open != nil:
			open.lines = append(open.lines, line)
		default:
			for _, m := range code.FindAllStringSubmatch(line, -1) {
				p.inline = append(p.inline, span{i + 1, m[1]})
			}
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: the block has no end", name, open.line)
	}
	return p
}

// pages lists the documents.
func pages(t testing.TB) []*page {
	t.Helper()
	var all []*page
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			short, err := filepath.Rel(root, name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, parse(t, short))
		}
	}
	if len(all) < 8 {
		t.Fatalf("found only %d documents", len(all))
	}
	return all
}

func TestParseFindsWhatIsTyped(t *testing.T) {
	b := block{line: 10, lines: []string{"$ a \\", "    --b", "prints", "", "$ c"}}
	got := b.commands()
	if len(got) != 2 || got[0].text != "a  --b" || !slices.Equal(got[0].output, []string{"prints"}) || got[1].line != 15 {
		t.Errorf("%+v", got)
	}
}
