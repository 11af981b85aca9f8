package flowlog

import (
	"bytes"
	"testing"
)

// FuzzParse checks that no bytes make Parse panic, and that what it accepts is
// encoded and read again as the same.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		batch, err := Parse(b)
		if err != nil {
			return
		}
		first, err := Append(nil, batch)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(first)
		if err != nil {
			t.Fatalf("what was accepted is refused: %v", err)
		}
		second, err := Append(nil, again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%v: % x\n% x", err, first, second)
		}
	})
}
