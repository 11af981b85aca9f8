package ident

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Label stands for one fact about a device that rules can ask for: its user, a
// group of its user, a role, a tag, a posture. It is a number, not a name, so
// that a node learns from its rules whom they admit, but not how groups and
// users that it may not see are called. Zero is no label: nobody holds it.
//
// The number is the keyed hash of the fact's name (LabelKey.Label): the same
// name is the same number in every certificate and rule of one network, without
// a table that would have to be kept and shared.
type Label uint64

// LabelKey is the coordinator's secret from which label numbers are derived.
// The zero key is valid where nothing needs hiding, as in an offline compile. It
// prints as "[redacted]".
type LabelKey [32]byte

// Label returns the number of the fact that name spells, such as
// "group:eng" or "user:alice@example.com". It never returns zero. Two names of
// one network share a number with probability 2^-64; the compiler refuses a
// policy in which that happens, so that a collision can never widen access.
func (k LabelKey) Label(name string) Label {
	mac := hmac.New(sha256.New, k[:])
	mac.Write([]byte("warren label v1\x00"))
	mac.Write([]byte(name))
	n := binary.BigEndian.Uint64(mac.Sum(nil))
	if n == 0 {
		n = 1
	}
	return Label(n)
}

// Format writes "[redacted]" whatever the verb.
func (LabelKey) Format(f fmt.State, _ rune) { io.WriteString(f, secret{}.redacted()) }

// String returns "[redacted]".
func (LabelKey) String() string { return secret{}.redacted() }

// GoString returns "[redacted]".
func (LabelKey) GoString() string { return secret{}.redacted() }

// MarshalText returns ErrPrivateKey.
func (LabelKey) MarshalText() ([]byte, error) { return nil, ErrPrivateKey }

// LabelSet is a set of labels in ascending order without repeats. Its zero
// value is the empty set. A LabelSet is immutable once made: copies share its
// storage.
type LabelSet struct{ sorted []Label }

// NewLabelSet returns the set of the given labels. The argument is not kept. A
// zero label is kept, so that a set that asks for one matches nobody: left out,
// it would match more.
func NewLabelSet(labels ...Label) LabelSet {
	s := slices.Clone(labels)
	slices.Sort(s)
	return LabelSet{slices.Compact(s)}
}

// Has reports whether l is in the set and is a label: zero never is.
func (s LabelSet) Has(l Label) bool {
	_, ok := slices.BinarySearch(s.sorted, l)
	return ok && l != 0
}

// HasAll reports whether every label of t is in s. The empty set is in every
// set, one with a zero label in none, not even in itself.
func (s LabelSet) HasAll(t LabelSet) bool {
	if len(t.sorted) > len(s.sorted) {
		return false
	}
	for _, l := range t.sorted {
		if !s.Has(l) {
			return false
		}
	}
	return true
}

// Equal reports whether s and t hold the same labels.
func (s LabelSet) Equal(t LabelSet) bool { return slices.Equal(s.sorted, t.sorted) }

// Len returns the number of labels.
func (s LabelSet) Len() int { return len(s.sorted) }

// Slice returns the labels in ascending order. The caller must not write to it.
func (s LabelSet) Slice() []Label { return s.sorted }

// Tag is the name of a tag with its prefix, such as "tag:db".
type Tag string

// Valid reports whether t is "tag:" and a name that begins with a letter and
// goes on with letters, digits and dashes, all ASCII, 63 bytes at most.
func (t Tag) Valid() bool {
	name, ok := strings.CutPrefix(string(t), "tag:")
	if !ok || name == "" || len(name) > 63 {
		return false
	}
	for i, c := range []byte(name) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return true
}
