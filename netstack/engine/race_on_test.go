//go:build race

package engine

// raceDetector is whether times mean nothing: the detector multiplies them.
const raceDetector = true
