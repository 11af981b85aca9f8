package sock

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// discovery returns what the kernel does about the path's MTU.
func discovery(t *testing.T, s *socket) (mode int) {
	t.Helper()
	var err error
	controlErr := s.raw.Control(func(fd uintptr) {
		if s.is6 {
			mode, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER)
			return
		}
		mode, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
	})
	if err != nil || controlErr != nil {
		t.Fatal(err, controlErr)
	}
	return mode
}

// TestNothingIsFragmented: in both families, before and after a datagram that
// might be. What routers do with it is tested on links with an MTU, tests/netns.
func TestNothingIsFragmented(t *testing.T) {
	from, to := listenBothFamilies(t), listenBothFamilies(t)
	for _, address := range []string{"127.0.0.1", "::1"} {
		s := from.v4
		if address == "::1" {
			s = from.v6
		}
		if s == nil {
			t.Logf("%s: no such family", address)
			continue
		}
		target := netip.AddrPortFrom(netip.MustParseAddr(address), to.port)
		if mode := discovery(t, s); mode != unix.IP_PMTUDISC_PROBE {
			t.Errorf("%s: mode %d", address, mode)
		}
		long := bytes.Repeat([]byte("x"), 9000)
		if err := from.WriteFragmented([][]byte{long, []byte("y")}, target); err != nil {
			t.Fatal(err)
		}
		if mode := discovery(t, s); mode != unix.IP_PMTUDISC_PROBE {
			t.Errorf("%s: mode %d after a datagram that might be fragmented", address, mode)
		}
		if err := from.WriteBatch([][]byte{make([]byte, 1<<16)}, target); !errors.Is(err, ErrTooLong) {
			t.Errorf("%s: a datagram longer than any interface carries: %v", address, err)
		}
	}
}

// listenBothFamilies opens a port on all addresses.
func listenBothFamilies(t *testing.T) *udpConn {
	t.Helper()
	c, err := Listen(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*udpConn)
}

// TestFragmentStays: a port whose datagrams may be fragmented stays so, also after
// one that was asked for by itself.
func TestFragmentStays(t *testing.T) {
	opened, err := Listen(Config{Fragment: true})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	from, to := opened.(*udpConn), listenBothFamilies(t)
	if from.v4 == nil {
		t.Fatal("no IPv4")
	}
	for range 2 {
		if mode := discovery(t, from.v4); mode != unix.IP_PMTUDISC_OMIT {
			t.Errorf("mode %d", mode)
		}
		target := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.port)
		if err := from.WriteFragmented([][]byte{[]byte("x")}, target); err != nil {
			t.Fatal(err)
		}
	}
}
