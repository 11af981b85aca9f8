//go:build unix

package cputime

import (
	"syscall"
	"testing"
	"time"
)

// Used returns how long processors have worked for this process until now, in all
// of its goroutines and in the kernel (getrusage(2), RUSAGE_SELF). Where the system
// does not say, the test fails.
func Used(t testing.TB) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
