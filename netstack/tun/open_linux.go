package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

const cloneDevice = "/dev/net/tun"

// osDevice is the kernel's TUN device.
type osDevice struct {
	native  wgtun.Device
	raw     syscall.RawConn // of the native device's file
	name    string
	index   int
	netlink *netlink.Handle // bound to the network namespace of Open

	mtu     atomic.Int64
	short   atomic.Bool   // a piece of short segments did not fit behind another
	closing atomic.Bool   // set before the native device is closed
	done    chan struct{} // closed when watch has returned

	mu sync.Mutex // serialises Configure and Close
}

var _ Device = (*osDevice)(nil)

// Open creates the TUN device that cfg names, or takes over one of that name
// that no process holds, in the network namespace of the calling thread. The
// device is down and has no addresses until Configure.
//
// Errors: ErrNoDevice, ErrPermission, ErrBusy, ErrNotTUN, an error about cfg,
// else what the kernel said.
func Open(cfg Config) (Device, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	file, err := attach(cfg.Name)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("tun: setting up device %s: %w", cfg.Name, err)
	}
	native, err := wgtun.CreateTUNFromFile(file, cfg.MTU)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("tun: setting up device %s: %w", cfg.Name, err)
	}
	d := &osDevice{native: native, raw: raw, done: make(chan struct{})}
	if err := d.init(cfg.MTU); err != nil {
		native.Close()
		return nil, fmt.Errorf("tun: setting up device %s: %w", cfg.Name, err)
	}
	go d.watch()
	return d, nil
}

// attach opens the device file and connects it to the named interface.
func attach(name string) (*os.File, error) {
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%w: %w", ErrNoDevice, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%w: opening %s: %w", ErrPermission, cloneDevice, err)
	case err != nil:
		return nil, fmt.Errorf("tun: opening %s: %w", cloneDevice, err)
	}
	if err := attachInterface(fd, name); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), cloneDevice), nil
}

func attachInterface(fd int, name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("tun: interface name %q: %w", name, err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: creating %s: %w", ErrPermission, name, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %s", ErrBusy, name)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %s", ErrNotTUN, name)
	case err != nil:
		return fmt.Errorf("tun: creating %s: %w", name, err)
	}
	// One made by "ip tuntap add" stays without a holder; ours must not.
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
		return fmt.Errorf("tun: making %s end with this process: %w", name, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("tun: making %s non-blocking: %w", cloneDevice, err)
	}
	return nil
}

func (d *osDevice) init(mtu int) error {
	var err error
	if d.name, err = d.native.Name(); err != nil {
		return err
	}
	if d.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	link, err := d.netlink.LinkByName(d.name)
	if err != nil {
		d.netlink.Close()
		return err
	}
	d.index = link.Attrs().Index
	d.mtu.Store(int64(mtu))
	return nil
}

// watch takes the events of the native device, which would block without a
// taker, until Close.
func (d *osDevice) watch() {
	defer close(d.done)
	for event := range d.native.Events() {
		if event&wgtun.EventMTUUpdate == 0 {
			continue
		}
		if link, err := d.netlink.LinkByIndex(d.index); err == nil {
			d.mtu.Store(int64(link.Attrs().MTU))
		}
	}
}

const (
	// usualPiece is how many packets the kernel makes of 64 KB at the most, of segments
	// that are not unusually short.
	usualPiece = 64
	// enough is how many packets are worth waking somebody for: of more the costs of
	// each do not fall, and what seals and sends them has less to do meanwhile.
	enough = 32
)

// Read implements Device. The kernel hands over what one sender's TCP made into one
// piece, which is anything from one packet to 64 KB; the smaller they are, the more it
// costs to wake those who seal and send them for each. So what else waits is read as
// well until it is enough, while there is room for the usual piece. Where one did not
// fit, its end was lost: segments are short here, and from then on each piece has all
// the room.
func (d *osDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.readPiece(bufs, sizes, offset)
	for err == nil && n < enough && n+usualPiece <= len(bufs) && !d.short.Load() && d.waiting() {
		var more int
		if more, err = d.readPiece(bufs[n:], sizes[n:], offset); errors.Is(err, ErrTooManySegments) {
			d.short.Store(true)
			return n + more, err
		}
		n += more
	}
	if n > 0 && !errors.Is(err, ErrTooManySegments) {
		err = nil // a device that was closed says so again
	}
	return n, err
}

// waiting reports whether the kernel has something to read.
func (d *osDevice) waiting() bool {
	waits := false
	err := d.raw.Control(func(fd uintptr) {
		poll := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll[:], 0)
		waits = err == nil && n == 1 && poll[0].Revents == unix.POLLIN
	})
	return waits && err == nil
}

// readPiece reads one piece, as many packets as it has.
func (d *osDevice) readPiece(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, err := d.native.Read(bufs, sizes, offset)
		if err == nil {
			return n, nil
		}
		if errors.Is(err, wgtun.ErrTooManySegments) {
			return n, ErrTooManySegments
		}
		var fileErr *fs.PathError
		if err := d.closedError(err); errors.Is(err, os.ErrClosed) || errors.As(err, &fileErr) {
			return 0, err
		}
		// What is no error of the device file concerns one packet, or the
		// watching of the interface's state: no reason to stop reading.
	}
}

// Write implements Device.
func (d *osDevice) Write(bufs [][]byte, offset int) (int, error) {
	if offset < Headroom {
		return 0, fmt.Errorf("tun: offset %d is less than Headroom", offset)
	}
	n, err := d.native.Write(bufs, offset)
	if err != nil {
		return n, d.closedError(err)
	}
	return n, nil
}

// closedError makes the errors of a closed or deleted device os.ErrClosed.
func (d *osDevice) closedError(err error) error {
	if d.closing.Load() || errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EBADFD) {
		return os.ErrClosed
	}
	return err
}

// MTU implements Device.
func (d *osDevice) MTU() (int, error) { return int(d.mtu.Load()), nil }

// Name implements Device.
func (d *osDevice) Name() (string, error) { return d.name, nil }

// BatchSize implements Device.
func (d *osDevice) BatchSize() int { return d.native.BatchSize() }

// Close implements Device. The kernel removes addresses and routes with the
// device.
func (d *osDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing.Swap(true) {
		return nil
	}
	err := d.native.Close()
	<-d.done
	d.netlink.Close()
	if err != nil {
		return fmt.Errorf("tun: closing %s: %w", d.name, err)
	}
	return nil
}
