package sock

// linkInfo is an interface as the kernel sees it.
type linkInfo struct {
	name string
	// kind is the kernel's: "device" for hardware, "bridge", "veth" and so on.
	kind          string
	index, master int // master is the index of the bridge that it is a port of, 0 for none
	// wayOut says that a default route leaves by it.
	wayOut bool
}

// guestKinds are the kinds of ports by which containers and virtual machines
// are joined to a bridge of their host: the ends of cables to other namespaces,
// and what feeds a machine that is a program.
var guestKinds = map[string]bool{"veth": true, "tuntap": true, "tun": true, "dummy": true, "macvtap": true}

// bridges returns, for each bridge, whether it is one that a container or
// virtual-machine engine made for its guests: whatever it is called, nothing but
// guests is joined to it, or nobody yet, and no default route leaves by it. One
// with hardware among its ports is this host's own way into a network.
func bridges(links []linkInfo) map[string]bool {
	out := make(map[string]bool)
	for _, bridge := range links {
		if bridge.kind != "bridge" {
			continue
		}
		guests := !bridge.wayOut
		for _, port := range links {
			if port.master == bridge.index && !guestKinds[port.kind] {
				guests = false
			}
		}
		out[bridge.name] = guests
	}
	return out
}
