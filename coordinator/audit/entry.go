package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/warren-overlay/warren/acl/canonical"
)

// Entry is one change, or one attempt that was refused.
type Entry struct {
	// Time is when, to the millisecond.
	Time time.Time
	// Actor is who: "admin uid 0", "n12", "coordinator", or the machine key of
	// a device that is not a member.
	Actor string
	// Action is what, as "noun.verb" of a fixed set, such as "device.revoke".
	// An attempt that was refused has the suffix ".refused".
	Action string
	// Target is to what: the id of a user, device or key; empty for the network.
	Target string
	// Details are the particulars in the order that the action gives them.
	Details []Detail
}

// Detail is one particular of an Entry.
type Detail struct{ Key, Value string }

// Limits on what an entry may hold: an attempt of a stranger's is written down
// too, and must not cost more than this.
const (
	maxText    = 4 << 10
	maxDetails = 64
)

const entryVersion = 1

// ErrMalformed is wrapped by the errors of Decode.
var ErrMalformed = errors.New("audit: malformed entry")

// AppendBinary appends the canonical encoding of e. Text that is not UTF-8 or
// over the limit of 4 KiB is cut, and details beyond 64 are left out, rather
// than that a change would have no entry.
func (e *Entry) AppendBinary(b []byte) []byte {
	b = canonical.AppendArray(b, 6)
	b = canonical.AppendUint(b, entryVersion)
	b = canonical.AppendUint(b, uint64(max(0, e.Time.UnixMilli())))
	b = canonical.AppendText(b, bounded(e.Actor))
	b = canonical.AppendText(b, bounded(e.Action))
	b = canonical.AppendText(b, bounded(e.Target))
	details := e.Details[:min(len(e.Details), maxDetails)]
	b = canonical.AppendArray(b, len(details))
	for _, d := range details {
		b = canonical.AppendArray(b, 2)
		b = canonical.AppendText(b, bounded(d.Key))
		b = canonical.AppendText(b, bounded(d.Value))
	}
	return b
}

// bounded returns the longest part of s that an entry may hold.
func bounded(s string) string {
	for i, r := range s {
		size := utf8.RuneLen(r)
		if r == utf8.RuneError && s[i:min(len(s), i+3)] != "\uFFFD" || i+size > maxText {
			return s[:i]
		}
	}
	return s
}

// Decode reads what AppendBinary wrote, and nothing else. The error wraps
// ErrMalformed.
func Decode(b []byte) (Entry, error) {
	r := canonical.NewReader(b)
	r.Record(6, entryVersion)
	ms := r.Uint()
	if ms > 1<<47 { // the year 6429: within what time.Time prints
		r.Fail("time out of range")
	}
	e := Entry{Time: time.UnixMilli(int64(ms)).UTC(), Actor: r.Text(maxText), Action: r.Text(maxText), Target: r.Text(maxText)}
	for range r.Array(maxDetails) {
		if r.Array(2) != 2 {
			r.Fail("detail without two fields")
		}
		e.Details = append(e.Details, Detail{r.Text(maxText), r.Text(maxText)})
	}
	if err := r.Close(); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return e, nil
}

// Hash is the hash of an entry and of all before it.
type Hash [sha256.Size]byte

// Head is the end of a chain. The zero Head is that of the empty chain.
type Head struct {
	// Index is the number of the last entry; the first is 1.
	Index uint64
	Hash  Hash
}

// Record is an entry in its place: what is stored.
type Record struct {
	Index uint64
	// Entry is the canonical encoding.
	Entry []byte
	Hash  Hash
}

// Append returns the record that puts e behind h, and the new head.
func (h Head) Append(e *Entry) (Record, Head) {
	r := Record{Index: h.Index + 1, Entry: e.AppendBinary(nil)}
	r.Hash = next(h.Hash, r.Entry)
	return r, Head{Index: r.Index, Hash: r.Hash}
}

func next(previous Hash, entry []byte) Hash {
	return sha256.Sum256(append(previous[:], entry...))
}

// BrokenError tells where a chain does not hold.
type BrokenError struct {
	// Index is the first index at which the chain is not what it was.
	Index uint64
	// Reason says what is wrong there.
	Reason string
}

// Error returns the index and the reason.
func (e *BrokenError) Error() string {
	return fmt.Sprintf("audit: the chain is broken at index %d: %s", e.Index, e.Reason)
}

// Verify checks that r follows h, and returns the head with it. The error is a
// *BrokenError.
func (h Head) Verify(r *Record) (Head, error) {
	switch {
	case r.Index != h.Index+1:
		return h, &BrokenError{Index: h.Index + 1, Reason: fmt.Sprintf("it is missing; entry %d stands in its place", r.Index)}
	case next(h.Hash, r.Entry) != r.Hash:
		return h, &BrokenError{Index: r.Index, Reason: "its hash is not that of the entry and the chain before it"}
	}
	if _, err := Decode(r.Entry); err != nil {
		return h, &BrokenError{Index: r.Index, Reason: err.Error()}
	}
	return Head{Index: r.Index, Hash: r.Hash}, nil
}

// Covers checks that a chain which ends at h still has known, a head of the
// same chain that was kept elsewhere, where at returns the hash of the entry
// with an index. It finds a chain whose end was cut off or that was written
// anew. The error is a *BrokenError.
func (h Head) Covers(known Head, at func(index uint64) (Hash, bool)) error {
	if known.Index == 0 {
		return nil
	}
	if known.Index > h.Index {
		return &BrokenError{Index: h.Index + 1, Reason: fmt.Sprintf("the chain ends before it, and once reached %d", known.Index)}
	}
	if hash, ok := at(known.Index); !ok || hash != known.Hash {
		return &BrokenError{Index: known.Index, Reason: "the chain was written anew: it once had another hash there"}
	}
	return nil
}
