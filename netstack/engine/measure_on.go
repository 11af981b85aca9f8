//go:build warren_unfiltered

package engine

// unfiltered: see measure_off.go.
const unfiltered = true
