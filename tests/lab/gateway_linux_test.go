package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
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

// TestRestrictions: a gateway with HTTPS only lets nothing but TCP to port 443
// through, one with a proxy only what the proxy connects to, which is that port.
func TestRestrictions(t *testing.T) {
	internet := NewInternet(t)
	near := internet.Public("near")
	internet.Name(near, "near.example.com")
	open443, other := netip.AddrPortFrom(near.V4, 443), netip.AddrPortFrom(near.V4, 7)
	came := ServeTCP(t, near, other.String())
	https := ServeTCP(t, near, open443.String())
	echo := [2]*atomic.Int64{ServeUDP(t, near, open443.String()), ServeUDP(t, near, other.String())}

	blocked := internet.Gateway("gateway", GatewayConfig{NAT: PortRestricted, Restrict: HTTPSOnly}).Join("blocked")
	proxied := internet.Gateway("gateway", GatewayConfig{NAT: PortRestricted, Restrict: ProxyOnly})
	host := proxied.Join("proxied")
	for _, h := range []*Host{blocked, host} {
		open(t, h).send(open443, "hello")
		open(t, h).send(other, "hello")
		go h.Dial(within(t), "tcp", other.String()) // its SYN is on the way when what follows is done
	}
	if err := EchoTCP(within(t), blocked, open443.String()); err != nil {
		t.Errorf("HTTPS where all else is blocked: %v", err)
	}
	go host.Dial(within(t), "tcp", open443.String())
	for target, want := range map[string]string{
		open443.String(): "HTTP/1.1 200", "near.example.com:443": "HTTP/1.1 200",
		other.String(): "HTTP/1.1 403", "near.example.com:7": "HTTP/1.1 403",
	} {
		c, err := host.Dial(within(t), "tcp", proxied.Proxy.Address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
		b := make([]byte, 12)
		if _, err := c.Read(b); err != nil || string(b) != want {
			t.Errorf("asked for %s the proxy answers %q, %v; want %q", target, b, err, want)
		}
		c.Close()
	}
	if connected, refused := proxied.Proxy.Connected.Load(), proxied.Proxy.Refused.Load(); connected != 2 || refused != 2 {
		t.Errorf("the proxy connected %d times and refused %d, want 2 and 2", connected, refused)
	}
	// The one that is free shows that the others had their time.
	free := open(t, near)
	free.send(open443, "hello")
	free.send(other, "hello")
	if err := EchoTCP(within(t), near, other.String()); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 10*time.Second, func() error {
		if echo[0].Load() == 0 || echo[1].Load() == 0 {
			return fmt.Errorf("nothing arrived")
		}
		return nil
	})
	if a, b, c := echo[0].Load(), echo[1].Load(), came.Load(); a != 1 || b != 1 || c != 1 {
		t.Errorf("%d and %d datagrams and %d connections came through", a-1, b-1, c-1)
	}
	if n := https.Load(); n != 3 {
		t.Errorf("%d connections to port 443 came, want that of the host behind the first gateway and two of the proxy", n)
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
