package clock

import (
	"sync"
	"testing"
	"time"
)

// machine is a computer's clocks.
type machine struct {
	wall           time.Time
	running, slept time.Duration
}

func (m *machine) clock() *Clock {
	return newClock(func() time.Time { return m.wall }, func() time.Duration { return m.running }, func() time.Duration { return m.slept })
}

// pass lets time pass, sleep suspends the machine, set sets the wall clock.
func (m *machine) pass(d time.Duration) { m.wall, m.running = m.wall.Add(d), m.running+d }

func (m *machine) sleep(d time.Duration) { m.wall, m.slept = m.wall.Add(d), m.slept+d }

func (m *machine) set(d time.Duration) { m.wall = m.wall.Add(d) }

var begin = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

func TestNow(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *machine, c *Clock)
		want time.Duration // since begin
	}{
		{"at once", func(*machine, *Clock) {}, 0},
		{"time passes", func(m *machine, c *Clock) { m.pass(time.Hour) }, time.Hour},
		{"set back", func(m *machine, c *Clock) { m.pass(time.Hour); c.Now(); m.set(-24 * time.Hour) }, time.Hour},
		{"set back, unseen", func(m *machine, c *Clock) { m.pass(time.Hour); m.set(-24 * time.Hour) }, time.Hour},
		{"set back, then time passes", func(m *machine, c *Clock) { m.set(-time.Hour); c.Now(); m.pass(59 * time.Minute) }, 59 * time.Minute},
		{"set forward", func(m *machine, c *Clock) { m.set(time.Hour) }, time.Hour},
		{"set forward and back", func(m *machine, c *Clock) { m.set(time.Hour); c.Now(); m.set(-time.Hour); m.pass(time.Minute) }, time.Hour + time.Minute},
		{"suspended", func(m *machine, c *Clock) { m.pass(time.Minute); m.sleep(time.Hour); m.pass(time.Second) }, time.Hour + time.Minute + time.Second},
		{"suspended, and set back meanwhile", func(m *machine, c *Clock) {
			m.pass(time.Minute)
			c.Now()
			m.sleep(time.Hour)
			m.set(-2 * time.Hour)
			m.pass(time.Second)
		}, time.Hour + time.Minute + time.Second},
		{"suspended twice, set back", func(m *machine, c *Clock) {
			m.set(-2 * time.Hour)
			for range 2 {
				m.sleep(time.Hour)
				m.pass(2 * time.Second)
				c.Now()
			}
		}, 2*time.Hour + 4*time.Second},
		{"held, set forward", func(m *machine, c *Clock) { c.Hold(); m.set(10 * 365 * 24 * time.Hour); m.pass(time.Minute) }, time.Minute},
		{"held, set back", func(m *machine, c *Clock) { m.pass(time.Hour); c.Hold(); m.set(-time.Hour); m.pass(time.Minute) }, time.Hour + time.Minute},
		{"set forward, then held", func(m *machine, c *Clock) { m.set(time.Hour); c.Hold(); m.set(-time.Hour); m.pass(time.Minute) }, time.Hour + time.Minute},
		{"held and suspended, set forward meanwhile", func(m *machine, c *Clock) {
			c.Hold()
			m.sleep(time.Hour)
			m.set(time.Hour)
			m.pass(2 * time.Second)
		}, time.Hour + 2*time.Second},
		{"raised", func(m *machine, c *Clock) { c.Raise(begin.Add(time.Hour)); m.pass(time.Minute) }, time.Hour + time.Minute},
		{"raised to the past", func(m *machine, c *Clock) { c.Raise(begin.Add(-time.Hour)); c.Raise(time.Time{}) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &machine{wall: begin, running: time.Hour, slept: 5 * time.Hour}
			clock := m.clock()
			c.do(m, clock)
			got := clock.Now()
			if got.Sub(begin) != c.want {
				t.Errorf("%v after the beginning, want %v", got.Sub(begin), c.want)
			}
			if got != got.Round(0) {
				t.Errorf("%v has a monotonic reading", got)
			}
		})
	}
}

// TestSystem reads the real clocks from many goroutines: for each the time
// never goes back, and it is the system's.
func TestSystem(t *testing.T) {
	c := New()
	before := time.Now().Round(0)
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			last := c.Now()
			for range 20_000 {
				now := c.Now()
				if now.Before(last) {
					t.Errorf("%v after %v", now, last)
					return
				}
				last = now
			}
		})
	}
	running.Wait()
	if now := c.Now(); now.Before(before) || time.Until(now).Abs() > time.Minute {
		t.Errorf("it is %v, and the clock says %v", time.Now(), now)
	}
}

func BenchmarkNow(b *testing.B) {
	c := New()
	for b.Loop() {
		c.Now()
	}
}
