//go:build !unix

package compile_test

import (
	"testing"
	"time"
)

var began = time.Now()

// processorTime returns what stands for it where the system does not say: how long
// this process runs.
func processorTime(*testing.T) time.Duration { return time.Since(began) }
