package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// NAT is what a gateway does to the IPv4 packets of its LAN. What Linux can
// express, and what each kind is by the words of RFC 4787, TestNATs measures:
//
//	kind               mapping                    filtering                  ports
//	FullCone           endpoint-independent       endpoint-independent       preserved
//	AddressRestricted  endpoint-independent       address-dependent          preserved
//	PortRestricted     endpoint-independent       address-and-port-dependent preserved
//	Symmetric          address-and-port-dependent address-and-port-dependent random
//
// A connection of the kernel is one remote, so its own NAT filters by address
// and port. Its mapping is endpoint-independent only as far as it can keep the
// inside port: for one host behind the gateway. The first two kinds add maps
// that outbound packets write and that inbound ones are sent by; they forget
// after mappingTimeout. No kind takes part in hairpins.
type NAT int

// The kinds.
const (
	FullCone NAT = iota
	AddressRestricted
	PortRestricted
	Symmetric
)

// String returns the usual name.
func (n NAT) String() string {
	return [...]string{"full cone", "address-restricted", "port-restricted", "symmetric"}[n]
}

// mappingTimeout is that of RFC 4787, section 4.3, as nft writes it.
const mappingTimeout = "120s"

// rules are the chains and maps of the kind. port, where not zero, is what every
// UDP mapping gets for its external port.
func (n NAT) rules(port uint16) string {
	outbound := `meta nfproto ipv4 oifname "wan0" masquerade`
	if n == Symmetric {
		outbound += " random,fully-random"
	}
	external := ""
	if port != 0 {
		external = fmt.Sprintf("\t\tmeta nfproto ipv4 oifname \"wan0\" meta l4proto udp masquerade to :%d\n", port)
	}
	text := fmt.Sprintf("\tchain source {\n\t\ttype nat hook postrouting priority srcnat;\n%s\t\t%s\n\t}\n", external, outbound)
	if n != FullCone && n != AddressRestricted {
		return text
	}
	known, remember := "", ""
	if n == AddressRestricted {
		text += "\tset contacted {\n\t\ttype inet_service . ipv4_addr; flags dynamic,timeout; timeout " + mappingTimeout + "; size 65535;\n\t}\n"
		known, remember = "udp dport . ip saddr @contacted ", " update @contacted { udp sport . ip daddr }"
	}
	return text + fmt.Sprintf(`	map mapped {
		type inet_service : ipv4_addr; flags dynamic,timeout; timeout %s; size 65535;
	}
	chain remember {
		type filter hook forward priority filter - 1;
		meta nfproto ipv4 oifname "wan0" meta l4proto udp update @mapped { udp sport : ip saddr }%s
	}
	chain destination {
		type nat hook prerouting priority dstnat;
		meta nfproto ipv4 iifname "wan0" meta l4proto udp %sdnat ip to udp dport map @mapped
	}
`, mappingTimeout, remember, known)
}

// Restriction is what a gateway forbids the hosts behind it.
type Restriction int

const (
	// Unrestricted lets everything out.
	Unrestricted Restriction = iota
	// HTTPSOnly lets nothing out but TCP to port 443, and its answers in.
	HTTPSOnly
	// ProxyOnly lets nothing through: there is only the gateway's HTTP proxy, which
	// connects to port 443.
	ProxyOnly
)

// GatewayConfig says what a gateway is like.
type GatewayConfig struct {
	NAT      NAT
	Restrict Restriction
	// Port is what every UDP mapping gets for its external port; zero is the
	// kind's own choice. It must be zero for the kinds with maps, which go by the
	// inside port.
	Port uint16
	// NoIPv4 and NoIPv6 leave a family out on the LAN.
	NoIPv4, NoIPv6 bool
	// TranslateIPv6 has it give what its hosts send over IPv6 its own address and a
	// random port for each destination, as Symmetric does to IPv4: nobody outside can
	// tell from where they will send.
	TranslateIPv6 bool
}

// Gateway is a router with a NAT and a LAN behind it. To IPv6 it is a stateful
// firewall: it lets in what belongs to what went out, and what its chain
// "pinholes" accepts.
type Gateway struct {
	Host *Host
	// Proxy is the HTTP proxy of a ProxyOnly gateway, else nil.
	Proxy *Proxy

	lab      *Lab
	internet *Internet // nil for one behind another
	config   GatewayConfig
	v6       netip.Addr // of the LAN's side, zero for none
	ports    int
	port     string // the core's interface to it, empty for one behind another
}

// lan4 is the gateway's address in every LAN.
var lan4 = netip.MustParseAddr("192.168.1.1")

// Gateway adds a gateway to the internet, with an empty LAN.
func (i *Internet) Gateway(name string, config GatewayConfig) *Gateway {
	i.lab.t.Helper()
	h := i.lab.newHost(name)
	h.forward()
	l := i.connect(h, "wan0", i.cable(h))
	h.V4, h.V6 = l.v4, l.v6
	g := &Gateway{Host: h, lab: i.lab, internet: i, config: config, port: l.port}
	if !config.NoIPv6 {
		g.v6 = netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%x::1", l.number))
		i.Core.Route(netip.PrefixFrom(g.v6, 64).Masked().String(), l.v6.String())
	}
	g.open()
	return g
}

// Behind adds a gateway on the LAN of another, without IPv6: behind a carrier's,
// for example, whose customers' network is then that of RFC 6598.
func (g *Gateway) Behind(name string, config GatewayConfig) *Gateway {
	g.lab.t.Helper()
	h := g.lab.newHost(name)
	h.forward()
	const carrier = "100.64.0.1"
	g.ports++
	h.V4 = netip.AddrFrom4([4]byte{100, 64, 0, byte(g.ports + 1)})
	if g.ports == 1 {
		g.Host.Address("lan0", carrier+"/24")
	}
	port := fmt.Sprintf("port%d", g.ports)
	Wire(h, g.Host, "wan0", port)
	g.Host.Enslave("lan0", port)
	h.Address("wan0", h.V4.String()+"/24")
	h.Route("0.0.0.0/0", carrier)
	config.NoIPv6 = true
	inner := &Gateway{Host: h, lab: g.lab, config: config}
	inner.open()
	return inner
}

// open makes the LAN and the rules.
func (g *Gateway) open() {
	g.lab.t.Helper()
	g.Host.Bridge("lan0")
	if !g.config.NoIPv4 {
		g.Host.Address("lan0", lan4.String()+"/24")
	}
	if g.v6.IsValid() {
		g.Host.Address("lan0", g.v6.String()+"/64")
	}
	g.load()
	if g.config.Restrict == ProxyOnly {
		g.Proxy = g.Host.serveProxy(g.lab.t, lan4.String()+":3128")
	}
}

// Join adds a host to the LAN.
func (g *Gateway) Join(name string) *Host {
	g.lab.t.Helper()
	h := g.lab.newHost(name)
	g.Attach(h, "eth0")
	if g.Proxy != nil {
		url := "http://" + g.Proxy.Address
		h.Env = append(h.Env, "HTTP_PROXY="+url, "HTTPS_PROXY="+url)
	}
	return h
}

// Attach joins a host to the LAN by a new interface of the given name, and sets
// its addresses and its ways out. Where the host had other ways out, Attach
// replaces them.
func (g *Gateway) Attach(h *Host, name string) {
	g.lab.t.Helper()
	g.ports++
	port := fmt.Sprintf("port%d", g.ports)
	Wire(h, g.Host, name, port)
	g.Host.Enslave("lan0", port)
	h.V4, h.V6 = netip.Addr{}, netip.Addr{}
	if !g.config.NoIPv4 {
		h.V4 = netip.AddrFrom4([4]byte{192, 168, 1, byte(g.ports + 1)})
		h.Address(name, h.V4.String()+"/24")
		h.replaceRoute("0.0.0.0/0", lan4)
	}
	if g.v6.IsValid() {
		raw := g.v6.As16()
		raw[15] = byte(g.ports + 1)
		h.V6 = netip.AddrFrom16(raw)
		h.Address(name, h.V6.String()+"/64")
		h.replaceRoute("::/0", g.v6)
	}
}

// linkLocal is the link-local address of a gateway that announces itself.
var linkLocal = netip.MustParseAddr("fe80::1")

// Announce has a host of the LAN reach the internet by the gateway's link-local
// address, as hosts do that heard a router's announcement (RFC 4861, section
// 6.3.4), over its interface of the given name.
func (g *Gateway) Announce(h *Host, name string) {
	g.lab.t.Helper()
	g.Host.Address("lan0", linkLocal.String()+"/64")
	h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{
			Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Gw: linkLocal.AsSlice(), LinkIndex: link.Attrs().Index,
		})
	})
}

// load puts the gateway's rules in force, in place of those before.
func (g *Gateway) load() {
	g.lab.t.Helper()
	restrict, translate := "", ""
	if g.config.TranslateIPv6 {
		translate = "\tchain source6 {\n\t\ttype nat hook postrouting priority srcnat;\n\t\tmeta nfproto ipv6 oifname \"wan0\" masquerade random,fully-random\n\t}\n"
	}
	switch g.config.Restrict {
	case Unrestricted:
	case HTTPSOnly:
		restrict = "\t\tiifname \"lan0\" tcp dport != " + httpsPort + " drop\n\t\tmeta l4proto != tcp drop\n"
	case ProxyOnly:
		restrict = "\t\tdrop\n"
	}
	// What comes in from outside for the gateway itself is dropped and not
	// refused: the kernel would remember it as a connection of its own, and give
	// the same remote's real one another port.
	g.Host.Nft(`table inet gateway
delete table inet gateway
table inet gateway {
	chain input {
		type filter hook input priority filter;
		iifname "wan0" meta l4proto { icmp, icmpv6 } accept
		iifname "wan0" ct state established,related accept
		iifname "wan0" drop
	}
	chain forward {
		type filter hook forward priority filter;
` + restrict + `		ct state established,related accept
		ct status dnat accept
		jump pinholes
		iifname "wan0" drop
	}
	chain pinholes { }
` + g.config.NAT.rules(g.config.Port) + translate + "}\n")
}

// Rebind makes the gateway forget every connection, as one that restarts, and
// go on with another configuration: another NAT, or another external port.
// What it restricts stays.
func (g *Gateway) Rebind(nat NAT, port uint16) {
	g.lab.t.Helper()
	g.config.NAT, g.config.Port = nat, port
	g.load()
	g.Host.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// Readdress gives the gateway another public IPv4 address, as a provider does after
// an interruption, and makes it forget every connection: nothing reaches the old
// address any more. It must not be behind another gateway.
func (g *Gateway) Readdress() {
	g.lab.t.Helper()
	core, own := g.internet.addresses()
	g.internet.Core.Renumber(g.port, core.String()+"/31")
	g.Host.Renumber("wan0", own.String()+"/31")
	g.Host.replaceRoute("0.0.0.0/0", core)
	g.Host.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// Nft runs a script of nft(8) on the host.
func (h *Host) Nft(script string) {
	h.t.Helper()
	file := filepath.Join(h.t.TempDir(), "rules.nft")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		h.t.Fatal(err)
	}
	if out, err := h.Run(h.t.Context(), "nft", "-f", file); err != nil {
		h.t.Fatalf("%v\n%s", err, strings.TrimSpace(out))
	}
}
