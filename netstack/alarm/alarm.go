package alarm

import (
	"sync"
	"time"
)

// An Alarm rings once at the moment that was set last. Its methods may be called
// by any goroutine. Make one with New.
type Alarm struct {
	// C gives a value when the alarm rings; one that nobody has received yet is
	// gone once the alarm is set anew or stopped.
	C <-chan struct{}

	// mu makes setting and ringing one step each.
	mu    sync.Mutex
	c     chan struct{}
	timer *time.Timer
	due   time.Time // when it is to ring; zero: it is not
}

// New returns an alarm that rings after d; at once where d is not positive. The
// caller stops it when it is done with it.
func New(d time.Duration) *Alarm {
	a := &Alarm{c: make(chan struct{}, 1)}
	a.C = a.c
	a.timer = time.AfterFunc(max(d, time.Nanosecond), a.ring) // does nothing before due is set
	a.Set(d)
	return a
}

// Set has the alarm ring after d, counted from now, and not at the moment set
// before; at once where d is not positive.
func (a *Alarm) Set(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silence()
	if d <= 0 {
		a.due = time.Time{}
		a.timer.Stop()
		a.c <- struct{}{} // there is room: setting took back what was there
		return
	}
	a.due = time.Now().Add(d)
	a.timer.Reset(d)
}

// Stop has the alarm not ring before it is set anew.
func (a *Alarm) Stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silence()
	a.due = time.Time{}
	a.timer.Stop()
}

// silence takes back a ring that nobody has heard.
func (a *Alarm) silence() {
	select {
	case <-a.c:
	default:
	}
}

// ring runs when the timer fires. That it was set anew since can be: then it is
// too early, and the timer fires again.
func (a *Alarm) ring() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.due.IsZero() || time.Now().Before(a.due) {
		return
	}
	a.due = time.Time{}
	a.c <- struct{}{} // there is room, as in Set
}
