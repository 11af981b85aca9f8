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

// Certificate is the certificate and key of two PEM files. When the first of them
// changes they are read anew within a minute, or at once by Reload; what cannot be
// read is told, and the certificate of before goes on. Methods may be called
// concurrently.
type Certificate struct {
	log *slog.Logger

	mu                sync.Mutex // protects all below
	certFile, keyFile string
	current           *tls.Certificate
	changed           time.Time // of the file that current is of
	checked           time.Time
}

// NewCertificate reads the files. The error says what is wrong with them.
func NewCertificate(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{log: log}
	if err := c.Reload(certFile, keyFile); err != nil {
		return nil, err
	}
	return c, nil
}

// TLS returns a configuration with the certificate of the moment.
func (c *Certificate) TLS() *tls.Config {
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
}

// NotAfter returns when the certificate of the moment ends.
func (c *Certificate) NotAfter() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.Leaf.NotAfter
}

// Reload reads the files, whether they changed or not, and looks at these from now
// on. The error says what is wrong with them; nothing has changed then.
func (c *Certificate) Reload(certFile, keyFile string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(certFile)
	if err != nil {
		return fmt.Errorf("relayserver: reading the certificate: %w", err)
	}
	if err := c.load(certFile, keyFile, info.ModTime()); err != nil {
		return err
	}
	c.checked = time.Now()
	return nil
}

// load reads the files; c.mu is held.
func (c *Certificate) load(certFile, keyFile string, changed time.Time) error {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return fmt.Errorf("relayserver: reading the certificate: %w", err)
	}
	c.certFile, c.keyFile, c.current, c.changed = certFile, keyFile, &pair, changed
	return nil
}

// follow reads the files where they changed; c.mu is held.
func (c *Certificate) follow() error {
	info, err := os.Stat(c.certFile)
	if err != nil {
		return fmt.Errorf("relayserver: reading the certificate: %w", err)
	}
	if info.ModTime().Equal(c.changed) {
		return nil
	}
	return c.load(c.certFile, c.keyFile, info.ModTime())
}

func (c *Certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checked) >= certificateCheck {
		c.checked = now
		if err := c.follow(); err != nil {
			c.log.Warn("the renewed certificate cannot be used; going on with the old one", "error", err)
		}
	}
	return c.current, nil
}
