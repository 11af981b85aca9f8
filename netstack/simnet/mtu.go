package simnet

import "net/netip"

// A link's MTU is the length of the longest IP packet that it carries; zero means
// that it carries everything. What is longer vanishes without a word, as where
// routers or firewalls swallow ICMP. Packets are never fragmented on their way
// (IP_PMTUDISC_PROBE), but for those that their sender allows it
// (sock.Conn.WriteFragmented).

const (
	headers4 = 20 + 8 // IPv4, UDP
	headers6 = 40 + 8
)

// SetMTU says how long a packet may be on the internet.
func (n *Network) SetMTU(bytes int) { n.mtu = bytes }

// SetMTU says how long a packet may be on the host's own link, in either
// direction.
func (h *Host) SetMTU(bytes int) { h.mtu = bytes }

// SetMTU says how long a packet may be on the router's link to the outside.
func (r *Router) SetMTU(bytes int) { r.mtu = bytes }

// tooLong reports whether a packet with a payload of so many bytes does not fit
// through a link.
func tooLong(payload int, to netip.Addr, mtu int) bool {
	if to.Is4() {
		payload += headers4
	} else {
		payload += headers6
	}
	return mtu > 0 && payload > mtu
}
