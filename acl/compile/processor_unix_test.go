//go:build unix

package compile_test

import (
	"syscall"
	"testing"
	"time"
)

// processorTime returns how long processors have worked for this process. Unlike
// the time of day it does not depend on what else the machine does.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
