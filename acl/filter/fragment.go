package filter

import "github.com/warren-overlay/warren/acl/packet"

// fragmentRecord is what is remembered of a fragmented packet whose first
// fragment was admitted (P6).
type fragmentRecord struct {
	key     fragmentKey
	expires int64
	// end is where the first fragment's data ended: no later fragment may
	// begin before it.
	end      uint16
	poisoned bool
}

type fragmentKey struct {
	source, destination packet.Address
	id                  uint32
	protocol            uint8
}

func fragmentKeyOf(i *packet.Info) fragmentKey {
	return fragmentKey{i.Source, i.Destination, i.FragmentID, i.Protocol}
}

// fragment returns the record of the packet that i is a fragment of, or nil.
func (p *Peer) fragment(i *packet.Info, tick int64) *fragmentRecord {
	k := fragmentKeyOf(i)
	for at := range p.fragments {
		if r := &p.fragments[at]; r.key == k && tick < r.expires {
			return r
		}
	}
	return nil
}

// firstFragment says whether a first fragment may be looked at: not where there
// was one already, which makes the whole packet bad.
func (p *Peer) firstFragment(i *packet.Info, tick int64) Reason {
	r := p.fragment(i, tick)
	if r == nil {
		return Passed
	}
	r.poisoned = true
	return DropFragmentRepeated
}

// rememberFragment records that the first fragment i was admitted, until a tick
// at the latest. Where there is no room the rest will be dropped.
func (p *Peer) rememberFragment(i *packet.Info, tick, until int64) {
	if len(p.fragments) >= MaxFragments {
		p.expireFragments(tick)
	}
	if len(p.fragments) >= MaxFragments || p.shared.Quota != nil && !p.shared.Quota.TakeFragment() {
		return
	}
	p.fragments = append(p.fragments, fragmentRecord{
		key: fragmentKeyOf(i), end: uint16(i.Length - uint32(i.HeaderLength)), expires: min(tick+int64(fragmentLife), until),
	})
}

// laterFragment decides on a fragment with an offset above 0.
func (p *Peer) laterFragment(i *packet.Info, tick int64) Reason {
	r := p.fragment(i, tick)
	if r == nil {
		return DropFragment
	}
	if r.poisoned {
		return DropFragmentPoisoned
	}
	reason := Passed
	switch {
	case i.FragmentOffset < r.end:
		reason = DropFragmentOverlap
	case i.MoreFragments && i.PayloadLength%8 != 0, !fits(i):
		reason = DropFragmentLength
	}
	r.poisoned = reason != Passed
	return reason
}

// fits reports whether a later fragment ends within the longest packet that
// there is: 65,535 bytes with the header for IPv4, without it for IPv6.
func fits(i *packet.Info) bool {
	end := int(i.FragmentOffset) + int(i.PayloadLength)
	if i.Version == 4 {
		end += int(i.HeaderLength)
	}
	return end <= 65535
}

func (p *Peer) expireFragments(tick int64) {
	kept := p.fragments[:0]
	for _, r := range p.fragments {
		if tick < r.expires {
			kept = append(kept, r)
		}
	}
	p.returnFragments(len(p.fragments) - len(kept))
	p.fragments = kept
	if len(kept) == 0 {
		p.fragments = nil
	}
}

func (p *Peer) forgetFragments() {
	p.returnFragments(len(p.fragments))
	p.fragments = nil
}

func (p *Peer) returnFragments(n int) {
	for range n {
		if p.shared.Quota != nil {
			p.shared.Quota.ReturnFragment()
		}
	}
}
