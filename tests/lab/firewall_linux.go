package lab

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// BlockUDP drops every UDP datagram that the host would send to the other, in
// both address families, until the test ends or UnblockUDP.
func (h *Host) BlockUDP(to *Host) {
	h.t.Helper()
	h.Do(func() error {
		c, err := nftables.New(nftables.WithNetNSFd(int(h.space)))
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "lab", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{
			Name: "out", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		for _, family := range []struct {
			number         byte
			offset, length uint32
			address        []byte
		}{
			{unix.NFPROTO_IPV4, 16, 4, to.V4.AsSlice()},
			{unix.NFPROTO_IPV6, 24, 16, to.V6.AsSlice()},
		} {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family.number}},
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: family.offset, Len: family.length},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: family.address},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		return c.Flush()
	})
}

// UnblockUDP ends every BlockUDP of the host.
func (h *Host) UnblockUDP() {
	h.t.Helper()
	h.Do(func() error {
		c, err := nftables.New(nftables.WithNetNSFd(int(h.space)))
		if err != nil {
			return err
		}
		c.DelTable(&nftables.Table{Name: "lab", Family: nftables.TableFamilyINet})
		return c.Flush()
	})
}
