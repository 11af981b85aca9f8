package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Lab is a LAN with hosts.
type Lab struct {
	t         testing.TB
	bridge    *Host
	hosts     int
	authority *authority
	names     *names // nil while no host has one
}

// Host is one machine on the LAN.
type Host struct {
	Name   string
	V4, V6 netip.Addr // the zero value for none
	// Env is added to the environment of the programs that are started on the
	// host. At first it has them trust the certificates of the lab's servers.
	Env []string

	clock     string // the file of OwnClock, empty for the machine's clock
	domain    string // of Internet.Name, empty for none
	authority *authority
	names     *names // those that the host knows, nil for none

	t     testing.TB
	space netns.NsHandle
	calls chan func()
}

// New returns an empty LAN. It skips the test where namespaces are not
// permitted.
func New(t testing.TB) *Lab {
	t.Helper()
	l := newLab(t)
	l.bridge = l.newHost("bridge")
	l.bridge.Do(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("adding the bridge: %w", err)
		}
		return netlink.LinkSetUp(br)
	})
	return l
}

// newLab returns a Lab without a LAN.
func newLab(t testing.TB) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces and TUN devices")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun: ", err)
	}
	return &Lab{t: t, authority: newAuthority(t)}
}

// newHost makes a namespace and the thread that lives in it.
func (l *Lab) newHost(name string) *Host {
	l.t.Helper()
	h := &Host{
		Name: name, Env: []string{trustVariable + "=" + l.authority.file}, authority: l.authority, names: l.names,
		t: l.t, calls: make(chan func()),
	}
	ready := make(chan error)
	go func() {
		// The thread keeps the namespace and is never given back: it ends with
		// the goroutine.
		runtime.LockOSThread()
		var err error
		h.space, err = netns.New()
		ready <- err
		if err != nil {
			return
		}
		for call := range h.calls {
			call()
		}
	}()
	if err := <-ready; err != nil {
		l.t.Skip("network namespaces are not permitted here: ", err)
	}
	l.t.Cleanup(func() {
		close(h.calls)
		h.space.Close()
	})
	h.Do(func() error {
		if h.names != nil {
			if err := h.names.mount(); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return h
}

// Host adds a host to the LAN.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	l.hosts++
	h := l.newHost(name)
	h.V4 = netip.AddrFrom4([4]byte{10, 77, 0, byte(l.hosts)})
	h.V6 = netip.AddrFrom16([16]byte{0xfd, 0x77, 15: byte(l.hosts)})
	port := fmt.Sprintf("port%d", l.hosts)
	h.Do(func() error {
		pair := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: port, PeerNamespace: netlink.NsFd(l.bridge.space),
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("adding eth0: %w", err)
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for address, bits := range map[netip.Addr]int{h.V4: 24, h.V6: 64} {
			err := netlink.AddrAdd(eth, &netlink.Addr{
				IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, address.BitLen())},
				Flags: unix.IFA_F_NODAD,
			})
			if err != nil {
				return fmt.Errorf("adding %v: %w", address, err)
			}
		}
		return netlink.LinkSetUp(eth)
	})
	l.bridge.Do(func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	return h
}

// Do runs f on the host's own thread and ends the test where it fails. f must
// not block.
func (h *Host) Do(f func() error) {
	h.t.Helper()
	if err := h.Try(f); err != nil {
		h.t.Fatalf("%s: %v", h.Name, err)
	}
}

// Try runs f on the host's own thread. f must not block.
func (h *Host) Try(f func() error) error {
	done := make(chan error, 1)
	h.calls <- func() { done <- f() }
	return <-done
}

// Within runs f, which may block, on a thread of its own in the host's
// namespace. Sockets that f makes stay in it.
func (h *Host) Within(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never given back: the thread is spoilt
		if err := netns.Set(h.space); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Dial connects from the host.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := h.Within(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens for TCP on the host until the test ends.
func (h *Host) Listen(t testing.TB, address string) net.Listener {
	t.Helper()
	var l net.Listener
	h.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// SeenAs connects over TCP from the host to address, at which to listens meanwhile,
// and returns the address that it sees. The error says that nothing arrived there
// within the limit.
func (h *Host) SeenAs(t testing.TB, to *Host, address string, limit time.Duration) (string, error) {
	t.Helper()
	l := to.Listen(t, address)
	defer l.Close()
	seen := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		seen <- host
		c.Close()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	select {
	case host := <-seen:
		return host, nil
	case <-ctx.Done():
		return "", errors.New("connected to somebody else")
	}
}

// ListenPacket listens for UDP on the host until the test ends.
func (h *Host) ListenPacket(t testing.TB, address string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	h.Do(func() (err error) {
		c, err = net.ListenPacket("udp", address)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// Start starts a program on the host. It is killed when the test ends, or when
// the test's process does.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if len(h.Env) > 0 {
		cmd.Env = append(cmd.Environ(), h.Env...)
	}
	return h.Try(cmd.Start)
}

// Run runs a program on the host to its end and returns what it printed on
// both outputs.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := os.CreateTemp(h.t.TempDir(), "out")
	if err != nil {
		return "", err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := h.Start(cmd); err != nil {
		return "", err
	}
	err = cmd.Wait()
	text, _ := os.ReadFile(out.Name())
	if err != nil {
		err = fmt.Errorf("%s %v: %w\n%s", name, args, err, text)
	}
	return string(text), err
}

// Eventually calls f until it returns nil, and ends the test with f's last
// error after the given time.
func Eventually(t testing.TB, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("not within %v: %v", within, err)
		case <-tick.C:
		}
	}
}
