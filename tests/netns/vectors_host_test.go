//go:build linux

package netns

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"

	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/netstack/userstack"
	"github.com/warren-overlay/warren/tests/lab"
)

// vectorHost is the host's side of an engine under test: what stands where
// applications do.
type vectorHost struct {
	device tun.Device
	// send sends a packet as the host's stack would, whatever its bytes.
	send func(b []byte) error
	// received has the packets that the engine delivered to the host.
	received chan []byte
	close    func()
}

// addressesOfNone is IN6_ADDR_GEN_MODE_NONE of Linux.
const addressesOfNone = 1

// receivedQueue is how many packets the host keeps until the test looks.
const receivedQueue = 4096

// kernelHost makes a real TUN device on the host. Packets are sent and seen by a
// packet socket on it, beneath the kernel's own rules for what it emits and
// accepts. The device has no address, so that the kernel answers nothing by
// itself: the vectors say all that the host sends.
func kernelHost(t *testing.T, h *lab.Host, name string) *vectorHost {
	t.Helper()
	v := &vectorHost{received: make(chan []byte, receivedQueue)}
	var socket, index int
	h.Do(func() (err error) {
		if v.device, err = tun.Open(tun.Config{Name: name}); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		// Without an address of its own the kernel asks for no routers.
		if err := netlink.LinkSetIP6AddrGenMode(link, addressesOfNone); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(bigEndian(unix.ETH_P_ALL))); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
			return err
		}
		return unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: index})
	})
	closing := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := unix.Recvfrom(socket, buffer, 0)
			select {
			case <-closing:
				return
			default:
			}
			if link, ok := from.(*unix.SockaddrLinklayer); err == nil && ok && link.Pkttype != unix.PACKET_OUTGOING {
				v.received <- append([]byte(nil), buffer[:n]...)
			}
		}
	})
	v.send = func(b []byte) error {
		protocol := bigEndian(unix.ETH_P_IP)
		if b[0]>>4 == 6 {
			protocol = bigEndian(unix.ETH_P_IPV6)
		}
		return unix.Sendto(socket, b, 0, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index})
	}
	v.close = func() {
		close(closing)
		reader.Wait()
		unix.Close(socket)
	}
	return v
}

// bigEndian returns the number in the order of bytes that packet sockets want.
func bigEndian(n uint16) uint16 { return n<<8 | n>>8 }

// userHost makes a stack in user space. What the engine delivers reaches the
// stack; what the stack answers is left out, so that the vectors say all that
// the host sends.
func userHost(t *testing.T, addresses []netip.Addr) *vectorHost {
	t.Helper()
	stack, err := userstack.New(userstack.Config{Addresses: addresses, Refuse: func(uint16) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	d := &tapped{Device: stack, sent: make(chan []byte, receivedQueue), received: make(chan []byte, receivedQueue), closed: make(chan struct{})}
	d.reader.Go(d.drain)
	return &vectorHost{
		device: d, received: d.received, close: func() {},
		send: func(b []byte) error {
			d.sent <- b
			return nil
		},
	}
}

// tapped is a device whose reader gets what the test sends, and whose writes the
// test sees.
type tapped struct {
	tun.Device
	sent, received chan []byte
	closed         chan struct{}
	once           sync.Once
	reader         sync.WaitGroup
}

func (d *tapped) drain() {
	bufs, sizes := make([][]byte, d.Device.BatchSize()), make([]int, d.Device.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	for {
		if _, err := d.Device.Read(bufs, sizes, tun.Headroom); err != nil && !errors.Is(err, tun.ErrTooManySegments) {
			return
		}
	}
}

// Read implements tun.Device.
func (d *tapped) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case b := <-d.sent:
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	}
}

// Write implements tun.Device.
func (d *tapped) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		d.received <- append([]byte(nil), b[offset:]...)
	}
	return d.Device.Write(bufs, offset)
}

// Close implements tun.Device.
func (d *tapped) Close() error {
	d.once.Do(func() { close(d.closed) })
	err := d.Device.Close()
	d.reader.Wait()
	return err
}
