//go:build linux

package netns

import (
	"context"
	"net"
	"strconv"

	"golang.org/x/net/proxy"

	"github.com/warren-overlay/warren/tests/lab"
)

func joined(address string, port int) string { return net.JoinHostPort(address, strconv.Itoa(port)) }

// hostDialer dials on a host of the lab.
type hostDialer struct {
	ctx  context.Context
	host *lab.Host
}

func (d hostDialer) Dial(network, address string) (net.Conn, error) {
	return d.host.Dial(d.ctx, network, address)
}

// echoSOCKS is echoTCP through a SOCKS5 proxy of the host's own.
func echoSOCKS(ctx context.Context, h *lab.Host, proxyAddress, address string) error {
	dialer, err := proxy.SOCKS5("tcp", proxyAddress, nil, hostDialer{ctx, h})
	if err != nil {
		return err
	}
	c, err := dialer.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	return lab.Exchange(ctx, c)
}
