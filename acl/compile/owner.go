package compile

import (
	"net/netip"
	"slices"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
)

// MayTag reports whether the user may give the tag to a device: whether
// tagOwners names the user, a group or autogroup of the user's, or a tag that
// the user may give in turn. A tag that is not defined may be given by nobody.
func (p *Policy) MayTag(user ident.UserID, tag ident.Tag) bool {
	u := p.users[user]
	if u == nil {
		return false
	}
	labels := append(slices.Clone(u.labels), p.groupsOf(u)...)
	asked := map[ident.Tag]bool{}
	var may func(tag ident.Tag) bool
	may = func(tag ident.Tag) bool {
		if asked[tag] {
			return false
		}
		asked[tag] = true
		for _, o := range p.doc.TagOwners {
			if o.Tag != tag {
				continue
			}
			for _, s := range o.Owners {
				if s.Kind == policy.TagName && may(ident.Tag(s.Name)) {
					return true
				}
				if holds(s, labels) {
					return true
				}
			}
		}
		return false
	}
	return may(tag)
}

// MayTagAs reports whether a device that carries the tag by may take or give
// the tag: whether tagOwners names that tag as an owner.
func (p *Policy) MayTagAs(by, tag ident.Tag) bool {
	for _, o := range p.doc.TagOwners {
		if o.Tag == tag {
			for _, s := range o.Owners {
				if s.Kind == policy.TagName && s.Name == string(by) {
					return true
				}
			}
		}
	}
	return false
}

// holds reports whether the labels are those of someone that the selector
// names.
func holds(s policy.Selector, labels []string) bool {
	want, ok := devicePattern(s)
	if !ok || len(want.labels) == 0 {
		return false
	}
	for _, l := range want.labels {
		if !slices.Contains(labels, l) {
			return false
		}
	}
	return true
}

// AutoApproved reports whether autoApprovers lets the device route the prefix
// without anyone's approval: a default route by exitNode or by an entry for
// it, another by an entry for it or for a prefix around it. False where there
// is no such device.
func (p *Policy) AutoApproved(id ident.NodeID, route netip.Prefix) bool {
	at, ok := p.byID[id]
	if !ok {
		return false
	}
	named := func(list []policy.Selector) bool {
		return slices.ContainsFunc(list, func(s policy.Selector) bool { return holds(s, p.slots[at].names) })
	}
	if route.Bits() == 0 && named(p.doc.Approvers.ExitNode) {
		return true
	}
	for _, a := range p.doc.Approvers.Routes {
		// An approver of everything approves exit nodes, not every subnet.
		within := a.Prefix.Bits() <= route.Bits() && a.Prefix.Contains(route.Addr())
		if within && (a.Prefix.Bits() > 0 || route.Bits() == 0) && named(a.Approvers) {
			return true
		}
	}
	return false
}
