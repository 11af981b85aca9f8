package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Headroom is the least offset at which packets may be passed to Device.Write,
// and the least that callers should leave in Device.Read: devices write their
// own header into the bytes before the packet.
const Headroom = 16

// DefaultName is the name of a device whose Config gives none.
const DefaultName = "warren%d"

// DefaultMTU is the MTU of a device whose Config names none: 1500 bytes less
// what WireGuard over IPv6 adds (40 IPv6 + 8 UDP + 32 WireGuard), rounded as
// WireGuard rounds it. It is 1280 or more, as IPv6 needs (RFC 8200 §5).
const DefaultMTU = 1420

var (
	// ErrUnsupported is returned by Open on systems whose TUN devices this
	// build cannot set up.
	ErrUnsupported = errors.New("tun: no TUN device support for this operating system yet; use --tun userspace")

	// ErrTooManySegments is returned by Device.Read together with the packets
	// that fitted, when the host sent more segments at once than there were
	// buffers.
	ErrTooManySegments = errors.New("tun: more segments than buffers")

	// ErrNoDevice is returned by Open when the kernel offers no TUN devices.
	ErrNoDevice = errors.New("tun: /dev/net/tun is missing (load the tun kernel module, or give the container the device); or use --tun userspace")

	// ErrPermission is returned by Open when the process may not create
	// network devices.
	ErrPermission = errors.New("tun: not permitted to create a network device (CAP_NET_ADMIN); run as root or use --tun userspace")

	// ErrBusy is returned by Open when another process holds a device of that
	// name.
	ErrBusy = errors.New("tun: a device of this name is in use by another program; stop it or choose another name with --tun NAME")

	// ErrNotTUN is returned by Open when an interface of that name exists and
	// is no TUN device.
	ErrNotTUN = errors.New("tun: an interface of this name exists and is not a TUN device; choose another name with --tun NAME")
)

// A Device carries the packets between this host and the overlay. The shapes
// of Read and Write are those of golang.zx2c4.com/wireguard/tun.Device, so that
// one can stand for the other without copying. All methods may be called
// concurrently.
type Device interface {
	// Read blocks until the host sends packets into the overlay, writes them
	// to bufs[i][offset:offset+sizes[i]] and returns their number. len(bufs)
	// and len(sizes) must be at least BatchSize, and every buffer must hold
	// offset plus MTU bytes. Packets are complete IP packets with correct
	// checksums, none longer than the MTU. After Close the error is
	// os.ErrClosed. An error that errors.Is ErrTooManySegments concerns this
	// call only, and the n packets returned with it are valid.
	Read(bufs [][]byte, sizes []int, offset int) (n int, err error)

	// Write delivers the packets bufs[i][offset:] from the overlay to the
	// host and returns the number of bytes or packets delivered (a value for
	// information only). offset must be at least Headroom. The device may
	// overwrite any byte of the buffers, and may join packets by appending to
	// a buffer within its capacity. After Close the error is os.ErrClosed;
	// any other error means that some of the packets were dropped.
	Write(bufs [][]byte, offset int) (int, error)

	// MTU returns the size in bytes of the longest packet that Read returns.
	MTU() (int, error)

	// Name returns the name of the interface, or "userspace" where there is
	// none.
	Name() (string, error)

	// BatchSize returns the number of buffers that Read and Write are best
	// called with; it never changes.
	BatchSize() int

	// Configure makes the device's addresses, routes and MTU what settings
	// says and brings the device up. Calling it again with the same settings
	// changes nothing; with others it changes the difference. Where one part
	// fails, the parts that could be done are done, and the errors are
	// returned joined.
	Configure(settings Settings) error

	// Close removes the device with its addresses and routes, and unblocks
	// Read. A second Close does nothing.
	Close() error
}

// Settings is what Device.Configure sets. The slices are not kept.
type Settings struct {
	// Addresses are the device's own overlay addresses. Their prefix lengths
	// are as given: the engine gives /32 and /128.
	Addresses []netip.Prefix

	// Routes are the prefixes that are sent into the overlay.
	Routes []netip.Prefix

	// MTU in bytes; zero leaves it as it is.
	MTU int
}

// Validate reports prefixes that are not valid or are IPv4 addresses mapped into
// IPv6, and an MTU under 576 or over 65535 bytes. Configure starts with it and
// changes nothing where it fails.
func (s Settings) Validate() error {
	for _, prefixes := range [][]netip.Prefix{s.Addresses, s.Routes} {
		for _, p := range prefixes {
			if !p.IsValid() || p.Addr().Is4In6() {
				return fmt.Errorf("tun: invalid prefix %v", p)
			}
		}
	}
	return validateMTU(s.MTU)
}

// validateMTU accepts zero, which leaves the choice to the device.
func validateMTU(mtu int) error {
	if mtu != 0 && (mtu < 576 || mtu > 65535) { // RFC 791 §3.1 and the IP length fields
		return fmt.Errorf("tun: MTU %d is outside 576 to 65535", mtu)
	}
	return nil
}

// Config says what Open opens.
type Config struct {
	// Name of the interface, at most 15 bytes; empty means DefaultName. On
	// Linux "%d" in a name is replaced by a number that makes it unique.
	Name string

	// MTU in bytes; zero means DefaultMTU.
	MTU int
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if len(cfg.Name) > 15 || cfg.Name == "." || cfg.Name == ".." || strings.ContainsFunc(cfg.Name, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '/' || r == ':'
	}) {
		return cfg, fmt.Errorf("tun: interface name %q: want 1 to 15 printable ASCII characters without space, '/' and ':'", cfg.Name)
	}
	return cfg, validateMTU(cfg.MTU)
}
