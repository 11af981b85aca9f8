package userstack

import (
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"testing"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/enginetest"
)

// flood sends a SYN from each of the ports 2000 to 2000+n, for every address,
// that nobody will complete.
func flood(t *testing.T, b *Stack, n int, to netip.AddrPort, from ...netip.Addr) {
	t.Helper()
	for i := range n {
		for _, addr := range from {
			syn := enginetest.TCP(netip.AddrPortFrom(addr, uint16(2000+i)), to, packet.SYN, 1, 0, "")
			if _, err := b.Write([][]byte{syn}, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// await waits until the stack has that many half-open connections, and has
// dropped that many SYNs.
func await(t *testing.T, b *Stack, open int, capped uint64) {
	t.Helper()
	for ctx := testContext(t); b.forward.handshakes.open() != open || b.Stats().TCPCapped < capped; runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatalf("%d half-open, want %d; %+v", b.forward.handshakes.open(), open, b.Stats())
		}
	}
}

// TestHalfOpenConnectionsLockNobodyOut has one peer open, from both of its
// addresses, more connections than there are places, and complete none.
func TestHalfOpenConnectionsLockNobodyOut(t *testing.T) {
	port := localService(t, "127.0.0.1", echo)
	a, b := pair(t, Config{})
	flood(t, b, 400, netip.AddrPortFrom(addrB4, port), netip.MustParseAddr("100.64.0.3"))
	flood(t, b, 400, netip.AddrPortFrom(addrB6, port), netip.MustParseAddr("fd00:77::3"))
	await(t, b, 2*maxPeerHandshakes, 800-2*maxPeerHandshakes)
	conn, err := a.DialContext(testContext(t), "tcp", net.JoinHostPort(addrB4.String(), strconv.Itoa(int(port))))
	if err != nil {
		t.Fatalf("another peer: %v", err)
	}
	conn.Close()
}

// TestAddressesOfOneDevice counts a router's addresses for one peer.
func TestAddressesOfOneDevice(t *testing.T) {
	port := localService(t, "127.0.0.1", echo)
	routed := netip.MustParsePrefix("192.0.2.0/24")
	a, b := pair(t, Config{Device: func(addr netip.Addr) uint64 {
		if routed.Contains(addr) {
			return 7
		}
		return 0
	}})
	var all []netip.Addr
	for addr := routed.Addr().Next(); routed.Contains(addr.Next()); addr = addr.Next() {
		all = append(all, addr)
	}
	flood(t, b, 5, netip.AddrPortFrom(addrB4, port), all...)
	await(t, b, maxPeerHandshakes, uint64(5*len(all)-maxPeerHandshakes))
	conn, err := a.DialContext(testContext(t), "tcp", net.JoinHostPort(addrB4.String(), strconv.Itoa(int(port))))
	if err != nil {
		t.Fatalf("another peer: %v", err)
	}
	conn.Close()
}
