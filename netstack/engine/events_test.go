package engine

import (
	"reflect"
	"testing"

	"github.com/warren-overlay/warren/netstack/nat"
	"github.com/warren-overlay/warren/netstack/path"
)

// TestEveryStatIsExported has every counter of the machines at another value, and
// finds each under exactly one name.
func TestEveryStatIsExported(t *testing.T) {
	var names func(stats reflect.Value) []string // of all counters, in order
	var numbered func(stats reflect.Value, n uint64) uint64
	numbered = func(stats reflect.Value, n uint64) uint64 {
		for i := range stats.NumField() {
			if f := stats.Field(i); f.Kind() == reflect.Struct {
				n = numbered(f, n)
			} else {
				n++
				f.SetUint(n)
			}
		}
		return n
	}
	names = func(stats reflect.Value) (out []string) {
		for i := range stats.NumField() {
			if f := stats.Field(i); f.Kind() == reflect.Struct {
				out = append(out, names(f)...)
			} else {
				out = append(out, stats.Type().Field(i).Name)
			}
		}
		return out
	}
	var paths path.Stats
	var stun nat.Stats
	var mapping nat.MapperStats
	var pinholes nat.PinholesStats
	for name, c := range map[string]struct {
		stats  reflect.Value
		events func() map[string]uint64
	}{
		"path":         {reflect.ValueOf(&paths).Elem(), func() map[string]uint64 { return pathEvents(&paths) }},
		"stun":         {reflect.ValueOf(&stun).Elem(), func() map[string]uint64 { return stunEvents(stun) }},
		"port mapping": {reflect.ValueOf(&mapping).Elem(), func() map[string]uint64 { return mappingEvents(mapping) }},
		"pinholes":     {reflect.ValueOf(&pinholes).Elem(), func() map[string]uint64 { return pinholeEvents(pinholes) }},
	} {
		numbered(c.stats, 0)
		found := make(map[uint64]string)
		for event, n := range c.events() {
			if other, twice := found[n]; twice {
				t.Errorf("%s: %s and %s are the same counter", name, event, other)
			}
			found[n] = event
		}
		for i, counter := range names(c.stats) {
			if found[uint64(i+1)] == "" {
				t.Errorf("%s: nothing exports %s", name, counter)
			}
		}
	}
}
