// Package alarm wakes a goroutine at a moment that may be moved: what the
// channel of a time.Timer does, made of time.AfterFunc.
//
// It is not time.Timer because of a fault of Go up to 1.26 (golang/go#78156): in
// a bubble of testing/synctest, under the race detector, a timer whose time has
// come is run by the goroutine that receives from its channel, or sets it to a
// moment that is not in the future, in the one race context of the bubble's timers.
// Two goroutines that do so at the same simulated moment, as all loops of a
// simulated network do when it begins, corrupt the detector, and it ends the
// program. Functions of time.AfterFunc that are set to the future are run by one
// goroutine; an alarm for now needs no timer.
//
// The package starts no goroutine but those of time.AfterFunc.
package alarm
