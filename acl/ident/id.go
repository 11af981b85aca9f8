package ident

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// NodeID names one device in one network for as long as it is registered. The
// coordinator hands ids out in ascending order and never uses one again. Zero
// means "no device".
type NodeID uint64

// UserID names one user in one network. Zero means "no user": the owner of a
// tagged device.
type UserID uint64

// ErrMalformedID is wrapped by every error about the text of an id.
var ErrMalformedID = errors.New("ident: malformed id")

// String returns the id as users see it, such as "n12".
func (id NodeID) String() string { return "n" + strconv.FormatUint(uint64(id), 10) }

// String returns the id as users see it, such as "u3".
func (id UserID) String() string { return "u" + strconv.FormatUint(uint64(id), 10) }

// ParseNodeID reads the text that NodeID.String writes. Zero is refused. The
// error wraps ErrMalformedID.
func ParseNodeID(s string) (NodeID, error) {
	n, err := parseID("n", s)
	return NodeID(n), err
}

// ParseUserID reads the text that UserID.String writes. Zero is refused. The
// error wraps ErrMalformedID.
func ParseUserID(s string) (UserID, error) {
	n, err := parseID("u", s)
	return UserID(n), err
}

func parseID(prefix, s string) (uint64, error) {
	digits, ok := strings.CutPrefix(s, prefix)
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || n == 0 || digits[0] == '0' || digits[0] == '+' {
		return 0, fmt.Errorf("%w: %q is not %q and a positive number", ErrMalformedID, s, prefix)
	}
	return n, nil
}
