//go:build !linux

package portmap

import (
	"errors"
	"fmt"
	"net/netip"
)

// defaultGateway is for Linux.
func defaultGateway() (netip.Addr, error) {
	return netip.Addr{}, fmt.Errorf("%w: %w on this system", ErrNoGateway, errors.ErrUnsupported)
}

// defaultGateway6 is for Linux.
func defaultGateway6() (netip.Addr, error) { return defaultGateway() }
