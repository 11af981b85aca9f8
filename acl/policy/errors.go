package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ErrInvalid is wrapped by every error of Parse and Format.
var ErrInvalid = errors.New("policy: invalid document")

// Position is a place in the text of a document. Line and Column count from 1,
// Column in bytes. The zero value is no place.
type Position struct{ Line, Column int }

// String returns "line:column".
func (p Position) String() string { return strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column) }

// ParseError is one thing wrong with a document.
type ParseError struct {
	Position
	// Text is the offending text as the author wrote it, without its quotes.
	// Empty where something is missing.
	Text string
	// Message says what is wrong.
	Message string
	// Hint says what would be right. It may be empty.
	Hint string
}

// Error returns all of it in one line.
func (e *ParseError) Error() string {
	return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.Description())
}

// Description returns the message and the hint without the position.
func (e *ParseError) Description() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}

// Unwrap returns ErrInvalid.
func (e *ParseError) Unwrap() error { return ErrInvalid }

// ErrorList is what Parse returns: at least one error, sorted by position.
type ErrorList []*ParseError

// Error returns one line for each error.
func (l ErrorList) Error() string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the errors.
func (l ErrorList) Unwrap() []error {
	out := make([]error, len(l))
	for i, e := range l {
		out[i] = e
	}
	return out
}

// sorted returns the list in the order of the text, without repeats and cut to
// MaxErrors, or nil where it is empty.
func (l ErrorList) sorted() error {
	if len(l) == 0 {
		return nil
	}
	slices.SortStableFunc(l, func(a, b *ParseError) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	l = slices.CompactFunc(l, func(a, b *ParseError) bool { return *a == *b })
	return l[:min(len(l), MaxErrors)]
}
