package server

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// Config is what a coordinator needs to be told.
type Config struct {
	// Dir is the data directory.
	Dir string
	// Relays and STUN are told to every device, as package wire has them.
	Relays []wire.Relay
	STUN   []string
	// Relay is the name, in Relays, of the relay that asks Members; empty for none.
	Relay string
	// CertificateValidity is the life of a device's certificate; zero is a
	// week.
	CertificateValidity time.Duration
	// Version is what the program calls itself.
	Version string
	// Rand is the source of keys and of handshakes.
	Rand   io.Reader
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// OnRevoke, where it is not nil, is called from the loop with each node
	// key that is no longer a member's. It must not block.
	OnRevoke func(ident.NodeKey)
}

// ErrConfig is wrapped by the errors of Validate.
var ErrConfig = errors.New("server: invalid configuration")

// Validate reports what is wrong with the configuration. The error wraps
// ErrConfig.
func (c *Config) Validate() error {
	switch {
	case c.Dir == "":
		return fmt.Errorf("%w: no data directory", ErrConfig)
	case c.Rand == nil || c.Logger == nil:
		return fmt.Errorf("%w: no random source or logger", ErrConfig)
	case c.CertificateValidity < 0 || c.CertificateValidity > 0 && c.CertificateValidity < minValidity || c.CertificateValidity > maxValidity:
		return fmt.Errorf("%w: a certificate validity of %v; want %v to %v", ErrConfig, c.CertificateValidity, minValidity, maxValidity)
	}
	if err := ValidateRelays(c.Relays); err != nil {
		return err
	}
	if c.Relay != "" && !slices.ContainsFunc(c.Relays, func(r wire.Relay) bool { return r.Name == c.Relay }) {
		return fmt.Errorf("%w: devices are not told of the relay %q", ErrConfig, c.Relay)
	}
	return nil
}

// ValidateRelays reports what is wrong with a list of relays: too many, two of
// one name, or one that makes no sense. The error wraps ErrConfig.
func ValidateRelays(relays []wire.Relay) error {
	if len(relays) > wire.MaxRelays {
		return fmt.Errorf("%w: %d relays, at most %d are allowed", ErrConfig, len(relays), wire.MaxRelays)
	}
	names := make(map[string]bool)
	for _, r := range relays {
		if err := r.Validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrConfig, err)
		}
		if names[r.Name] {
			return fmt.Errorf("%w: two relays have the name %s", ErrConfig, r.Name)
		}
		names[r.Name] = true
	}
	return nil
}

const (
	// minValidity leaves several of the loop's ticks within half a life.
	minValidity = 10 * time.Minute
	// maxValidity is what acl/authority lets a certificate hold, less the day
	// that it is dated back.
	maxValidity = 398 * 24 * time.Hour
)
