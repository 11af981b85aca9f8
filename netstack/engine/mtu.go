package engine

import (
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
	// relayMTU is the longest packet that fits, sealed, into one of the relay's.
	relayMTU = (relay.MaxPacket - sealOverhead) &^ (sealUnit - 1)
	// sealOverhead is what WireGuard adds to a packet, sealUnit what it pads it
	// to.
	sealOverhead, sealUnit = 32, 16
)

// tunnelMTU is the MTU of this machine's own device, zero where the system
// fragments what is sent, so that nobody can tell what a path carries.
func (c *control) tunnelMTU() int {
	if !sock.DontFragment {
		return 0
	}
	if c.e.cfg.ManageDevice && c.e.cfg.MTU > 0 {
		return c.e.cfg.MTU
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
	p.tunnel.SetPath(c.pathOf(p))
	c.e.log.Debug("MTU changed", "peer", p.member.Name(), "mtu", mtu)
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
