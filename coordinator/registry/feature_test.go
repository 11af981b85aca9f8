package registry

import (
	"errors"
	"reflect"
	"testing"
	"time"
)

func TestFeaturesAreTurnedOff(t *testing.T) {
	s := world(t, whole)
	if !s.Off(FeaturePortMapping).IsZero() {
		t.Fatal("off at the beginning")
	}
	for _, unknown := range []Feature{"", "relay", "Port-Mapping"} {
		if changes, _, err := Decide(s, "admin", SetFeature{unknown, true}, begin); !errors.Is(err, ErrNotFound) || !changes.Empty() {
			t.Errorf("%q: %v", unknown, err)
		}
	}
	if changes, r, err := Decide(s, "admin", SetFeature{FeaturePortMapping, false}, begin); err != nil || !changes.Empty() || !r.Switch.Off.IsZero() {
		t.Errorf("on what is on: %+v, %+v, %v", changes, r.Switch, err)
	}
	later := begin.Add(time.Minute)
	changes, _, err := Decide(s, "admin uid 0", SetFeature{FeaturePortMapping, true}, begin)
	if err != nil || changes.Audit.Action != "setting.off" || changes.Audit.Target != "port-mapping" || changes.Audit.Actor != "admin uid 0" {
		t.Fatalf("%+v, %v", changes.Audit, err)
	}
	mustRun(t, s, SetFeature{FeaturePortMapping, true}, begin)
	// Once more changes nothing, not the time either.
	if changes, r, err := Decide(s, "admin", SetFeature{FeaturePortMapping, true}, later); err != nil || !changes.Empty() || !r.Switch.Off.Equal(begin) {
		t.Errorf("off what is off: %+v, %+v, %v", changes, r.Switch, err)
	}
	copied := NewState(s.Network())
	whole := s.Export()
	copied.Apply(&whole)
	if again := copied.Export(); !reflect.DeepEqual(again, whole) || !copied.Off(FeaturePortMapping).Equal(begin) {
		t.Errorf("exported: %+v", again.Switches)
	}
	changes, _, err = Decide(s, "admin", SetFeature{FeaturePortMapping, false}, later)
	if err != nil || changes.Audit.Action != "setting.on" {
		t.Fatalf("%+v, %v", changes.Audit, err)
	}
	if r := mustRun(t, s, SetFeature{FeaturePortMapping, false}, later); !r.Switch.Off.IsZero() || !s.Off(FeaturePortMapping).IsZero() {
		t.Errorf("on again: %+v", r.Switch)
	}
}
