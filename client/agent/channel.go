package agent

import (
	"context"
	"errors"
	"io"
	"net/http"

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
	return channel.FetchGenesis(ctx, c.http, url, network)
}

func (c *channels) Dial(ctx context.Context, d Dial) (Channel, error) {
	conn, err := channel.Dial(ctx, channel.DialConfig{
		URL: d.URL, HTTPClient: c.http, Machine: d.Machine, Coordinator: d.Coordinator, Network: d.Network, Rand: c.rand,
	})
	if errors.Is(err, channel.ErrHandshake) {
		return nil, wrongCoordinator(err)
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}
