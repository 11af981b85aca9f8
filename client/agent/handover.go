package agent

import (
	"github.com/warren-overlay/warren/acl/filter"
)

// takeFlows returns the flows that the last run has handed over, nil for none.
// What cannot be read is passed over: connections then go on only within the
// window in which the filter picks them up.
func (d *Daemon) takeFlows() *filter.Snapshot {
	raw, err := d.state.TakeFlows()
	if err != nil {
		d.log.Warn("the flows of the last run are not taken over", "error", err)
		return nil
	}
	if raw == nil || d.options.Device == Userspace {
		return nil
	}
	s, err := filter.ParseSnapshot(raw)
	if err != nil {
		d.log.Warn("the flows of the last run are not taken over", "error", err)
		return nil
	}
	return s
}

// handOver returns what saves the flows at the end, nil for a node whose
// connections end with the program: those of the userspace stack.
func (d *Daemon) handOver() func(*filter.Snapshot) {
	if d.options.Device == Userspace {
		return nil
	}
	return func(s *filter.Snapshot) {
		if err := d.state.SaveFlows(s.Append(nil)); err != nil {
			d.log.Warn("the flows cannot be handed over to the next run", "error", err)
			return
		}
		d.log.Info("flows are handed over to the next run", "peers", len(s.Peers), "flows", s.Flows())
	}
}
