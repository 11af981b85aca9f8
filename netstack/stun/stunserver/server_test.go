package stunserver

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/stun"
)

func TestServerAnswersRequestsOnly(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			addr := netip.MustParseAddr(host)
			conn, err := sock.Listen(sock.Config{Addresses: []netip.Addr{addr}})
			if err != nil {
				t.Skipf("no %s here: %v", host, err)
			}
			s := New(conn)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- s.Run(ctx) }()

			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, s.Port())))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			id := stun.TxID{1, 2, 3}
			for _, p := range [][]byte{[]byte("noise"), {}, stun.AppendRequest(nil, id)} {
				if _, err := c.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			buf := make([]byte, 1500)
			n, err := c.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			m, err := stun.Parse(buf[:n])
			if err != nil {
				t.Fatal(err)
			}
			if want := c.LocalAddr().(*net.UDPAddr).AddrPort(); m.Kind != stun.Response || m.TxID != id || m.Mapped != want {
				t.Fatalf("got %+v, want a response for %v", m, want)
			}
			if got := s.Counters(); got != (Counters{Received: 3, Answered: 1}) {
				t.Fatalf("counters %+v, want 3 received and 1 answered", got)
			}
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	}
}
