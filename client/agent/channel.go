package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
)

// channels opens real channels.
type channels struct {
	http *http.Client
	rand io.Reader
}

// NewCoordinator returns the Coordinator that speaks the control protocol over
// client, which decides about proxies and TLS and must have no Timeout, with
// ephemeral keys from rand.
func NewCoordinator(client *http.Client, rand io.Reader) Coordinator {
	return &channels{http: client, rand: rand}
}

func (c *channels) FetchGenesis(ctx context.Context, url string, network ident.Fingerprint) (*authority.Genesis, error) {
	genesis, err := channel.FetchGenesis(ctx, c.http, url, network)
	return genesis, plainly(err)
}

func (c *channels) Dial(ctx context.Context, d Dial) (Channel, error) {
	conn, err := channel.Dial(ctx, channel.DialConfig{
		URL: d.URL, HTTPClient: c.http, Machine: d.Machine, Coordinator: d.Coordinator, Network: d.Network, Rand: c.rand,
	})
	if errors.Is(err, channel.ErrHandshake) {
		return nil, wrongCoordinator(err)
	}
	if err != nil {
		return nil, plainly(err)
	}
	return conn, nil
}

// plain is an error with a text for people, who need to know what the network
// said and not which layers it passed through.
type plain struct {
	text string
	err  error
}

func (p *plain) Error() string { return p.text }
func (p *plain) Unwrap() error { return p.err }

// plainly gives err the text of the innermost part that says what happened.
func plainly(err error) error {
	var (
		operation *net.OpError
		lookup    *net.DNSError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &lookup):
		return &plain{"looking up " + lookup.Name + ": " + lookup.Err, err}
	case errors.As(err, &operation) && operation.Op == "dial" && operation.Addr != nil:
		cause := operation.Err
		var call *os.SyscallError
		if errors.As(cause, &call) {
			cause = call.Err
		}
		return &plain{"connecting to " + operation.Addr.String() + ": " + cause.Error(), err}
	case errors.Is(err, context.DeadlineExceeded):
		return &plain{"no answer in time", err}
	}
	return err
}
