package main

import (
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/client/localapi"
)

// reachFlags are the flags about how peers reach this device, which up and set
// share.
type reachFlags struct {
	portMapping bool
	endpoints   []string
}

func (r *reachFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&r.portMapping, "port-mapping", true, "ask the gateway to forward the UDP port to this device (PCP, NAT-PMP, UPnP), and to let it in over IPv6")
	f.StringArrayVar(&r.endpoints, "endpoint", nil, "ADDR:PORT outside that leads to this device's UDP port, such as that of a forwarded port; may be repeated; \"\" for none")
}

// changed returns the settings that the command line mentions.
func (r *reachFlags) changed(cmd *cobra.Command) (localapi.Reach, error) {
	var out localapi.Reach
	if cmd.Flags().Changed("port-mapping") {
		out.PortMapping = &r.portMapping
	}
	if !cmd.Flags().Changed("endpoint") {
		return out, nil
	}
	endpoints := []netip.AddrPort{}
	for _, text := range r.endpoints {
		if text == "" {
			continue
		}
		e, err := netip.ParseAddrPort(text)
		if err != nil {
			return out, usagef("--endpoint: %q is not an address with a port such as 203.0.113.7:41641", text)
		}
		endpoints = append(endpoints, e)
	}
	out.Endpoints = &endpoints
	return out, nil
}
