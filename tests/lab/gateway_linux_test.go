package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// behaviour is what a NAT was measured to be, in the words of RFC 4787.
type behaviour struct {
	mapping, filtering string
	preserves, hairpin bool
}

const (
	ei  = "endpoint-independent"
	ad  = "address-dependent"
	apd = "address-and-port-dependent"
)

// TestNATs measures every kind of gateway from a host behind it, as RFC 5780
// does: what different remotes see of one socket, and whom the NAT lets in.
func TestNATs(t *testing.T) {
	internet := NewInternet(t)
	near, far := internet.Public("near"), internet.Public("far")
	for _, kind := range []struct {
		name string
		join func(name string) *Host
		want behaviour
	}{
		{"none", internet.Public, behaviour{ei, ei, true, true}},
		{"full cone", behind(internet, FullCone, 0), behaviour{ei, ei, true, false}},
		{"address-restricted", behind(internet, AddressRestricted, 0), behaviour{ei, ad, true, false}},
		{"port-restricted", behind(internet, PortRestricted, 0), behaviour{ei, apd, true, false}},
		{"port-restricted with a port of its own", behind(internet, PortRestricted, 45678), behaviour{ei, apd, false, false}},
		{"symmetric", behind(internet, Symmetric, 0), behaviour{apd, apd, false, false}},
		{"carrier-grade", func(name string) *Host {
			carrier := internet.Gateway("carrier", GatewayConfig{NAT: PortRestricted})
			return carrier.Behind("home", GatewayConfig{NAT: PortRestricted}).Join(name)
		}, behaviour{ei, apd, true, false}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			if got := measure(t, kind.join("host"), near, far); got != kind.want {
				t.Errorf("%+v, want %+v", got, kind.want)
			}
		})
	}
}

func behind(i *Internet, nat NAT, port uint16) func(string) *Host {
	return func(name string) *Host {
		return i.Gateway("gateway", GatewayConfig{NAT: nat, Port: port}).Join(name)
	}
}

// udp is a socket on a host's IPv4 address.
type udp struct {
	net.PacketConn
	t  *testing.T
	at netip.AddrPort
}

func open(t *testing.T, h *Host) udp {
	c := h.ListenPacket(t, netip.AddrPortFrom(h.V4, 0).String())
	return udp{c, t, netip.MustParseAddrPort(c.LocalAddr().String())}
}

func (u udp) send(to netip.AddrPort, text string) {
	u.t.Helper()
	// An answer of an earlier packet, such as that nobody listens, is no matter.
	if _, err := u.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to)); err != nil {
		u.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to))
	}
}

func (u udp) receive() (text string, from netip.AddrPort) {
	u.t.Helper()
	u.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 64)
	n, peer, err := u.ReadFrom(b)
	if err != nil {
		u.t.Fatal(err)
	}
	return string(b[:n]), netip.MustParseAddrPort(peer.String())
}

// measure uses no time-out for what does not arrive: a packet that was let
// through comes before one that was sent after it by a way that is open.
func measure(t *testing.T, inside, near, far *Host) (b behaviour) {
	n1, n2, f := open(t, near), open(t, near), open(t, far)

	s := open(t, inside)
	seen := make([]netip.AddrPort, 0, 3)
	for _, remote := range []udp{n1, n2, f} {
		s.send(remote.at, "hello")
		_, from := remote.receive()
		seen = append(seen, from)
	}
	switch {
	case seen[0] == seen[1] && seen[0] == seen[2]:
		b.mapping = ei
	case seen[0] == seen[1]:
		b.mapping = ad
	default:
		b.mapping = apd
	}
	b.preserves = seen[0].Port() == s.at.Port()

	// Another remote: a gateway with one port for all has it once for each.
	s, n1, n2, f = open(t, inside), open(t, near), open(t, near), open(t, far)
	s.send(n1.at, "hello")
	_, external := n1.receive()
	f.send(external, ei)
	n2.send(external, ad)
	n1.send(external, apd)
	b.filtering, _ = s.receive()

	other := open(t, inside)
	other.send(external, "hairpin")
	for text := ""; text != "end"; text, _ = s.receive() {
		if b.hairpin = b.hairpin || text == "hairpin"; text == "" {
			n1.send(external, "end")
		}
	}
	return b
}

// TestRebind: after it the same socket has another mapping, and remotes that
// knew the old one do not reach it.
func TestRebind(t *testing.T) {
	internet := NewInternet(t)
	near := internet.Public("near")
	g := internet.Gateway("gateway", GatewayConfig{NAT: PortRestricted})
	inside := g.Join("host")
	s, n := open(t, inside), open(t, near)
	s.send(n.at, "one")
	_, old := n.receive()
	for i, nat := range []NAT{PortRestricted, Symmetric} {
		port := uint16(40000 + i)
		if nat == Symmetric {
			port = 0
		}
		g.Rebind(nat, port)
		n.send(old, "late")
		s.send(n.at, "two")
		_, now := n.receive()
		if now == old || port != 0 && now.Port() != port {
			t.Errorf("%v: mapped to %v after %v, want port %d", nat, now, old, port)
		}
		n.send(now, "answer")
		if text, _ := s.receive(); text != "answer" {
			t.Errorf("%v: %q arrived", nat, text)
		}
		old = now
	}
}

// TestRestrictions: a gateway without UDP lets TCP through, one with a proxy
// only what the proxy connects to.
func TestRestrictions(t *testing.T) {
	internet := NewInternet(t)
	near := internet.Public("near")
	ServeTCP(t, near, netip.AddrPortFrom(near.V4, 7).String())
	echo := ServeUDP(t, near, netip.AddrPortFrom(near.V4, 7).String())
	to := netip.AddrPortFrom(near.V4, 7)

	blocked := internet.Gateway("gateway", GatewayConfig{NAT: PortRestricted, Restrict: NoUDP}).Join("blocked")
	open(t, blocked).send(to, "hello")
	if err := EchoTCP(within(t), blocked, to.String()); err != nil {
		t.Errorf("TCP where UDP is blocked: %v", err)
	}
	proxied := internet.Gateway("gateway", GatewayConfig{NAT: PortRestricted, Restrict: ProxyOnly})
	host := proxied.Join("proxied")
	open(t, host).send(to, "hello")
	c, err := host.Dial(within(t), "tcp", proxied.Proxy.Address)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "CONNECT %v HTTP/1.1\r\nHost: %v\r\n\r\n", to, to)
	b := make([]byte, 12)
	if _, err := c.Read(b); err != nil || string(b) != "HTTP/1.1 200" || proxied.Proxy.Connected.Load() != 1 {
		t.Errorf("the proxy answers %q, %v, and connected %d times", b, err, proxied.Proxy.Connected.Load())
	}
	// The one that is free shows that the others had their time.
	open(t, near).send(to, "hello")
	Eventually(t, 10*time.Second, func() error {
		if echo.Load() == 0 {
			return fmt.Errorf("nothing arrived")
		}
		return nil
	})
	if n := echo.Load(); n != 1 {
		t.Errorf("%d datagrams came through", n-1)
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
