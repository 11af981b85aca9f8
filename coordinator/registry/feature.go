package registry

import (
	"slices"
	"time"
)

func (d *decision) setFeature(c SetFeature) error {
	if !slices.Contains(Features(), c.Feature) {
		return refuse(ErrNotFound, "there is no setting %q; there is: %s", cut(string(c.Feature)), FeaturePortMapping)
	}
	w := Switch{Feature: c.Feature, Off: d.state.Off(c.Feature)}
	d.result.Switch = &w
	if c.Off == !w.Off.IsZero() {
		return nil
	}
	action := "setting.on"
	w.Off = time.Time{}
	if c.Off {
		action, w.Off = "setting.off", d.now
	}
	d.changes.Switches = []Switch{w}
	d.tell(action, string(c.Feature))
	return nil
}
