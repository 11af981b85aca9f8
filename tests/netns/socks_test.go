//go:build linux

package netns

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
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

// dialCONNECT opens a connection through an HTTP proxy of the host's own; the
// error has what the proxy said where it refused.
func dialCONNECT(ctx context.Context, h *lab.Host, proxyAddress, address string) (net.Conn, error) {
	c, err := h.Dial(ctx, "tcp", proxyAddress)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		c.SetDeadline(deadline)
	}
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", address, address)
	response, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err == nil && response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(response.Body)
		err = fmt.Errorf("%s: %s", response.Status, said)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// echoCONNECT is echoTCP through an HTTP proxy of the host's own.
func echoCONNECT(ctx context.Context, h *lab.Host, proxyAddress, address string) error {
	c, err := dialCONNECT(ctx, h, proxyAddress, address)
	if err != nil {
		return err
	}
	defer c.Close()
	return lab.Exchange(ctx, c)
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
