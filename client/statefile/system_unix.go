//go:build unix

package statefile

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// makePrivate makes the directory where it does not exist.
func makePrivate(path string) error { return os.MkdirAll(path, 0o700) }

// checkPrivate reports whether only this process's user may use path. A link
// is refused: what it points to may be changed by others.
func checkPrivate(path string, directory bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("statefile: %w", err)
	}
	switch {
	case directory && !info.IsDir():
		return fmt.Errorf("%w: %s is no directory (a link to one is not enough)", ErrPermissions, path)
	case !directory && !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is no regular file", ErrPermissions, path)
	case info.Mode().Perm()&0o077 != 0:
		want := "0600"
		if directory {
			want = "0700"
		}
		return fmt.Errorf("%w: %s has mode %04o; run: chmod %s %s", ErrPermissions, path, info.Mode().Perm(), want, path)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: %s belongs to uid %d and the daemon runs as %d", ErrPermissions, path, owner.Uid, os.Geteuid())
	}
	return nil
}

// acquire locks f until it is closed or the process ends.
func acquire(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
