package lab

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// The wall clock belongs to the whole machine: no namespace has one of its own,
// and a program reads it without a system call that could be answered for it.
// Programs of hosts with a clock of their own are therefore built with another
// package time, whose Now adds what a file says. All else of them is as shipped;
// time that passes, timers and the monotonic clock are the machine's.

// clockVariable names the file, in a program's environment.
const clockVariable = "WARREN_LAB_CLOCK"

// clockNow is the line of package time that is replaced, and clockShifted what it
// is replaced with.
const (
	clockNow     = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	clockShifted = clockNow + "\tsec += labShift()\n"
)

// clockSource is the file that is added to package time. Now runs where no system
// call may be made, so it reads memory: the file, shared with the test.
const clockSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var labShared = labMap()

func labMap() *atomic.Int64 {
	name, ok := syscall.Getenv("` + clockVariable + `")
	if !ok {
		return new(atomic.Int64)
	}
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("the clock of the lab: " + err.Error())
	}
	defer syscall.Close(fd)
	shared, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("the clock of the lab: " + err.Error())
	}
	return (*atomic.Int64)(unsafe.Pointer(&shared[0]))
}

func labShift() int64 {
	if labShared == nil {
		return 0
	}
	return labShared.Load()
}
`

// buildShifted makes the programs for hosts with a clock of their own, once for
// each test binary, beside those as shipped.
var buildShifted = sync.OnceValues(func() (string, error) {
	dir, err := build()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "own-clock")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("finding package time: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source, err := os.ReadFile(filepath.Join(original, "time.go"))
	if err != nil {
		return "", err
	}
	changed := strings.Replace(string(source), clockNow, clockShifted, 1)
	if changed == string(source) {
		return "", fmt.Errorf("package time of %s does not begin Now with %q", runtime.Version(), clockNow)
	}
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": changed, "lab_unix.go": clockSource} {
		replace[filepath.Join(original, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return "", err
	}
	return dir, compile(dir, "-overlay", filepath.Join(dir, "overlay.json"))
})

// OwnClock gives the host a wall clock of its own, which is so much ahead of the
// machine's. Programs that are started from now on go by it.
func (h *Host) OwnClock(t testing.TB, ahead time.Duration) {
	t.Helper()
	h.clock = filepath.Join(t.TempDir(), "clock")
	h.Env = append(h.Env, clockVariable+"="+h.clock)
	h.SetClock(ahead)
}

// SetClock sets the host's own wall clock, in whole seconds ahead of the
// machine's.
func (h *Host) SetClock(ahead time.Duration) {
	h.t.Helper()
	f, err := os.OpenFile(h.clock, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.Write(binary.NativeEndian.AppendUint64(nil, uint64(ahead/time.Second)))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		h.t.Fatal("setting the clock: ", err)
	}
}

// program returns the path of one of Warren's programs, for the host's clock.
func (h *Host) program(t testing.TB, name string) string {
	t.Helper()
	if h.clock == "" {
		return Program(t, name)
	}
	dir, err := buildShifted()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}
