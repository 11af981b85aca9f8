package lab

import (
	"fmt"
	"net/netip"
	"testing"
)

// Internet is a router that sites are joined to, each by a link of its own:
//
//	       core (router, no NAT)
//	203.0.113.0/31 |        | 203.0.113.2/31       2001:db8:0:N::/64
//	           eth0|        |wan0
//	         public host   gateway
//	                        |lan0  192.168.1.0/24  2001:db8:1:N::/64
//	                  +-----+-----+
//	                 eth0        eth0
//	                 host        host
//
// All homes have the same private network, as homes have.
type Internet struct {
	// Core is the router. Its interface to site N is "siteN".
	Core *Host

	lab   *Lab
	links int
}

// maxLinks is how many /31 networks 203.0.113.0/24 has.
const maxLinks = 128

// NewInternet returns an Internet without sites. It skips the test where
// namespaces are not permitted.
func NewInternet(t testing.TB) *Internet {
	t.Helper()
	l := newLab(t)
	i := &Internet{lab: l, Core: l.newHost("core")}
	i.Core.forward()
	return i
}

// link is a cable from the core to a site.
type link struct {
	number int
	v4, v6 netip.Addr // of the site
	port   string     // of the core
}

// connect joins h to the core by a cable whose end at h has the given name, and
// gives h both addresses of it and its ways out. lay lays the cable.
func (i *Internet) connect(h *Host, name string, lay func(name, port string)) link {
	i.lab.t.Helper()
	n := i.links
	core4, v4 := i.addresses()
	l := link{number: n, port: fmt.Sprintf("site%d", n), v4: v4, v6: netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::2", n))}
	core6 := l.v6.Prev()
	lay(name, l.port)
	i.Core.Address(l.port, core4.String()+"/31", core6.String()+"/64")
	h.Address(name, l.v4.String()+"/31", l.v6.String()+"/64")
	h.Route("0.0.0.0/0", core4.String())
	h.Route("::/0", core6.String())
	return l
}

// addresses returns the IPv4 addresses of the core and of a site for one more link.
func (i *Internet) addresses() (core, site netip.Addr) {
	i.lab.t.Helper()
	n := i.links
	if i.links++; n == maxLinks {
		i.lab.t.Fatalf("lab: more than %d links", maxLinks)
	}
	core = netip.AddrFrom4([4]byte{203, 0, 113, byte(2 * n)})
	return core, core.Next()
}

// cable returns what lays a cable from h to the core.
func (i *Internet) cable(h *Host) func(name, port string) {
	return func(name, port string) { Wire(h, i.Core, name, port) }
}

// Public adds a host with public addresses and nothing in front of it, such as
// a server.
func (i *Internet) Public(name string) *Host {
	i.lab.t.Helper()
	h := i.lab.newHost(name)
	l := i.connect(h, "eth0", i.cable(h))
	h.V4, h.V6 = l.v4, l.v6
	return h
}

// Bare adds a host that is joined to nothing.
func (i *Internet) Bare(name string) *Host {
	i.lab.t.Helper()
	return i.lab.newHost(name)
}

// forward makes the host a router.
func (h *Host) forward() {
	h.t.Helper()
	h.Sysctl("net/ipv4/ip_forward", "1")
	h.Sysctl("net/ipv6/conf/all/forwarding", "1")
}
