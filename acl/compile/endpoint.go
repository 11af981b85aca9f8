package compile

import (
	"net/netip"
	"strings"
)

// Endpoints returns what a name stands for, for explanations: a device by its
// name, and else as in a test, a user, group, tag, autogroup, host or address,
// each kind of device that rules can tell apart once. The address is the one
// that the name means, zero for the devices' own. The second result says why
// there is nothing.
func (p *Policy) Endpoints(name string) (list []Endpoint, address netip.Addr, problem string) {
	for _, s := range p.sorted() {
		if strings.EqualFold(s.node.Name, name) {
			return []Endpoint{endpointOf(s.node.Name, s)}, netip.Addr{}, ""
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

// Node returns what is known of a device, and whether there is one.
func (p *Policy) Node(e Endpoint) (Node, bool) {
	at, ok := p.byID[e.Node]
	if !ok {
		return Node{}, false
	}
	return p.slots[at].node.clone(), true
}
