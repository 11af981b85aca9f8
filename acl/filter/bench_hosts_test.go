package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/packet"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// BenchmarkNewFlowHosts is BenchmarkNewFlow with rules that each name another
// host behind this device. Every packet goes to another one, which its rule
// admits.
func BenchmarkNewFlowHosts(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			set := &ruleset.RuleSet{}
			for n := range rules {
				r := ruleFor(fmt.Sprint("r", n), packet.TCP, 443, 443)
				r.Own = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 32)}
				set.In = append(set.In, r)
			}
			self := &ident.Identity{Addresses: selfIdentity.Addresses, Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
			device := NewDevice(Config{Seed: [2]uint64{0x9e3779b97f4a7c15, 0xd1b54a32d192ed03}})
			p := NewPeer(device, self, peerIdentity, set.ForPeer(self, peerIdentity), benchStart)
			var i packet.Info
			syn := segment(4, 1, 443, byte(packet.SYN))
			copy(syn[16:], []byte{10, 1})
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				binary.BigEndian.PutUint16(syn[20:], uint16(n))
				binary.BigEndian.PutUint16(syn[18:], uint16(n*7919%rules))
				if d := p.Receive(syn, &i, benchStart); d.Reason != Passed {
					b.Fatal(d)
				}
			}
		})
	}
}
