package ruleset

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/zone"
)

// Window is a part of the day on some days of the week, in wall-clock time.
type Window struct {
	// Days holds one bit for each day on which the window begins:
	// 1<<time.Sunday to 1<<time.Saturday.
	Days uint8
	// Start and End are minutes since midnight, Start < 1440 and End <= 1440.
	// The window covers Start <= minute < End; where End <= Start it goes on
	// past midnight to End of the following day.
	Start, End uint16
}

// MaxWindows bounds the windows of one schedule: far more than anyone writes,
// few enough that looking at each costs nothing.
const MaxWindows = 64

// ErrSchedule is wrapped by every error of NewSchedule.
var ErrSchedule = errors.New("ruleset: invalid schedule")

// Schedule says at which times of the week a rule holds. It is immutable. The
// nil schedule always holds.
type Schedule struct {
	zone    *time.Location
	windows []Window
}

// NewSchedule returns the schedule of the windows in the zone of that name of
// the IANA time zone database, as package zone has it on every device; "" stands
// for UTC, "Local" is none of
// them. The windows are copied; their order carries no meaning. The error wraps
// ErrSchedule.
func NewSchedule(name string, windows []Window) (*Schedule, error) {
	location, err := loadZone(name)
	if err != nil {
		return nil, err
	}
	return newSchedule(location, windows)
}

func loadZone(name string) (*time.Location, error) {
	location, err := zone.Load(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSchedule, err)
	}
	return location, nil
}

func newSchedule(location *time.Location, windows []Window) (*Schedule, error) {
	if len(windows) == 0 || len(windows) > MaxWindows {
		return nil, fmt.Errorf("%w: %d windows, want 1 to %d", ErrSchedule, len(windows), MaxWindows)
	}
	for _, w := range windows {
		if w.Days == 0 || w.Days >= 1<<7 || w.Start >= minutesPerDay || w.End > minutesPerDay {
			return nil, fmt.Errorf("%w: a window needs a day and times of day within 24 hours", ErrSchedule)
		}
	}
	sorted := slices.Clone(windows)
	slices.SortFunc(sorted, func(a, b Window) int {
		if a.Days != b.Days {
			return int(a.Days) - int(b.Days)
		}
		if a.Start != b.Start {
			return int(a.Start) - int(b.Start)
		}
		return int(a.End) - int(b.End)
	})
	return &Schedule{zone: location, windows: slices.Compact(sorted)}, nil
}

const minutesPerDay = 24 * 60

// Zone returns the name of the schedule's time zone, "UTC" where none was
// given.
func (s *Schedule) Zone() string { return s.zone.String() }

// Windows returns the windows, sorted by day, start and end, without repeats.
// The caller must not write to them.
func (s *Schedule) Windows() []Window { return s.windows }

// Equal reports whether s and t hold at the same times because they were made
// from the same zone and windows.
func (s *Schedule) Equal(t *Schedule) bool {
	if s == nil || t == nil {
		return s == t
	}
	return s.Zone() == t.Zone() && slices.Equal(s.windows, t.windows)
}

// Holds reports whether now lies in one of the windows.
func (s *Schedule) Holds(now time.Time) bool {
	if s == nil {
		return true
	}
	local := now.In(s.zone)
	today, minute := local.Weekday(), uint16(local.Hour()*60+local.Minute())
	yesterday := (today + 6) % 7
	for _, w := range s.windows {
		if w.Start < w.End {
			if w.on(today) && w.Start <= minute && minute < w.End {
				return true
			}
			continue
		}
		if w.on(today) && w.Start <= minute || w.on(yesterday) && minute < w.End {
			return true
		}
	}
	return false
}

// Next returns the next time after now at which Holds may change: not later
// than the change itself, and never now or before. A nil schedule never
// changes, which is the zero time.
func (s *Schedule) Next(now time.Time) time.Time {
	if s == nil {
		return time.Time{}
	}
	local := now.In(s.zone)
	// Until the zone's offset changes, wall-clock time is plain arithmetic. At
	// the change itself the caller asks again.
	_, offset := local.Zone()
	_, best := local.ZoneBounds()
	seconds := now.Unix() + int64(offset)
	midnight := seconds - (seconds%secondsPerDay+secondsPerDay)%secondsPerDay
	for _, w := range s.windows {
		for day := int64(0); day <= 7; day++ {
			for _, minute := range [2]uint16{w.Start, w.End} {
				at := time.Unix(midnight+day*secondsPerDay+int64(minute)*60-int64(offset), 0)
				if at.After(now) && (best.IsZero() || at.Before(best)) {
					best = at
				}
			}
		}
	}
	return best.UTC()
}

const secondsPerDay = 24 * 60 * 60

func (w Window) on(day time.Weekday) bool { return w.Days&(1<<day) != 0 }
