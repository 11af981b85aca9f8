package alarm

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// rung reports whether a has rung by now.
func rung(a *Alarm) bool {
	synctest.Wait()
	select {
	case <-a.C:
		return true
	default:
		return false
	}
}

func TestAlarmRingsWhenItWasSetTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		a := New(time.Second)
		defer a.Stop()
		at := func(what string, want time.Duration) {
			t.Helper()
			<-a.C
			if got := time.Since(start); got != want {
				t.Errorf("%s: rang after %v, want %v", what, got, want)
			}
		}
		at("made", time.Second)
		a.Set(2 * time.Second)
		at("set after it rang", 3*time.Second)
		a.Set(time.Second)
		time.Sleep(500 * time.Millisecond)
		a.Set(time.Second)
		at("put off", 4500*time.Millisecond)
		a.Set(time.Hour)
		a.Set(0)
		at("brought forward to now", 4500*time.Millisecond)
		a.Set(-time.Second)
		at("set to the past", 4500*time.Millisecond)
		time.Sleep(24 * time.Hour)
		if rung(a) {
			t.Error("rang twice")
		}
	})
}

func TestAlarmIsSilencedByStopAndSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(time.Second)
		a.Stop()
		time.Sleep(time.Minute)
		if rung(a) {
			t.Error("rang after it was stopped")
		}
		for what, silence := range map[string]func(){"Stop": a.Stop, "Set": func() { a.Set(time.Hour) }} {
			a.Set(0)
			synctest.Wait() // it has rung, unheard
			silence()
			if rung(a) {
				t.Errorf("%s left a ring of before", what)
			}
		}
		a.Stop()
	})
}

// TestManyAlarmsAtOneMoment is what the race detector does not survive with the
// channels of time.Timer.
func TestManyAlarmsAtOneMoment(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			var loops sync.WaitGroup
			for range 8 {
				loops.Go(func() {
					a := New(0)
					defer a.Stop()
					for n := range 200 {
						<-a.C
						if n%10 == 0 {
							time.Sleep(time.Millisecond)
						}
						a.Set(0)
					}
				})
			}
			loops.Wait()
		})
	}
}
