package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/warren-overlay/warren/acl/ident"
)

// Errors of OpenDir and Dir, compared with errors.Is.
var (
	// ErrPermissions means a directory or file that others may read.
	ErrPermissions = errors.New("store: permissions too wide")
	// ErrLocked means that another process works on the directory.
	ErrLocked = errors.New("store: another coordinator works on this directory")
	// ErrKeyFile means a key file that is missing or not one.
	ErrKeyFile = errors.New("store: key file")
)

// Names of the files in a data directory.
const (
	lockFile     = "lock"
	databaseFile = "coordinator.db"
	channelFile  = "channel.key"
	signingFile  = "signing.key"
	labelFile    = "label.key"
	headFile     = "audit.head"
	// SocketFile is the administrator's socket.
	SocketFile = "coordinator.sock"
)

// Dir is a data directory that this process has locked.
type Dir struct {
	path string
	lock *os.File
}

// OpenDir locks the directory, which it makes where there is none. It refuses a
// directory that others may enter with ErrPermissions, and one that another
// process has locked with ErrLocked.
func OpenDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("store: making the data directory: %w", err)
	}
	if err := CheckDir(path); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: locking the data directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, path)
		}
		return nil, fmt.Errorf("store: locking the data directory: %w", err)
	}
	return &Dir{path: path, lock: lock}, nil
}

// CheckDir reports whether the directory is this user's and closed to others.
func CheckDir(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("store: looking at the data directory: %w", err)
	}
	return private(path, info, "0700")
}

// private refuses what others than this user may use.
func private(path string, info fs.FileInfo, want string) error {
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w: %s has mode %04o, must be %s; to repair it: chmod %s %s", ErrPermissions, path, info.Mode().Perm(), want, want, path)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: %s belongs to uid %d, this program runs as %d", ErrPermissions, path, owner.Uid, os.Geteuid())
	}
	return nil
}

// Close gives the lock back.
func (d *Dir) Close() error { return d.lock.Close() }

// Socket returns the path of the administrator's socket.
func (d *Dir) Socket() string { return filepath.Join(d.path, SocketFile) }

// Keys are a network's private keys.
type Keys struct {
	Channel ident.ChannelPrivate
	Signing ident.SignerPrivate
	// Label is the secret that label numbers are derived from.
	Label ident.LabelKey
}

// MakeKeys makes the keys that the directory does not have yet.
func (d *Dir) MakeKeys(rand io.Reader) error {
	for _, f := range []struct {
		name string
		make func() ([]byte, error)
	}{
		{channelFile, func() ([]byte, error) { k, err := ident.NewChannelPrivate(rand); return k.SecretBytes(), err }},
		{signingFile, func() ([]byte, error) { k, err := ident.NewSignerPrivate(rand); return k.SecretBytes(), err }},
		{labelFile, func() ([]byte, error) { b := make([]byte, 32); _, err := io.ReadFull(rand, b); return b, err }},
	} {
		path := filepath.Join(d.path, f.name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		secret, err := f.make()
		if err != nil {
			return fmt.Errorf("store: making %s: %w", f.name, err)
		}
		if err := writeFile(path, []byte(hex.EncodeToString(secret)+"\n")); err != nil {
			return fmt.Errorf("store: keeping %s: %w", f.name, err)
		}
	}
	return nil
}

// LoadKeys reads the keys. The error wraps ErrKeyFile or ErrPermissions.
func (d *Dir) LoadKeys() (Keys, error) {
	var k Keys
	for _, f := range []struct {
		name string
		set  func([]byte) error
	}{
		{channelFile, func(b []byte) (err error) { k.Channel, err = ident.ChannelPrivateFromBytes(b); return err }},
		{signingFile, func(b []byte) (err error) { k.Signing, err = ident.SignerPrivateFromBytes(b); return err }},
		{labelFile, func(b []byte) error {
			if len(b) != len(k.Label) {
				return ident.ErrMalformedKey
			}
			copy(k.Label[:], b)
			return nil
		}},
	} {
		secret, err := readSecret(filepath.Join(d.path, f.name))
		if err != nil {
			return Keys{}, err
		}
		if err := f.set(secret); err != nil {
			return Keys{}, fmt.Errorf("%w: %s: %w", ErrKeyFile, f.name, err)
		}
	}
	return k, nil
}

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; restore it from a backup: the network cannot go on without", ErrKeyFile, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	if err := private(path, info, "0600"); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	secret, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not hexadecimal", ErrKeyFile, path)
	}
	return secret, nil
}

// writeFile puts a new file in place, whole and on the disk, or not at all.
func writeFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
