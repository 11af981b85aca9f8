package policy

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tailscale/hujson"
)

// reader walks the syntax tree and collects errors. Its methods return zero
// values for what is wrong, so that one pass reports everything.
type reader struct {
	text   []byte
	starts []int // offset of each line's first byte
	errs   ErrorList
}

func newReader(text []byte) *reader {
	r := &reader{text: text, starts: []int{0}}
	for i, c := range text {
		if c == '\n' {
			r.starts = append(r.starts, i+1)
		}
	}
	return r
}

func (r *reader) position(offset int) Position {
	line, found := slices.BinarySearch(r.starts, offset)
	if !found {
		line--
	}
	return Position{line + 1, offset - r.starts[line] + 1}
}

func (r *reader) fail(pos Position, text, message, hint string) {
	// More errors than are reported are not kept: a hostile document has
	// millions.
	if len(r.errs) < 10*MaxErrors {
		r.errs = append(r.errs, &ParseError{pos, clip(text), clip(message), hint})
	}
}

// clip shortens what a hostile or generated text made long.
func clip(s string) string {
	const limit = 300
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit/2], "") + "..." + strings.ToValidUTF8(s[len(s)-limit/2:], "")
}

var syntaxPosition = regexp.MustCompile(`^hujson: line (\d+), column (\d+): `)

// parse reads the syntax alone.
func (r *reader) parse() (hujson.Value, bool) {
	if len(r.text) > MaxSize {
		r.fail(Position{1, 1}, "", fmt.Sprintf("the document has %d bytes", len(r.text)), fmt.Sprintf("at most %d are read", MaxSize))
		return hujson.Value{}, false
	}
	if offset := deeperThan(r.text, MaxDepth); offset >= 0 {
		r.fail(r.position(offset), string(r.text[offset:offset+1]), "objects and lists nest too deep", fmt.Sprintf("at most %d levels are read", MaxDepth))
		return hujson.Value{}, false
	}
	if !utf8.Valid(r.text) {
		offset := 0
		for offset < len(r.text) {
			c, size := utf8.DecodeRune(r.text[offset:])
			if c == utf8.RuneError && size == 1 {
				break
			}
			offset += size
		}
		r.fail(r.position(offset), "", "the document is not UTF-8 text here", "save it as UTF-8")
		return hujson.Value{}, false
	}
	if len(bytes.TrimSpace(r.text)) == 0 {
		r.fail(Position{1, 1}, "", "the document is empty", "write at least {}, which denies everything")
		return hujson.Value{}, false
	}
	v, err := hujson.Parse(r.text)
	if err != nil {
		pos, message := Position{1, 1}, strings.TrimPrefix(err.Error(), "hujson: ")
		if m := syntaxPosition.FindStringSubmatch(err.Error()); m != nil {
			pos.Line, _ = strconv.Atoi(m[1])
			pos.Column, _ = strconv.Atoi(m[2])
			message = strings.TrimPrefix(err.Error(), m[0])
		}
		if strings.HasSuffix(message, "unexpected EOF") {
			message = "the document ends in the middle of a value"
		}
		r.fail(pos, "", message, "a policy is JSON, in which comments and trailing commas are allowed")
		return hujson.Value{}, false
	}
	return v, true
}

// deeperThan returns the offset of the first bracket that opens a level beyond
// the limit, or -1. It looks at the text because the parser recurses.
func deeperThan(text []byte, limit int) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case c == '/' && i+1 < len(text) && text[i+1] == '/':
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case c == '/' && i+1 < len(text) && text[i+1] == '*':
			end := bytes.Index(text[i+2:], []byte("*/"))
			if end < 0 {
				return -1
			}
			i += 2 + end + 1
		case c == '{' || c == '[':
			if depth++; depth > limit {
				return i
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return -1
}

func (r *reader) at(v *hujson.Value) Position { return r.position(v.StartOffset) }

// source is the value as written, cut where it is long.
func (r *reader) source(v *hujson.Value) string {
	s := string(r.text[v.StartOffset:v.EndOffset])
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:57], "") + "..."
	}
	return s
}

func kindName(v *hujson.Value) string {
	switch v.Value.Kind() {
	case 'n':
		return "null"
	case 't', 'f':
		return "a truth value"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{':
		return "an object"
	default:
		return "a list"
	}
}

func (r *reader) wrongKind(v *hujson.Value, what, want string) {
	r.fail(r.at(v), r.source(v), fmt.Sprintf("%s is %s", what, kindName(v)), "write "+want)
}

func isNull(v *hujson.Value) bool { return v.Value.Kind() == 'n' }

// field is one key that an object may have.
type field struct {
	name string
	read func(v *hujson.Value)
}

// object reads an object with the given keys, whose case does not matter, and
// refuses others. A null value is the same as none.
func (r *reader) object(v *hujson.Value, what string, fields []field) bool {
	o, ok := v.Value.(*hujson.Object)
	if !ok {
		r.wrongKind(v, what, "an object, { }")
		return false
	}
	seen := make([]bool, len(fields))
	for i := range o.Members {
		m := &o.Members[i]
		name := literalText(&m.Name)
		at := slices.IndexFunc(fields, func(f field) bool { return strings.EqualFold(f.name, name) })
		if at < 0 {
			names := make([]string, 0, len(fields))
			for _, f := range fields {
				names = append(names, f.name)
			}
			r.fail(r.at(&m.Name), name, fmt.Sprintf("%s has no key %q", what, name), nearest(name, names))
			continue
		}
		if seen[at] {
			r.fail(r.at(&m.Name), name, fmt.Sprintf("%s has the key %q twice", what, fields[at].name), "keep one of them")
			continue
		}
		seen[at] = true
		if !isNull(&m.Value) {
			fields[at].read(&m.Value)
		}
	}
	return true
}

// nearest proposes the key that was probably meant, or lists all.
func nearest(name string, names []string) string {
	if hint := didYouMean(name, names); hint != "" {
		return hint
	}
	return "it may have " + strings.Join(names, ", ")
}

// didYouMean proposes the name that was probably meant, or "".
func didYouMean(name string, names []string) string {
	best, distance := "", 3
	for _, n := range names {
		if d := editDistance(strings.ToLower(name), strings.ToLower(n), distance); d < distance {
			best, distance = n, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return ""
}

// definition is the hint for a name that is not defined.
func definition(section, name string, names []string) string {
	hint := "define it under " + section
	if meant := didYouMean(name, names); meant != "" {
		hint += "; " + meant
	}
	return hint
}

// editDistance is the Levenshtein distance, or limit where it is not below it.
func editDistance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}

// entries reads an object whose keys are names of the author's choice.
func (r *reader) entries(v *hujson.Value, what string, read func(name string, at Position, v *hujson.Value)) {
	o, ok := v.Value.(*hujson.Object)
	if !ok {
		r.wrongKind(v, what, "an object, { }")
		return
	}
	if len(o.Members) > MaxDefinitions {
		r.fail(r.at(v), "", fmt.Sprintf("%s has %d entries", what, len(o.Members)), fmt.Sprintf("at most %d are read", MaxDefinitions))
		return
	}
	seen := make(map[string]bool, len(o.Members))
	for i := range o.Members {
		m := &o.Members[i]
		name := strings.TrimSpace(literalText(&m.Name))
		at := r.at(&m.Name)
		switch {
		case name == "":
			r.fail(at, name, what+" has an entry without a name", "write a name before the colon")
		case len(name) > MaxNameLength:
			r.fail(at, name[:40]+"...", fmt.Sprintf("a name in %s has %d bytes", what, len(name)), fmt.Sprintf("at most %d are allowed", MaxNameLength))
		case seen[name]:
			r.fail(at, name, fmt.Sprintf("%s has %q twice", what, name), "keep one of them")
		default:
			seen[name] = true
			read(name, at, &m.Value)
		}
	}
}

func (r *reader) list(v *hujson.Value, what string, limit int, read func(v *hujson.Value)) {
	a, ok := v.Value.(*hujson.Array)
	if !ok {
		r.wrongKind(v, what, "a list, [ ]")
		return
	}
	if len(a.Elements) > limit {
		r.fail(r.at(v), "", fmt.Sprintf("%s has %d entries", what, len(a.Elements)), fmt.Sprintf("at most %d are read", limit))
		return
	}
	for i := range a.Elements {
		read(&a.Elements[i])
	}
}

// elements returns how many elements of a list will be read at most.
func elements(v *hujson.Value) int {
	if a, ok := v.Value.(*hujson.Array); ok {
		return min(len(a.Elements), MaxSelectors)
	}
	return 0
}

func literalText(v *hujson.Value) string {
	lit, ok := v.Value.(hujson.Literal)
	if !ok {
		return ""
	}
	if n := len(lit); n >= 2 && lit[0] == '"' && bytes.IndexByte(lit, '\\') < 0 {
		return string(lit[1 : n-1])
	}
	return lit.String()
}

func (r *reader) string(v *hujson.Value, what string) (string, bool) {
	if v.Value.Kind() != '"' {
		r.wrongKind(v, what, "a string in quotes")
		return "", false
	}
	s := literalText(v)
	if len(s) > MaxNameLength*16 {
		r.fail(r.at(v), s[:40]+"...", fmt.Sprintf("%s has %d bytes", what, len(s)), fmt.Sprintf("at most %d are read", MaxNameLength*16))
		return "", false
	}
	return s, true
}

// names reads a list of strings, spaces around them cut off.
func (r *reader) names(v *hujson.Value, what string) []Name {
	out := make([]Name, 0, elements(v))
	r.list(v, what, MaxSelectors, func(v *hujson.Value) {
		if s, ok := r.string(v, "an entry of "+what); ok {
			out = append(out, Name{strings.TrimSpace(s), r.at(v)})
		}
	})
	return out
}

func (r *reader) bool(v *hujson.Value, what string) bool {
	switch v.Value.Kind() {
	case 't':
		return true
	case 'f':
		return false
	}
	r.wrongKind(v, what, "true or false")
	return false
}

// duration reads Go's spelling of a duration, with days (d) and weeks (w) as
// well.
func (r *reader) duration(v *hujson.Value, what string) (time.Duration, bool) {
	s, ok := r.string(v, what)
	if !ok {
		return 0, false
	}
	s = strings.TrimSpace(s)
	d, err := parseDuration(s)
	if err != nil {
		r.fail(r.at(v), s, fmt.Sprintf("%s: invalid duration %q", what, s), `write a number and a unit, such as "30m", "12h" or "7d"`)
		return 0, false
	}
	return d, true
}

func parseDuration(s string) (time.Duration, error) {
	for unit, hours := range [...]int64{24, 168} {
		if digits, ok := strings.CutSuffix(s, "dw"[unit:unit+1]); ok {
			n, err := strconv.ParseInt(digits, 10, 32)
			if err != nil || n > 1e5/hours*24 || n < -1e5/hours*24 {
				return 0, strconv.ErrSyntax
			}
			return time.Duration(n*hours) * time.Hour, nil
		}
	}
	return time.ParseDuration(s)
}

func (r *reader) time(v *hujson.Value, what string) time.Time {
	s, ok := r.string(v, what)
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(s))
	if err != nil || t.Year() < 1970 || t.Year() > 9999 || t.IsZero() {
		r.fail(r.at(v), s, fmt.Sprintf("%s: %q is not a time", what, s), `write RFC 3339 with a time zone, such as "2026-12-31T18:00:00Z"`)
		return time.Time{}
	}
	return t.UTC()
}

// minimal returns the value as JSON without comments and insignificant space.
func minimal(v *hujson.Value) string {
	c := v.Clone()
	c.Minimize()
	return string(c.Pack())
}
