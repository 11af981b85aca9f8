package policy

import (
	"net/netip"
	"slices"
)

// addressRange is the addresses from first to last of one family.
type addressRange struct{ first, last netip.Addr }

func prefixRange(p netip.Prefix) addressRange {
	return addressRange{p.Masked().Addr(), lastAddress(p)}
}

// lastAddress returns the highest address of a prefix.
func lastAddress(p netip.Prefix) netip.Addr {
	a := p.Addr().AsSlice()
	for i := range a {
		switch bits := p.Bits() - 8*i; {
		case bits <= 0:
			a[i] = 0xff
		case bits < 8:
			a[i] |= 0xff >> bits
		}
	}
	last, _ := netip.AddrFromSlice(a)
	return last
}

// rangePrefixes returns the fewest prefixes that cover first to last, which
// are of one family and in order.
func rangePrefixes(first, last netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for {
		bits := first.BitLen()
		for bits > 0 {
			wider := netip.PrefixFrom(first, bits-1)
			if wider.Masked().Addr() != first || last.Less(lastAddress(wider)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(first, bits)
		out = append(out, p)
		end := lastAddress(p)
		if !end.Less(last) {
			return out
		}
		first = end.Next()
	}
}

// addressSet is a set of addresses as sorted ranges that neither overlap nor
// touch.
type addressSet []addressRange

// union returns the addresses of s and of more, in any order.
func (s addressSet) union(more []addressRange) addressSet {
	if len(more) == 0 {
		return s
	}
	s = append(slices.Clone(s), more...)
	slices.SortFunc(s, func(a, b addressRange) int { return a.first.Compare(b.first) })
	out := s[:1]
	for _, r := range s[1:] {
		last := &out[len(out)-1]
		sameFamily := last.last.BitLen() == r.first.BitLen()
		next := last.last.Next()
		if !sameFamily || next.IsValid() && next.Less(r.first) {
			out = append(out, r)
			continue
		}
		if last.last.Less(r.last) {
			last.last = r.last
		}
	}
	return out
}

func (s addressSet) remove(r addressRange) addressSet {
	var out addressSet
	for _, have := range s {
		if have.first.BitLen() != r.first.BitLen() || have.last.Less(r.first) || r.last.Less(have.first) {
			out = append(out, have)
			continue
		}
		if have.first.Less(r.first) {
			out = append(out, addressRange{have.first, r.first.Prev()})
		}
		if r.last.Less(have.last) {
			out = append(out, addressRange{r.last.Next(), have.last})
		}
	}
	return out
}

func (s addressSet) prefixes() []netip.Prefix {
	out := []netip.Prefix{}
	for _, r := range s {
		out = append(out, rangePrefixes(r.first, r.last)...)
	}
	return out
}

func isEverything(p netip.Prefix) bool { return p.Bits() == 0 }
