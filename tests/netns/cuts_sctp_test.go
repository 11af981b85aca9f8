//go:build linux

package netns

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"github.com/warren-overlay/warren/tests/lab"
)

const (
	// sctpHeader is the length of SCTP's common header (RFC 9260, section 3.1).
	sctpHeader = 12
	// sctpInit and sctpData are types of chunks, and minInit the length of the
	// shortest of the first type (section 3.3.2).
	sctpInit, sctpData = 1, 0
	minInit            = 20
)

// sctpPacket returns an SCTP packet with one chunk, which ends with number. Its
// checksum is of no use: nobody looks at it but an SCTP stack, and there is none.
func sctpPacket(from, to uint16, first bool, number []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	kind, tag := byte(sctpData), uint32(1)
	if first {
		kind, tag = sctpInit, 0
	}
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0) // checksum
	b = append(b, kind, 0, 0, minInit)
	b = append(b, make([]byte, minInit-4-len(number))...)
	return append(b, number...)
}

// startSCTP sends packets of IP protocol 132 by raw sockets on both hosts: an
// association as the filter knows it (P11), without an SCTP stack that the kernel
// may lack. The first packets are INIT chunks, until one is echoed.
func startSCTP(t *testing.T, name string, from, to *lab.Host, family, dial string, port uint16) *cutFlow {
	t.Helper()
	f := newCutFlow(t, name)
	network := map[string]string{"-4": "ip4:132", "-6": "ip6:132"}[family]
	open := func(h *lab.Host) (c net.PacketConn) {
		h.Do(func() (err error) {
			c, err = net.ListenPacket(network, "")
			return err
		})
		t.Cleanup(func() { c.Close() })
		return c
	}
	here, there := open(from), open(to)
	const own = 6999
	// read calls f with the number of each packet from one port to another.
	read := func(c net.PacketConn, from, to uint16, f func(number []byte, peer net.Addr)) {
		buffer := make([]byte, 1500)
		for {
			n, peer, err := c.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n == sctpHeader+minInit && binary.BigEndian.Uint16(buffer) == from && binary.BigEndian.Uint16(buffer[2:]) == to {
				f(buffer[n-8:n], peer)
			}
		}
	}
	go read(there, own, port, func(number []byte, peer net.Addr) {
		f.arrived.Add(1)
		f.last.now()
		there.WriteTo(sctpPacket(port, own, false, number), peer)
	})
	go read(here, port, own, func([]byte, net.Addr) {
		f.echoed.Add(1)
		f.lastEcho.now()
	})
	peer := &net.IPAddr{IP: net.ParseIP(dial)}
	go f.send(func(number []byte) error {
		_, err := here.WriteTo(sctpPacket(own, port, f.echoed.Load() == 0, number), peer)
		return err
	}, true)
	return f
}
