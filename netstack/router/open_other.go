//go:build !linux

package router

// Open returns ErrUnsupported.
func Open(string) (Router, error) { return nil, ErrUnsupported }

// mark does nothing.
func mark(uintptr) {}
