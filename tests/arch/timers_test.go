package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// timerChannels returns the calls in file that make a channel which a timer
// fills.
func timerChannels(file *ast.File) []token.Pos {
	var found []token.Pos
	ast.Inspect(file, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			for _, name := range []string{"NewTimer", "NewTicker", "After", "Tick"} {
				if calls(call, "time", name) {
					found = append(found, call.Pos())
				}
			}
		}
		return true
	})
	return found
}

// TestTimersAreAlarms checks that what may run in a bubble of testing/synctest,
// which is everything but the programs, waits by netstack/alarm: the comment of
// that package says what the channels of package time do there.
func TestTimersAreAlarms(t *testing.T) {
	for _, s := range module(t).sources {
		inBubbles := s.pkg == "tests/sim"
		if !s.isTest {
			for _, layer := range []string{"acl/", "netstack/", "coordinator/", "client/"} {
				inBubbles = inBubbles || strings.HasPrefix(s.pkg, layer)
			}
		}
		if !inBubbles {
			continue
		}
		for _, pos := range timerChannels(s.file) {
			t.Errorf("%s: a timer's channel; use netstack/alarm, or time.AfterFunc", module(t).where(pos))
		}
	}
}

// TestTimerChannelsAreSeen guards the guard.
func TestTimerChannelsAreSeen(t *testing.T) {
	const text = `package sample
func a() { <-time.After(1) }
func b() { time.AfterFunc(1, nil) }
func c() { t := time.NewTimer(1); k := time.NewTicker(1) }
func d() { time.Sleep(1); at.After(now) }
func e() { for range time.Tick(1) {} }
`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "sample.go", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, pos := range timerChannels(file) {
		got = append(got, fset.Position(pos).Line)
	}
	if want := []int{2, 4, 4, 6}; !slices.Equal(got, want) {
		t.Errorf("timer channels in lines %v, want %v", got, want)
	}
}
