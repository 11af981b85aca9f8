package router

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/warren-overlay/warren/netstack/sock"
)

// guard writes the chains of our table. Base chains of other tables can drop
// what ours let pass, but none can let pass what ours drop.
type guard struct {
	conn     *nftables.Conn
	table    *nftables.Table
	name     string // of the interface
	settings *Settings
	// foreign are networks of other interfaces inside the overlay's ranges.
	foreign []netip.Prefix
	// routes says that the kernel's routes may be asked (nft_fib).
	routes bool
}

// Priorities of our chains. Addresses are checked before any translation
// (dstnat is -100), and once more after it.
const (
	priorityBefore = -250
	priorityMangle = -150
	// prioritySources comes after our marks are back, and before translations.
	prioritySources = -145
)

func (g *guard) build() {
	g.prerouting()
	if g.routes {
		g.sources()
	}
	g.input()
	g.forward()
	if len(g.settings.Forward) > 0 {
		g.masquerade()
	}
	if g.settings.Exit || len(g.settings.Accept) > 0 {
		g.marks()
	}
}

func (g *guard) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	return g.conn.AddChain(&nftables.Chain{Name: name, Table: g.table, Type: kind, Hooknum: hook, Priority: &priority})
}

// rule adds a rule of the parts in order.
func (g *guard) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	g.conn.AddRule(&nftables.Rule{Table: g.table, Chain: c, Exprs: all})
}

// prerouting checks what comes in as it came. From the overlay: it goes to the
// node itself or to what it serves. From elsewhere: it does not pretend to come
// from the overlay, and does not go there; a node that serves no routes only
// keeps its own addresses to itself, because the ranges may mean something else
// on its other networks.
func (g *guard) prerouting() {
	c := g.chain("before", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityBefore)
	for _, a := range g.settings.Own {
		g.rule(c, g.from(true), destination(single(a)), accept())
	}
	for _, p := range g.settings.Forward {
		g.rule(c, g.from(true), destination(p), accept())
	}
	g.rule(c, g.from(true), drop())
	g.rule(c, input("lo", true), accept())
	for _, a := range g.settings.Own {
		g.rule(c, destination(single(a)), drop())
		g.rule(c, source(single(a)), drop())
	}
	if len(g.settings.Forward) == 0 {
		return
	}
	for _, p := range g.foreign {
		g.rule(c, source(p), accept())
		g.rule(c, destination(p), accept())
	}
	for _, p := range g.settings.Overlay {
		g.rule(c, source(p), drop())
		g.rule(c, destination(p), drop())
	}
}

// sources drops what comes in elsewhere from an address that the kernel would
// answer by way of the overlay (S05c): neighbours do not speak in the name of a
// peer, whatever the machine's reverse-path filter is. The ranges alone do not
// tell, because they may mean something else on a neighbour's network; routes
// do, unless they lead everything into the overlay.
func (g *guard) sources() {
	c := g.chain("sources", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, prioritySources)
	if g.settings.Exit && !g.settings.KeepLAN {
		for _, p := range g.foreign {
			g.rule(c, source(p), accept())
		}
	}
	for _, p := range g.settings.Overlay {
		g.rule(c, g.from(false), source(p), g.answered(), drop())
	}
}

// input keeps translations from leading packets of the overlay to other
// addresses of this machine.
func (g *guard) input() {
	c := g.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, priorityMangle)
	for _, a := range g.settings.Own {
		g.rule(c, g.from(true), destination(single(a)), accept())
	}
	g.rule(c, g.from(true), drop())
}

// forward decides on what passes through the machine, after translations. Into
// the overlay goes nothing but answers to what came from it, whatever source
// address another table gives a packet later.
func (g *guard) forward() {
	c := g.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, priorityMangle)
	g.rule(c, g.from(true), g.to(true), drop())
	g.rule(c, g.to(true), tracked(), answering(), accept())
	g.rule(c, g.to(true), drop())
	// A port of the node itself that its administrator leads to a container.
	for _, a := range g.settings.Own {
		g.rule(c, g.from(true), originallyTo(a), accept())
	}
	for _, p := range g.settings.Overlay {
		g.rule(c, g.from(true), destination(p), drop())
	}
	for _, a := range metadata {
		g.rule(c, g.from(true), destination(single(a)), drop())
	}
	for _, p := range g.settings.Forward {
		g.rule(c, g.from(true), destination(p), accept())
	}
	g.rule(c, g.from(true), drop())
}

// masquerade gives what is forwarded this machine's address, to which hosts
// that know nothing of the overlay can answer.
func (g *guard) masquerade() {
	c := g.chain("masquerade", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	for _, p := range g.settings.Overlay {
		g.rule(c, g.to(false), source(p), []expr.Any{&expr.Counter{}, &expr.Masq{}})
	}
}

// marks gives answers to marked packets their mark, so that they are taken to
// have come the way that marked packets go.
func (g *guard) marks() {
	mark := binaryutil.NativeEndian.PutUint32(Mark)
	out := g.chain("marks-out", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, priorityMangle)
	g.rule(out, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	})
	in := g.chain("marks-in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityMangle)
	g.rule(in, []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	})
}

// from matches packets that came in on the overlay's interface, or on others.
func (g *guard) from(overlay bool) []expr.Any { return input(g.name, overlay) }

// to matches packets that leave by the overlay's interface, or by others.
func (g *guard) to(overlay bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, compareName(g.name, overlay)}
}

// answered matches packets whose source is reached by the overlay's interface,
// from a socket with the packet's mark.
func (g *guard) answered() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, ResultOIFNAME: true, FlagSADDR: true, FlagMARK: true}, compareName(g.name, true)}
}

func input(name string, equal bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, compareName(name, equal)}
}

func compareName(name string, equal bool) *expr.Cmp {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	op := expr.CmpOpNeq
	if equal {
		op = expr.CmpOpEq
	}
	return &expr.Cmp{Op: op, Register: 1, Data: padded}
}

func source(p netip.Prefix) []expr.Any      { return address(p, 12, 8) }
func destination(p netip.Prefix) []expr.Any { return address(p, 16, 24) }

// address matches packets of the prefix's family with an address in it, which
// stands at the offset of the network header.
func address(p netip.Prefix, offset4, offset6 uint32) []expr.Any {
	offset := offset6
	if p.Addr().Is4() {
		offset = offset4
	}
	match := family(p.Addr())
	if p.Bits() == 0 {
		return match
	}
	length := uint32(p.Addr().BitLen() / 8)
	match = append(match, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length})
	if !p.IsSingleIP() {
		match = append(match, &expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: length,
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, length),
		})
	}
	return append(match, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func family(a netip.Addr) []expr.Any {
	number := byte(unix.NFPROTO_IPV6)
	if a.Is4() {
		number = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

// tracked matches packets of a connection that is known, and errors about one.
func tracked() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// answering matches packets that go against the direction in which their
// connection was opened (IP_CT_DIR_REPLY).
func answering() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
	}
}

// originallyTo matches packets of connections that were opened to the address,
// before it was translated.
func originallyTo(a netip.Addr) []expr.Any {
	return append(family(a),
		&expr.Ct{Key: expr.CtKeyDST, Register: 1, Direction: 0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	)
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// foreign returns the networks of other interfaces that lie in the overlay's
// ranges, as behind the translation of a provider (RFC 6598).
func (r *kernelRouter) foreign(overlay []netip.Prefix) ([]netip.Prefix, error) {
	all, err := sock.InterfacePrefixes(func(ifi net.Interface) bool { return ifi.Name != r.name })
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	var out []netip.Prefix
	for _, a := range all {
		for _, p := range overlay {
			if p.Contains(a.Addr()) && a.Bits() > p.Bits() {
				out = append(out, a.Masked())
			}
		}
	}
	return out, nil
}
