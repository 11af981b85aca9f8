package compile_test

import (
	"maps"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
)

// maxHostileHeap is the most memory that any document may make the engine take,
// refused or accepted: what the limits of package policy come to. A coordinator
// that is sized for it cannot be brought down by a policy.
const maxHostileHeap = 1 << 30

// TestHostileMemory bounds the heap while documents that are made to be
// expensive are parsed, compiled, tested and changed.
func TestHostileMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds of a processor, and the race detector memory of its own")
	}
	texts := hostileDocuments()
	texts["refused: many errors"] = `{"acls": [` + strings.Repeat(`{"x": 1},`, policy.MaxRules) + `]}`
	texts["refused: deep"] = strings.Repeat(`{"a":`, 500_000)
	texts["refused: many rules"] = `{"acls": [` + strings.Repeat(`{},`, policy.MaxSize/4) + `]}`
	texts["refused: long list"] = `{"groups": {"group:a": [` + strings.Repeat(`"a@b.c",`, policy.MaxSize/9) + `]}}`
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		peak := peakHeap(func() {
			doc, err := policy.Parse([]byte(texts[name]))
			if err != nil {
				if !strings.HasPrefix(name, "refused") {
					t.Errorf("%s: %v", name, err)
				}
				return
			}
			p, err := compile.Compile(doc, office(), ident.LabelKey{}, 1)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			for _, id := range p.Nodes() {
				p.RuleSet(id)
				p.Peers(id)
			}
			p.RunTests()
			p.Warnings()
		})
		if peak > maxHostileHeap {
			t.Errorf("%s took %d MiB", name, peak>>20)
		} else {
			t.Logf("%s took %d MiB", name, peak>>20)
		}
	}
}

// peakHeap returns the most bytes of heap that were in use while f ran, sampled
// every millisecond.
func peakHeap(f func()) uint64 {
	runtime.GC()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var peak uint64
	for {
		metrics.Read(sample)
		peak = max(peak, sample[0].Value.Uint64())
		select {
		case <-done:
			return peak
		case <-tick.C:
		}
	}
}
