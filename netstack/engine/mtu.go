package engine

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/netstack/path"
	"github.com/warren-overlay/warren/netstack/relay"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/tun"
	"github.com/warren-overlay/warren/netstack/wg"
)

const (
	// largePacket is the length from which packets make the agent watch whether
	// the path still carries them: above it a path is not asked for less, but for
	// what no network of today has.
	largePacket = 1024
	// tooBigRate is how many packets a second, and at once, the sender is told of
	// for each peer: as many ICMP errors as a peer's are taken (packet-filter.md,
	// P14). One suffices for a flow.
	tooBigRate = 100
	// sealOverhead is what WireGuard adds to a packet, sealUnit what it pads it
	// to.
	sealOverhead, sealUnit = 32, 16
	// linkOverhead is what a sealed packet has around it on a link: IPv6, UDP and
	// WireGuard.
	linkOverhead = 40 + 8 + sealOverhead
	// maxLinkMTU is the MTU of a device on links of jumbo frames: 9000 bytes are
	// what networks of them have in common.
	maxLinkMTU = 9000 - linkOverhead
)

// relayMTU is the longest packet that goes, sealed, to a relay and on from there as
// a datagram. Longer ones would go by the connection, which costs the relay many
// times as much, and flows that began with them would be told of less when a direct
// path of the usual kind is found.
var relayMTU = (relay.MaxDatagramPayload(netip.IPv4Unspecified()) - sealOverhead) &^ (sealUnit - 1)

// deviceMTU is the MTU of a device for links up to one of the given MTU.
func deviceMTU(link int) int {
	return max(tun.DefaultMTU, min(link-linkOverhead, maxLinkMTU))
}

// followLinks makes the device's MTU what this machine's links carry, where that is
// wanted. Without a link it stays.
func (c *control) followLinks(now time.Time) {
	if !c.e.cfg.FollowLinks || !c.e.cfg.ManageDevice || c.e.cfg.MTU > 0 || !sock.DontFragment {
		return
	}
	link, err := sock.LinkMTU(c.localConfig())
	if err != nil {
		c.e.log.Warn("asking for the MTU of this machine's links", "error", err)
	}
	if link == 0 {
		return
	}
	if c.givenMTU == 0 {
		c.givenMTU = c.tunnelMTU() // with which it was opened
	}
	mtu := deviceMTU(link)
	if mtu == c.linkMTU {
		return
	}
	if c.linkMTU = mtu; c.cfg == nil {
		return // the device gets it with its addresses
	}
	c.e.log.Info("the MTU of this machine's links changed", "link", link, "device", mtu)
	if err := c.configureDevice(c.cfg); err != nil {
		c.e.log.Warn("setting the device's MTU", "error", err)
	}
	c.setFilterDevice(now)
	for _, p := range c.peers {
		p.agent.SetMTU(c.tunnelMTU(), now)
		c.drain(p)
	}
}

// tunnelMTU is the MTU of this machine's own device, zero where the system
// fragments what is sent, so that nobody can tell what a path carries.
func (c *control) tunnelMTU() int {
	if !sock.DontFragment {
		return 0
	}
	if c.e.cfg.ManageDevice && c.e.cfg.MTU > 0 {
		return c.e.cfg.MTU
	}
	if c.linkMTU > 0 {
		return c.linkMTU
	}
	mtu, err := c.e.cfg.TUN.MTU()
	if err != nil {
		return tun.DefaultMTU
	}
	return mtu
}

// setMTU tells the data path what the primary path of p carries.
func (c *control) setMTU(p *peer) {
	mtu := int32(p.agent.MTU())
	if p.mtu.Swap(mtu) == mtu {
		return
	}
	c.setPath(p)
	c.e.log.Debug("MTU changed", "peer", p.member.Name(), "mtu", mtu)
}

// setPath tells WireGuard where packets to p go from now on, and those who want to
// know which path theirs took.
func (c *control) setPath(p *peer) {
	to := c.pathOf(p)
	p.tunnel.SetPath(to)
	p.notePath(to) // after: what is sent in between is said to be of either
}

// pathOf returns where packets to p go.
func (c *control) pathOf(p *peer) wg.Path {
	to := c.tunnelPath(p, p.agent.Primary())
	to.Whole = p.agent.MaxDatagram()
	if to.Whole > 0 && to.Direct.Addr().Is6() && p.relay != nil {
		// Routers do not fragment IPv6, and the kernel only for its own interface.
		to.Relay = p.relay
	}
	return to
}

// noteLarge tells p's agent of long packets since the last call.
func (p *peer) noteLarge(now time.Time) {
	if p.large.Swap(false) {
		p.agent.HandleLarge(now)
	}
}

// fit makes an outgoing packet that the filter has passed one that p's path
// carries, and reports whether it is. Where it is not, answer tells its sender,
// unless that was told enough. p.mu is held.
//
// What may be cut on its way, and what IPv6 allows every sender, goes even where
// it is too long: in fragments of the datagram that carries it (wg.Path.Whole).
func (p *peer) fit(b []byte, info *packet.Info, now time.Time) (fits bool, answer []byte) {
	mtu := int(p.mtu.Load())
	if mtu == 0 {
		return true, nil
	}
	packet.ClampMSS(b, info, mtu)
	if info.Length > largePacket && !p.large.Load() {
		p.large.Store(true)
	}
	if int(info.Length) <= mtu || !packet.Whole(b) {
		return true, nil
	}
	if info.Version == 6 {
		if mtu = max(mtu, path.BaseMTU); int(info.Length) <= mtu {
			return true, nil
		}
	}
	if !p.mayTell(now) {
		return false, nil
	}
	answer = packet.AppendTooBig(make([]byte, tun.Headroom, tun.Headroom+path.BaseMTU), b, uint16(mtu))
	return false, answer
}

// mayTell takes one of the answers that are left (the generic cell rate
// algorithm, as in the filter).
func (p *peer) mayTell(now time.Time) bool {
	const interval = time.Second / tooBigRate
	if p.told.Before(now) {
		p.told = now
	}
	if p.told.Sub(now) > (tooBigRate-1)*interval {
		return false
	}
	p.told = p.told.Add(interval)
	return true
}
