package zone

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFindEqualsArchiveZip reads the whole database by the standard library.
func TestFindEqualsArchiveZip(t *testing.T) {
	archive, err := zip.NewReader(strings.NewReader(database), int64(len(database)))
	if err != nil {
		t.Fatal(err)
	}
	zones := 0
	for _, f := range archive.File {
		if f.FileInfo().IsDir() {
			continue
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := find(f.Name)
		if !ok || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d", f.Name, len(got), ok, len(want))
		}
		location, err := Load(f.Name)
		if err != nil || location.String() != f.Name {
			t.Errorf("Load(%q) = %v, %v", f.Name, location, err)
		}
		zones++
	}
	if zones < 500 {
		t.Errorf("%d zones", zones)
	}
}

func TestLoad(t *testing.T) {
	for _, name := range []string{"", "UTC"} {
		if l, err := Load(name); err != nil || l != time.UTC {
			t.Errorf("Load(%q) = %v, %v", name, l, err)
		}
	}
	for _, name := range []string{"Local", "Nowhere/Land", "europe/berlin", "Europe/", "Europe", "../Europe/Berlin", "/etc/localtime", strings.Repeat("x", 1000)} {
		if l, err := Load(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("Load(%q) = %v, %v, want ErrUnknown", name, l, err)
		}
	}
	berlin, err := Load("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{
		"2026-03-29T00:59:59Z": "2026-03-29T01:59:59+01:00", "2026-03-29T01:00:00Z": "2026-03-29T03:00:00+02:00",
	} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := when.In(berlin).Format(time.RFC3339); got != want {
			t.Errorf("%s is %s in Berlin, want %s", at, got, want)
		}
	}
}

// TestTheSystemIsNotAsked points $ZONEINFO to a database in which every zone is
// UTC+9, which package time believes.
func TestTheSystemIsNotAsked(t *testing.T) {
	var lie bytes.Buffer
	w := zip.NewWriter(&lie)
	f, err := w.CreateHeader(&zip.FileHeader{Name: "Europe/Berlin", Method: zip.Store})
	if err != nil {
		t.Fatal(err)
	}
	tokyo, _ := find("Asia/Tokyo")
	if _, err := f.Write(tokyo); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ZONEINFO", writeFile(t, lie.Bytes()))
	l, err := Load("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	if _, offset := time.Unix(0, 0).In(l).Zone(); offset != 3600 {
		t.Errorf("Berlin was %d seconds ahead of UTC in 1970, want 3600", offset)
	}
}

func writeFile(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "zoneinfo.zip")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, err := Load("Pacific/Wallis"); err != nil {
			b.Fatal(err)
		}
	}
}
