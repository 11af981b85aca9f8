package compile

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/policy"
)

// Endpoints returns what a name stands for, for explanations: a device by its
// name, and else as in a test, a user, group, tag, autogroup, host or address,
// each kind of device that rules can tell apart once. A resource stands for its
// first target, unless a host has the name. The address is the one
// that the name means, zero for the devices' own. The second result says why
// there is nothing.
func (p *Policy) Endpoints(name string) (list []Endpoint, address netip.Addr, problem string) {
	for _, s := range p.sorted() {
		if strings.EqualFold(s.node.Name, name) {
			return []Endpoint{endpointOf(s.node.Name, s)}, netip.Addr{}, ""
		}
	}
	for i := range p.doc.Resources {
		if r := &p.doc.Resources[i]; name == "resource:"+r.Name || name == r.Name && !p.defined(name) {
			return p.resourceEndpoints(r)
		}
	}
	found, problem := p.named(name)
	if problem != "" {
		return nil, netip.Addr{}, problem
	}
	if prefix, message := p.host(name); message == "" {
		address = prefix.Addr()
	}
	for _, s := range p.distinguishable(found) {
		text := name
		if s.node.ID != 0 {
			text = s.node.Name
		}
		list = append(list, endpointOf(text, s))
	}
	return list, address, ""
}

// defined reports whether a host has the name.
func (p *Policy) defined(name string) bool {
	return slices.ContainsFunc(p.doc.Hosts, func(h policy.Host) bool { return h.Name == name })
}

func (p *Policy) resourceEndpoints(r *policy.Resource) ([]Endpoint, netip.Addr, string) {
	if len(r.Target) == 0 {
		return nil, netip.Addr{}, "the resource has no target"
	}
	return p.Endpoints(r.Target[0].Name)
}

// Node returns what is known of a device, and whether there is one.
func (p *Policy) Node(e Endpoint) (Node, bool) {
	at, ok := p.byID[e.Node]
	if !ok {
		return Node{}, false
	}
	return p.slots[at].node.clone(), true
}
