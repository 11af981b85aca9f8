package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// names are what the hosts of a lab are called. Programs on hosts read them from a
// file in the place of /etc/hosts, in a mount namespace of the host.
type names struct {
	file string

	mu    sync.Mutex // protects known
	known map[string][]netip.Addr
}

func newNames(t testing.TB) *names {
	t.Helper()
	return &names{file: filepath.Join(t.TempDir(), "hosts"), known: make(map[string][]netip.Addr)}
}

// Name gives a host a name, with all of its addresses. Hosts that are added later know
// it; those from before know no names.
func (i *Internet) Name(h *Host, name string) {
	t := i.lab.t
	t.Helper()
	if i.lab.names == nil {
		i.lab.names = newNames(t)
	}
	h.domain = name
	n := i.lab.names
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known[name] = append(n.known[name], h.addresses()...)
	text := "127.0.0.1 localhost\n"
	for known, addresses := range n.known {
		for _, at := range addresses {
			text += at.String() + " " + known + "\n"
		}
	}
	// In place: hosts have this very file.
	if err := os.WriteFile(n.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// mount has the programs that the calling thread starts know the names. The thread
// leaves the mounts of this machine for good.
func (n *names) mount() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts private: %w", err)
	}
	if err := unix.Mount(n.file, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("names for /etc/hosts: %w", err)
	}
	return nil
}

// dialName is Dial for the test's own programs, which read no file: the host of the
// address may be a name.
func (h *Host) dialName(ctx context.Context, network, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	var addresses []netip.Addr
	if h.names != nil {
		h.names.mu.Lock()
		addresses = h.names.known[strings.ToLower(name)]
		h.names.mu.Unlock()
	}
	if addresses == nil {
		return h.Dial(ctx, network, address)
	}
	var errs []error
	for _, at := range addresses {
		c, err := h.Dial(ctx, network, net.JoinHostPort(at.String(), port))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// addresses returns the host's own.
func (h *Host) addresses() (all []netip.Addr) {
	for _, at := range []netip.Addr{h.V4, h.V6} {
		if at.IsValid() {
			all = append(all, at)
		}
	}
	return all
}

// at returns how others write the host in a URL: by its name where it has one, else by
// its IPv4 address.
func (h *Host) at() string {
	if h.domain != "" {
		return h.domain
	}
	return h.V4.String()
}
