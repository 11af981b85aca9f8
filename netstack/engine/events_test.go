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
	numbered := func(stats reflect.Value) {
		for i := range stats.NumField() {
			stats.Field(i).SetUint(uint64(i + 1))
		}
	}
	var paths path.Stats
	var stun nat.Stats
	var mapping nat.MapperStats
	for name, c := range map[string]struct {
		stats  reflect.Value
		events func() map[string]uint64
	}{
		"path":         {reflect.ValueOf(&paths).Elem(), func() map[string]uint64 { return pathEvents(&paths) }},
		"stun":         {reflect.ValueOf(&stun).Elem(), func() map[string]uint64 { return stunEvents(stun) }},
		"port mapping": {reflect.ValueOf(&mapping).Elem(), func() map[string]uint64 { return mappingEvents(mapping) }},
	} {
		numbered(c.stats)
		found := make(map[uint64]string)
		for event, n := range c.events() {
			if other, twice := found[n]; twice {
				t.Errorf("%s: %s and %s are the same counter", name, event, other)
			}
			found[n] = event
		}
		for i := range c.stats.NumField() {
			if found[uint64(i+1)] == "" {
				t.Errorf("%s: nothing exports %s", name, c.stats.Type().Field(i).Name)
			}
		}
	}
}
