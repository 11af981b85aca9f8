//go:build !unix

package cputime

import (
	"testing"
	"time"
)

var began = time.Now()

// Used returns what stands for it where there is no getrusage(2): how long this
// process runs.
func Used(testing.TB) time.Duration { return time.Since(began) }
