package sock

import (
	"maps"
	"net"
	"testing"
)

// TestBridges: what is joined to a bridge says what it is for, not its name.
func TestBridges(t *testing.T) {
	links := []linkInfo{
		{name: "eth0", kind: "device", index: 1, master: 10},
		{name: "vlan7", kind: "vlan", index: 2, master: 14},
		{name: "br-lan", kind: "bridge", index: 10},
		{name: "veth1", kind: "veth", index: 3, master: 10},
		{name: "docker0", kind: "bridge", index: 11},
		{name: "lan", kind: "bridge", index: 12},
		{name: "vnet0", kind: "tuntap", index: 4, master: 12},
		{name: "cable", kind: "veth", index: 5, master: 12},
		{name: "cni0", kind: "bridge", index: 13, wayOut: true},
		{name: "veth2", kind: "veth", index: 6, master: 13},
		{name: "virbr0", kind: "bridge", index: 14},
		{name: "eth1", kind: "veth", index: 7},
	}
	want := map[string]bool{"br-lan": false, "docker0": true, "lan": true, "cni0": false, "virbr0": false}
	got := bridges(links)
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for name, wanted := range map[string]bool{
		"br-lan": true, "docker0": false, "lan": false, "cni0": true, "virbr0": true,
		"eth1": true, "veth9": false, // no bridges: by their names
	} {
		if (LocalConfig{}).wantInterface(name, net.FlagUp, got) != wanted {
			t.Errorf("%s: want %v", name, wanted)
		}
		if !(LocalConfig{Containers: true}).wantInterface(name, net.FlagUp, got) {
			t.Errorf("%s is left out though containers are wanted", name)
		}
		if (LocalConfig{Containers: true}).wantInterface(name, 0, got) {
			t.Errorf("%s is taken though it is down", name)
		}
	}
}
