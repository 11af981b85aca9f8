package enginetest

import (
	"crypto/rand"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/warren-overlay/warren/netstack/disco"
	"github.com/warren-overlay/warren/netstack/simnet"
	"github.com/warren-overlay/warren/netstack/sock"
	"github.com/warren-overlay/warren/netstack/wg"
)

// Rogue is a member that does not play by the rules: WireGuard without a filter
// in either direction. It answers probes, so that packets have a way to it.
type Rogue struct {
	*Member
	// TUN is where the test sends from, and what the victim sends arrives.
	TUN *simnet.TUN

	device *wg.Device
	sealer *disco.Sealer
	opener *disco.Opener
}

// RogueConfig says where a rogue is.
type RogueConfig struct {
	// Address is the rogue's own, Port its UDP port; zero is any.
	Address netip.Addr
	Port    uint16
	Listen  func(port uint16) (sock.Conn, error)
	// Retain is for tests in a bubble; see package wg.
	Retain func(object any)
}

// Rogue makes m a rogue that knows the victim alone. It has no way to the victim
// until SendTo. The caller closes it.
func (m *Member) Rogue(t testing.TB, victim *Member, cfg RogueConfig) *Rogue {
	t.Helper()
	r := &Rogue{Member: m, TUN: simnet.NewTUN(0)}
	var err error
	if r.sealer, r.opener, err = disco.NewPair(m.Private, victim.Key); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	r.device, err = wg.New(wg.Config{
		TUN: r.TUN, Port: cfg.Port, Logger: slog.New(slog.DiscardHandler), Retain: cfg.Retain, Listen: cfg.Listen,
		Control: func(b []byte, from netip.AddrPort) {
			<-ready
			message, err := r.opener.Open(b)
			if ping, ok := message.(disco.Ping); err == nil && ok {
				pong, err := r.sealer.Seal(nil, disco.Pong{TxID: ping.TxID, Observed: from}, rand.Reader)
				if err == nil {
					err = r.device.SendControl(pong, from)
				}
				if err != nil {
					t.Error(err)
				}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	if err := r.device.SetPrivateKey(m.Private); err != nil {
		t.Fatal(err)
	}
	err = r.device.SetPeers([]wg.PeerConfig{{Key: victim.Key, AllowedIPs: []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	m.Endpoints = []netip.AddrPort{netip.AddrPortFrom(cfg.Address, r.device.Port())}
	return r
}

// SendTo makes the rogue send to the victim at the given endpoint.
func (r *Rogue) SendTo(victim *Member, endpoint netip.AddrPort) {
	r.device.Peer(victim.Key).SetPath(wg.Path{Direct: endpoint})
}

// Close ends the rogue.
func (r *Rogue) Close() { r.device.Close() }
