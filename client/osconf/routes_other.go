//go:build !linux

package osconf

// defaultRoutes is for Linux.
func defaultRoutes() []string { return nil }
