package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/sock"
)

// maxServers bounds --stun: as many as a device asks beside the coordinator's.
const maxServers = 7

// checkServers reports what is wrong with the STUN servers that devices are told of.
func (o *serveOptions) checkServers() error {
	if len(o.servers) > maxServers {
		return fmt.Errorf("--stun is given %d times, at most %d", len(o.servers), maxServers)
	}
	for _, s := range o.servers {
		if err := wire.CheckServer(s); err != nil {
			return fmt.Errorf("--stun: %w", err)
		}
	}
	return nil
}

// listenSTUN opens the STUN server's port, nil where there is to be none. A
// default port that is taken is only worth a warning: devices behind no NAT do
// without.
func listenSTUN(o serveOptions, log *slog.Logger) (sock.Conn, error) {
	if o.stun == off {
		return nil, nil
	}
	address := o.stun
	if address == "" {
		host, _, err := net.SplitHostPort(o.listen)
		if err != nil {
			return nil, fmt.Errorf("--listen: %w", err)
		}
		address = net.JoinHostPort(host, "3478")
	}
	udp, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, fmt.Errorf("--stun-listen: %w", err)
	}
	cfg := sock.Config{Port: uint16(udp.Port), Fragment: true} // the relay's, too
	if ip, ok := netip.AddrFromSlice(udp.IP); ok && !ip.Unmap().IsUnspecified() {
		cfg.Addresses = []netip.Addr{ip.Unmap()}
	}
	conn, err := sock.Listen(cfg)
	if err != nil && o.stun == "" && errors.Is(err, sock.ErrPortInUse) {
		log.Warn("no STUN server: its port is in use; name another with --stun-listen", "port", udp.Port)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--stun-listen %s: %w", address, err)
	}
	return conn, nil
}
