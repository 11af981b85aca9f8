// Package alarm wakes a goroutine at a moment that may be moved: what the
// channel of a time.Timer does, made of time.AfterFunc.
//
// It is not time.Timer because of a fault of Go up to 1.26 (golang/go#78156): in
// a bubble of testing/synctest, under the race detector, a timer's channel that
// is received from after its time is filled by the receiving goroutine in the
// one race context of the bubble's timers. Two goroutines that do so at the same
// simulated moment, as all loops of a simulated network do when it begins,
// corrupt the detector, and it ends the program. Functions of time.AfterFunc are
// run by one goroutine, whatever the moment.
package alarm
