package statefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Errors of this package, compared with errors.Is.
var (
	// ErrPermissions means that others than the owner may use the directory or
	// a file in it, or that it belongs to somebody else.
	ErrPermissions = errors.New("statefile: the state directory is not private")
	// ErrCorrupt means that a file is not what was written.
	ErrCorrupt = errors.New("statefile: corrupt file")
	// ErrForgotten means that what protects from being taken back to the past is
	// not there.
	ErrForgotten = errors.New("statefile: nothing is remembered of what was seen before")
	// ErrLocked means that another process uses the directory.
	ErrLocked = errors.New("statefile: another daemon uses this state directory")
)

const (
	keysFile        = "keys.json"
	preferencesFile = "preferences.json"
	membershipFile  = "membership.json"
	memoryFile      = "memory.json"
	flowsFile       = "flows.json"
	lockFile        = "lock"

	// temporary ends the name of a file that is being written.
	temporary = ".new"
)

// Directory is an open state directory.
type Directory struct {
	path string
	lock *os.File

	mu sync.Mutex // held while a file is replaced
}

// Open opens the directory at path, which it makes where it does not exist, and
// locks it. Temporary files of a process that crashed are removed. The error
// wraps ErrPermissions or ErrLocked, or is the system's.
func Open(path string) (*Directory, error) {
	if err := makePrivate(path); err != nil {
		return nil, fmt.Errorf("statefile: making the state directory: %w", err)
	}
	if err := checkPrivate(path, true); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("statefile: opening the lock: %w", err)
	}
	if err := acquire(lock); err != nil {
		lock.Close()
		return nil, fmt.Errorf("%w: %s", err, path)
	}
	d := &Directory{path: path, lock: lock}
	if err := d.tidy(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Path returns the directory's path.
func (d *Directory) Path() string { return d.path }

// Close gives up the lock. The Directory is of no more use.
func (d *Directory) Close() error { return d.lock.Close() }

// tidy checks every file and removes what a crash left behind.
func (d *Directory) tidy() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("statefile: reading the state directory: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(d.path, e.Name())
		if strings.HasSuffix(e.Name(), temporary) {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("statefile: removing an unfinished file: %w", err)
			}
			continue
		}
		switch e.Name() {
		case keysFile, preferencesFile, membershipFile, memoryFile, flowsFile, lockFile:
			if err := checkPrivate(path, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// read returns the content of a file, nil where there is none.
func (d *Directory) read(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(d.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("statefile: reading %s: %w", name, err)
	}
	return b, nil
}

// write replaces a file.
func (d *Directory) write(name string, content []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := filepath.Join(d.path, name)
	if err := writeAndSync(path+temporary, content); err != nil {
		os.Remove(path + temporary)
		return fmt.Errorf("statefile: writing %s: %w", name, err)
	}
	if err := os.Rename(path+temporary, path); err != nil {
		os.Remove(path + temporary)
		return fmt.Errorf("statefile: replacing %s: %w", name, err)
	}
	if err := syncDirectory(d.path); err != nil {
		return fmt.Errorf("statefile: synchronising the state directory: %w", err)
	}
	return nil
}

func writeAndSync(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// remove deletes a file; one that is not there is no error.
func (d *Directory) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.Remove(filepath.Join(d.path, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("statefile: removing %s: %w", name, err)
	}
	if err := syncDirectory(d.path); err != nil {
		return fmt.Errorf("statefile: synchronising the state directory: %w", err)
	}
	return nil
}
