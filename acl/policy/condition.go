package policy

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Value is the value of a posture attribute: a string, a number or a truth
// value.
type Value struct {
	Text   string
	Number float64
	Bool   bool
	Type   ValueType
}

// ValueType says which field of a Value holds.
type ValueType uint8

const (
	// Text values hold a string.
	Text ValueType = iota
	// Number values hold a number.
	Number
	// Bool values hold true or false.
	Bool
)

// String returns the value as it is written in a condition.
func (v Value) String() string {
	switch v.Type {
	case Number:
		return strconv.FormatFloat(v.Number, 'g', -1, 64)
	case Bool:
		return strconv.FormatBool(v.Bool)
	default:
		return "'" + v.Text + "'"
	}
}

// Operator is what a condition does with the attribute.
type Operator uint8

// The operators of the condition language.
const (
	Equal Operator = iota
	NotEqual
	Less
	LessEqual
	Greater
	GreaterEqual
	In
	NotIn
	IsSet
	NotSet
)

var operatorText = [...]string{"==", "!=", "<", "<=", ">", ">=", "IN", "NOT IN", "IS SET", "NOT SET"}

// String returns the operator as it is written.
func (o Operator) String() string { return operatorText[o] }

// Condition is one comparison of an attribute, such as
// node:osVersion >= '14.2'.
type Condition struct {
	Attribute string // with its namespace, "node:os"
	Operator  Operator
	Values    []Value // one, or the list of IN and NOT IN
	Pos       Position
}

// String returns the condition in its canonical spelling.
func (c Condition) String() string {
	switch c.Operator {
	case IsSet, NotSet:
		return c.Attribute + " " + c.Operator.String()
	case In, NotIn:
		texts := make([]string, len(c.Values))
		for i, v := range c.Values {
			texts[i] = v.String()
		}
		return c.Attribute + " " + c.Operator.String() + " [" + strings.Join(texts, ", ") + "]"
	default:
		return c.Attribute + " " + c.Operator.String() + " " + c.Values[0].String()
	}
}

// Holds reports whether the condition is true of the attributes. An attribute
// that is not there satisfies NOT SET only: not knowing is never a permission.
// Values of different types are unequal and unordered, except that a string
// that spells a number or a truth value compares with one.
//
// Strings are ordered as versions: by their parts between dots and dashes,
// numbers by value, so that '14.10' is greater than '14.9', and a version
// that goes on is greater than one that ends ('1.2.1' > '1.2'), unless it goes
// on with letters, which mark what came before it ('1.2-rc1' < '1.2').
func (c Condition) Holds(attributes map[string]Value) bool {
	have, ok := attributes[c.Attribute]
	switch {
	case c.Operator == NotSet:
		return !ok
	case c.Operator == IsSet:
		return ok
	case !ok:
		return false
	}
	switch c.Operator {
	case In, Equal:
		return c.anyEqual(have)
	case NotIn, NotEqual:
		return !c.anyEqual(have)
	default: // an order
	}
	order, comparable := have.compare(c.Values[0])
	if !comparable {
		return false
	}
	switch c.Operator {
	case Less:
		return order < 0
	case LessEqual:
		return order <= 0
	case Greater:
		return order > 0
	default:
		return order >= 0
	}
}

func (c Condition) anyEqual(have Value) bool {
	for _, want := range c.Values {
		if have.equal(want) {
			return true
		}
	}
	return false
}

func (v Value) equal(w Value) bool {
	if v.Type == Text && w.Type == Text {
		return v.Text == w.Text
	}
	v, w = v.coerce(w.Type), w.coerce(v.Type)
	return v == w
}

// coerce returns v as a value of the type where it spells one, and v as it is
// where not.
func (v Value) coerce(t ValueType) Value {
	if v.Type != Text || t == Text {
		return v
	}
	if t == Number {
		if n, err := strconv.ParseFloat(v.Text, 64); err == nil {
			return Value{Type: Number, Number: n}
		}
		return v
	}
	switch v.Text {
	case "true":
		return Value{Type: Bool, Bool: true}
	case "false":
		return Value{Type: Bool}
	}
	return v
}

func (v Value) compare(w Value) (order int, comparable bool) {
	v, w = v.coerce(w.Type), w.coerce(v.Type)
	switch {
	case v.Type == Number && w.Type == Number:
		return cmp.Compare(v.Number, w.Number), v.Number == v.Number && w.Number == w.Number
	case v.Type == Text && w.Type == Text:
		return compareVersions(v.Text, w.Text), true
	default:
		return 0, false
	}
}

func compareVersions(a, b string) int {
	for a != "" || b != "" {
		var x, y string
		x, a = nextPart(a)
		y, b = nextPart(b)
		if order := comparePart(x, y); order != 0 {
			return order
		}
	}
	return 0
}

// nextPart cuts the first run of digits or of other characters off a version,
// without the separators before it.
func nextPart(s string) (part, rest string) {
	s = strings.TrimLeft(s, ".-_+ ")
	if s == "" {
		return "", ""
	}
	digits := isDigit(s[0])
	i := 1
	for i < len(s) && isDigit(s[i]) == digits && !strings.ContainsRune(".-_+ ", rune(s[i])) {
		i++
	}
	return s[:i], s[i:]
}

func comparePart(x, y string) int {
	rank := func(s string) int {
		switch {
		case s == "":
			return 1
		case isDigit(s[0]):
			return 2
		default:
			return 0
		}
	}
	if order := cmp.Compare(rank(x), rank(y)); order != 0 || x == "" {
		return order
	}
	if isDigit(x[0]) {
		x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	}
	return cmp.Compare(strings.ToLower(x), strings.ToLower(y))
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// conditionError is a fault in a condition's text, at a byte of it.
type conditionError struct {
	at            int
	message, hint string
}

// parseCondition reads one condition. On a fault it returns where in the text
// and what.
func parseCondition(text string) (Condition, *conditionError) {
	p := conditionParser{text: text}
	p.space()
	var c Condition
	c.Attribute = p.attribute()
	c.Operator = p.operator()
	switch {
	case p.err != nil:
	case c.Operator == In || c.Operator == NotIn:
		c.Values = p.list()
	case c.Operator != IsSet && c.Operator != NotSet:
		v := p.value()
		c.Values = []Value{v}
		if p.err == nil && v.Type == Bool && c.Operator != Equal && c.Operator != NotEqual {
			p.fail("true and false have no order", "compare them with == or !=")
		}
	}
	p.space()
	if p.err == nil && p.at < len(p.text) {
		p.fail(fmt.Sprintf("unexpected %q after the condition", p.text[p.at:]), "write one condition in each string; all of a posture's conditions must hold")
	}
	return c, p.err
}

type conditionParser struct {
	text string
	at   int
	err  *conditionError
}

func (p *conditionParser) fail(message, hint string) {
	if p.err == nil {
		p.err = &conditionError{p.at, message, hint}
	}
}

func (p *conditionParser) space() {
	for p.at < len(p.text) && (p.text[p.at] == ' ' || p.text[p.at] == '\t') {
		p.at++
	}
}

func (p *conditionParser) word() string {
	p.space()
	start := p.at
	for p.at < len(p.text) && ('a' <= p.text[p.at]|0x20 && p.text[p.at]|0x20 <= 'z') {
		p.at++
	}
	return p.text[start:p.at]
}

func (p *conditionParser) attribute() string {
	start := p.at
	for p.at < len(p.text) && !strings.ContainsRune(" \t=!<>[]'\",", rune(p.text[p.at])) {
		p.at++
	}
	name := p.text[start:p.at]
	space, rest, ok := strings.Cut(name, ":")
	if !ok || space == "" || rest == "" {
		p.at = start
		p.fail(fmt.Sprintf("%q is not an attribute", name), "write a namespace and a name, such as node:os")
	}
	return name
}

func (p *conditionParser) operator() Operator {
	p.space()
	const hint = "write ==, !=, <, <=, >, >=, IN, NOT IN, IS SET or NOT SET"
	for _, o := range [...]Operator{Equal, NotEqual, LessEqual, GreaterEqual, Less, Greater} {
		if strings.HasPrefix(p.text[p.at:], o.String()) {
			p.at += len(o.String())
			return o
		}
	}
	start := p.at
	first := strings.ToUpper(p.word())
	if first == "IN" {
		return In
	}
	afterFirst := p.at
	second := strings.ToUpper(p.word())
	switch first + " " + second {
	case "NOT IN":
		return NotIn
	case "IS SET":
		return IsSet
	case "NOT SET":
		return NotSet
	case "IS NOT":
		if strings.ToUpper(p.word()) == "SET" {
			return NotSet
		}
	}
	p.at = start
	switch {
	case start == len(p.text):
		p.fail("the condition has no operator", hint)
	case afterFirst == start:
		p.fail(fmt.Sprintf("%q is not an operator", p.text[start:min(start+2, len(p.text))]), hint)
	default:
		p.fail(fmt.Sprintf("%q is not an operator", p.text[start:afterFirst]), hint)
	}
	return Equal
}

func (p *conditionParser) list() []Value {
	p.space()
	const hint = "write a list, such as ['macos', 'linux']"
	if p.at == len(p.text) || p.text[p.at] != '[' {
		p.fail("the operator needs a list", hint)
		return nil
	}
	p.at++
	var values []Value
	for p.err == nil {
		p.space()
		if p.at < len(p.text) && p.text[p.at] == ']' && len(values) > 0 {
			break
		}
		values = append(values, p.value())
		p.space()
		if p.at < len(p.text) && p.text[p.at] == ',' {
			p.at++
			continue
		}
		if p.at == len(p.text) || p.text[p.at] != ']' {
			p.fail("the list does not end", hint)
		}
		break
	}
	if p.err == nil {
		p.at++
	}
	return values
}

func (p *conditionParser) value() Value {
	p.space()
	rest := p.text[p.at:]
	const hint = "write a string in quotes ('14.2'), a number, true or false"
	if rest == "" {
		p.fail("the operator needs a value", hint)
		return Value{}
	}
	if q := rest[0]; q == '\'' || q == '"' {
		end := strings.IndexByte(rest[1:], q)
		if end < 0 {
			p.fail("the string does not end", hint)
			return Value{}
		}
		p.at += end + 2
		return Value{Text: rest[1 : end+1]}
	}
	end := strings.IndexAny(rest, " \t,]")
	if end < 0 {
		end = len(rest)
	}
	switch token := rest[:end]; token {
	case "true", "false":
		p.at += end
		return Value{Type: Bool, Bool: token == "true"}
	default:
		n, err := strconv.ParseFloat(token, 64)
		if err != nil || strings.ContainsAny(token, "xXpP_nNiI") {
			p.fail(fmt.Sprintf("%q is not a value", token), hint)
			return Value{}
		}
		p.at += end
		return Value{Type: Number, Number: n}
	}
}
