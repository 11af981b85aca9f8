package audit

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func entries(n int) []Entry {
	var out []Entry
	for i := range n {
		out = append(out, Entry{
			Time: time.UnixMilli(int64(1_800_000_000_000 + i)).UTC(), Actor: "admin uid 0", Action: "user.create",
			Target: "u1", Details: []Detail{{"login", "alice@example.com"}, {"n", strings.Repeat("x", i)}},
		})
	}
	return out
}

func chain(n int) []Record {
	var head Head
	var out []Record
	for _, e := range entries(n) {
		r, next := head.Append(&e)
		out, head = append(out, r), next
	}
	return out
}

func verify(records []Record) (Head, error) {
	var head Head
	for i := range records {
		next, err := head.Verify(&records[i])
		if err != nil {
			return head, err
		}
		head = next
	}
	return head, nil
}

func TestDecodeReadsWhatWasWritten(t *testing.T) {
	for _, e := range entries(3) {
		got, err := Decode(e.AppendBinary(nil))
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, e)
		}
	}
}

func TestTextIsBounded(t *testing.T) {
	e := Entry{
		Time: time.UnixMilli(5).UTC(), Actor: strings.Repeat("é", maxText), Action: "a\xff\xfeb", Target: "x\uFFFDy",
		Details: make([]Detail, maxDetails+5),
	}
	got, err := Decode(e.AppendBinary(nil))
	if err != nil {
		t.Fatal(err)
	}
	if got.Actor != strings.Repeat("é", maxText/2) || got.Action != "a" || got.Target != "x\uFFFDy" || len(got.Details) != maxDetails {
		t.Errorf("actor of %d bytes, action %q, target %q, %d details", len(got.Actor), got.Action, got.Target, len(got.Details))
	}
}

func TestVerifyNamesTheFirstBadIndex(t *testing.T) {
	swap := func(r []Record) []Record { r[3], r[4] = r[4], r[3]; return r }
	for _, c := range []struct {
		name string
		harm func([]Record) []Record
		want uint64
	}{
		{"nothing", func(r []Record) []Record { return r }, 0},
		{"a byte of an entry", func(r []Record) []Record { r[4].Entry = bytes.Clone(r[4].Entry); r[4].Entry[20] ^= 1; return r }, 5},
		{"a byte of a hash", func(r []Record) []Record { r[4].Hash[0] ^= 1; return r }, 5},
		{"an entry taken out", func(r []Record) []Record { return slices.Delete(r, 2, 3) }, 3},
		{"the first taken out", func(r []Record) []Record { return r[1:] }, 1},
		{"two swapped", swap, 4},
		{"two swapped and numbered anew", func(r []Record) []Record {
			swap(r)
			r[3].Index, r[4].Index = 4, 5
			return r
		}, 4},
		{"an entry that is none", func(r []Record) []Record {
			r[9].Entry = []byte{1}
			r[9].Hash = next(r[8].Hash, r[9].Entry)
			return r
		}, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := verify(c.harm(chain(10)))
			var broken *BrokenError
			switch {
			case c.want == 0 && err != nil:
				t.Fatal(err)
			case c.want != 0 && (!errors.As(err, &broken) || broken.Index != c.want):
				t.Fatalf("%v, want index %d", err, c.want)
			}
		})
	}
}

func TestCoversFindsACutEnd(t *testing.T) {
	records := chain(10)
	at := func(records []Record) func(uint64) (Hash, bool) {
		return func(i uint64) (Hash, bool) {
			if i == 0 || i > uint64(len(records)) {
				return Hash{}, false
			}
			return records[i-1].Hash, true
		}
	}
	known := Head{Index: 8, Hash: records[7].Hash}
	for _, c := range []struct {
		name  string
		keep  []Record
		known Head
		want  uint64
	}{
		{"whole", records, known, 0},
		{"nothing known", records[:1], Head{}, 0},
		{"cut before it", records[:6], known, 7},
		{"cut after it", records[:9], known, 0},
		{"written anew", chain(12)[:10], Head{Index: 8, Hash: Hash{1}}, 8},
	} {
		head, err := verify(c.keep)
		if err != nil {
			t.Fatal(err)
		}
		err = head.Covers(c.known, at(c.keep))
		var broken *BrokenError
		if c.want == 0 && err != nil || c.want != 0 && (!errors.As(err, &broken) || broken.Index != c.want) {
			t.Errorf("%s: %v, want index %d", c.name, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range entries(3) {
		f.Add(e.AppendBinary(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		if again := e.AppendBinary(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes and encodes to %x", b, again)
		}
	})
}
