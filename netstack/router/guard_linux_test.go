package router

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestNeighboursDoNotSpeakForPeers is S05c: a host of the node's network sends,
// with a peer's address as source, to the node's address on that network. What
// follows on the same cable from an address of its own says when it is through.
func TestNeighboursDoNotSpeakForPeers(t *testing.T) {
	s := newSite(t)
	s.office.Address("eth0", peerIP+"/32", peerIP6+"/128", "100.64.9.2/24")
	s.router.Address("lan0", "100.64.9.1/24") // a provider's network inside the ranges
	for _, name := range []string{"all", "lan0"} {
		s.router.Sysctl("net/ipv4/conf/"+name+"/rp_filter", "0")
	}
	received := map[string]chan string{"10.20.0.1:9": make(chan string, 8), "[fd20::1]:9": make(chan string, 8), "100.64.9.1:9": make(chan string, 8)}
	for address, from := range received {
		c := s.router.ListenPacket(t, address)
		t.Cleanup(func() { c.Close() })
		go func() {
			for {
				_, sender, err := c.ReadFrom(make([]byte, 16))
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(sender.String())
				from <- host
			}
		}()
	}
	send := func(local, to string) {
		t.Helper()
		s.office.Do(func() error {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(local)}}
			c, err := d.Dial("udp", to)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("warren"))
			return err
		})
	}
	next := func(to string) string {
		t.Helper()
		select {
		case host := <-received[to]:
			return host
		case <-time.After(5 * time.Second):
			t.Fatalf("nothing arrived at %s", to)
			return ""
		}
	}
	cases := []struct{ forged, honest, to string }{
		{peerIP, "10.20.0.10", "10.20.0.1:9"},
		{peerIP6, "fd20::10", "[fd20::1]:9"},
		{peerIP, "100.64.9.2", "100.64.9.1:9"},
	}
	for _, c := range cases {
		send(c.forged, c.to)
		if got := next(c.to); got != c.forged {
			t.Fatalf("without a guard %s heard %s first, so nothing would be tested", c.to, got)
		}
	}
	plain, exit, exitLAN, accept := settings(), settings(), settings(), settings()
	exit.Exit, exitLAN.Exit, exitLAN.KeepLAN = true, true, true
	accept.Accept = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for i, set := range []Settings{plain, exit, exitLAN, accept, settings("10.20.0.0/24"), plain} {
		s.configure(set)
		for _, filter := range []string{"0", "2"} {
			s.router.Sysctl("net/ipv4/conf/lan0/rp_filter", filter)
			for _, c := range cases {
				send(c.forged, c.to)
				send(c.honest, c.to)
				if got := next(c.to); got != c.honest {
					t.Errorf("settings %d, rp_filter %s: %s took a packet from %s", i, filter, c.to, got)
					next(c.to)
				}
			}
		}
	}
}

// TestGuardKeepsFromMetadata has the node serve the addresses at which clouds
// give machines their credentials.
func TestGuardKeepsFromMetadata(t *testing.T) {
	s := newSite(t)
	s.office.Address("eth0", "168.63.129.16/32", "168.63.129.17/32", "fd00:ec2::254/128")
	s.router.Route("168.63.129.16/31", "10.20.0.10")
	s.router.Route("fd00:ec2::/64", "fd20::10")
	s.peer.Route("168.63.129.16/31", routerIP)
	s.peer.Route("fd00:ec2::/64", routerIP6)
	s.configure(settings("0.0.0.0/0", "::/0"))
	for address, reached := range map[string]bool{"168.63.129.16": false, "168.63.129.17": true, "fd00:ec2::254": false} {
		_, err := s.peer.SeenAs(t, s.office, net.JoinHostPort(address, "80"), passLimit)
		if (err == nil) != reached {
			t.Error(fmt.Errorf("%s: reached should be %v: %w", address, reached, err))
		}
	}
}
