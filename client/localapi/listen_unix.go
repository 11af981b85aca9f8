//go:build unix

package localapi

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// maxPath is the longest path of a socket in bytes: sun_path holds 104 on macOS
// and 108 on Linux, with a zero at the end.
const maxPath = 103

// listenPrivate makes the socket so that nobody else can connect before its
// mode is set: under a name in a new private directory, from where it is moved.
func listenPrivate(path string) (net.Listener, error) {
	private, err := os.MkdirTemp(filepath.Dir(path), ".w")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	temporary := filepath.Join(private, "s")
	if longest := max(len(temporary), len(path)); longest > maxPath {
		return nil, fmt.Errorf("%s is too long for a socket by %d bytes; choose a shorter path", path, longest-maxPath)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(temporary, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	if err := os.Rename(temporary, path); err != nil {
		listener.Close()
		return nil, err
	}
	return &unlinking{Listener: listener, path: path}, nil
}

// unlinking removes the socket when it is closed.
type unlinking struct {
	net.Listener
	path string
}

func (l *unlinking) Close() error {
	err := l.Listener.Close()
	os.Remove(l.path)
	return err
}
