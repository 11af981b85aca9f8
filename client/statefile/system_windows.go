package statefile

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// checkPrivate checks the kind only: on Windows a directory is private by the
// access list that it inherits from its parent, %ProgramData% or the user's
// profile.
func checkPrivate(path string, directory bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("statefile: %w", err)
	}
	if directory != info.IsDir() || info.Mode()&os.ModeSymlink != 0 {
		return fmt.Errorf("%w: %s is a link or of another kind", ErrPermissions, path)
	}
	return nil
}

// acquire locks f until it is closed or the process ends.
func acquire(f *os.File) error {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return ErrLocked
	}
	return err
}

// syncDirectory does nothing: Windows writes directory entries through.
func syncDirectory(string) error { return nil }
