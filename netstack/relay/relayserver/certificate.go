package relayserver

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificateCheck is how often the certificate's file is looked at: whoever
// renews it need not restart the relay.
const certificateCheck = time.Minute

// Certificate returns a TLS configuration with the certificate and key of two PEM
// files. When the first of them changes it is read anew; one that cannot be read
// is told, and the one before goes on. The error is about the files as they are
// now.
func Certificate(certFile, keyFile string, log *slog.Logger) (*tls.Config, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	if err := c.load(time.Now()); err != nil {
		return nil, err
	}
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}, nil
}

type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex // protects all below
	current *tls.Certificate
	changed time.Time // of the file that current is of
	checked time.Time
}

// load reads the files where they changed; c.mu is held, or nobody else has c.
func (c *certificate) load(now time.Time) error {
	c.checked = now
	info, err := os.Stat(c.certFile)
	if err != nil {
		return fmt.Errorf("relayserver: reading the certificate: %w", err)
	}
	if c.current != nil && info.ModTime().Equal(c.changed) {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("relayserver: reading the certificate: %w", err)
	}
	c.current, c.changed = &pair, info.ModTime()
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checked) >= certificateCheck {
		if err := c.load(now); err != nil {
			c.log.Warn("the renewed certificate cannot be used; going on with the old one", "error", err)
		}
	}
	return c.current, nil
}
