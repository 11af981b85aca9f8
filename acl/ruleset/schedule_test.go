package ruleset

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

func TestScheduleRefuses(t *testing.T) {
	ok := []Window{{Days: 1, Start: 0, End: 60}}
	for _, c := range []struct {
		zone    string
		windows []Window
	}{
		{"Local", ok},
		{"Nowhere/Land", ok},
		{"UTC", nil},
		{"UTC", make([]Window, MaxWindows+1)},
		{"UTC", []Window{{Days: 0, Start: 0, End: 60}}},
		{"UTC", []Window{{Days: 128, Start: 0, End: 60}}},
		{"UTC", []Window{{Days: 1, Start: 1440, End: 60}}},
		{"UTC", []Window{{Days: 1, Start: 0, End: 1441}}},
	} {
		if _, err := NewSchedule(c.zone, c.windows); !errors.Is(err, ErrSchedule) {
			t.Errorf("NewSchedule(%q, %v) = %v, want ErrSchedule", c.zone, c.windows, err)
		}
	}
}

func TestScheduleHolds(t *testing.T) {
	weekdays := uint8(1<<time.Monday | 1<<time.Tuesday | 1<<time.Wednesday | 1<<time.Thursday | 1<<time.Friday)
	office, err := NewSchedule("Europe/Berlin", []Window{{weekdays, 9 * 60, 17 * 60}, {1 << time.Saturday, 22 * 60, 2 * 60}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at   string
		want bool
	}{
		{"2026-07-06T06:59:59Z", false}, // Monday 08:59:59 summer time
		{"2026-07-06T07:00:00Z", true},
		{"2026-07-06T14:59:59Z", true},
		{"2026-07-06T15:00:00Z", false},
		{"2026-01-05T07:30:00Z", false}, // Monday 08:30 winter time
		{"2026-01-05T08:00:00Z", true},
		{"2026-07-05T10:00:00Z", false}, // Sunday
		{"2026-07-04T21:00:00Z", true},  // Saturday 23:00
		{"2026-07-04T23:59:00Z", true},  // Sunday 01:59
		{"2026-07-05T00:00:00Z", false},
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := office.Holds(at); got != c.want {
			t.Errorf("Holds(%s) = %v, want %v", c.at, got, c.want)
		}
	}
	if !(*Schedule)(nil).Holds(time.Unix(0, 0)) {
		t.Error("the nil schedule does not hold")
	}
}

// The schedule never changes between now and Next(now), in zones with clock
// changes of an hour and of half an hour.
func TestScheduleNextIsNotLate(t *testing.T) {
	seed := uint64(7)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 300 {
		zone := []string{"", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"}[r.IntN(5)]
		s, err := NewSchedule(zone, []Window{
			{uint8(1 + r.IntN(127)), uint16(r.IntN(1440)), uint16(r.IntN(1441))},
			{uint8(1 + r.IntN(127)), uint16(r.IntN(1440)), uint16(r.IntN(1441))},
		})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(2026, time.Month(1+r.IntN(12)), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60), 0, time.UTC)
		next := s.Next(now)
		if !next.After(now) || next.Sub(now) > 8*24*time.Hour {
			t.Fatalf("seed %d, %d: Next(%v) = %v", seed, i, now, next)
		}
		for at := now; at.Before(next); at = at.Add(time.Minute) {
			if s.Holds(at) != s.Holds(now) {
				t.Fatalf("seed %d, %d: %v in %q: Next(%v) = %v, but it changes at %v", seed, i, s.Windows(), zone, now, next, at)
			}
		}
	}
}
