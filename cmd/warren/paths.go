package main

import (
	"path/filepath"
	"runtime"
)

// defaultStateDir is where the daemon keeps its state.
func defaultStateDir(getenv func(string) string) string {
	if runtime.GOOS == "windows" {
		return filepath.Join(getenv("ProgramData"), "Warren")
	}
	return "/var/lib/warren"
}

// defaultSocket is where the daemon is spoken to.
func defaultSocket(getenv func(string) string) string {
	switch runtime.GOOS {
	case "windows":
		return filepath.Join(getenv("ProgramData"), "Warren", "warrend.sock")
	case "darwin":
		return "/var/run/warren/warrend.sock"
	}
	return "/run/warren/warrend.sock"
}

// defaultDevice is the network interface, where this build can make one.
func defaultDevice() string {
	if runtime.GOOS == "linux" {
		return "warren0"
	}
	return "userspace"
}
