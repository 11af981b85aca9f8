package main

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/warren-overlay/warren/netstack/relay/relayserver"
)

// reloadable are the settings that take effect without a restart: all that no
// listener, connection or stored record depends on.
var reloadable = []string{"tls-cert", "tls-key", "max-clients", "rate", "log-level"}

// reloader reads the certificate and the configuration file again. It belongs to one
// goroutine.
type reloader struct {
	// given are the flags of the command line, which go before the file.
	given map[string]string
	// flags are the settings as they were at the start, options those in force.
	flags   *pflag.FlagSet
	options options
	// certificate is nil where there is none.
	certificate *relayserver.Certificate
	level       *slog.LevelVar
	log         *slog.Logger
}

// givenFlags returns the flags that the command line sets.
func givenFlags(c *cobra.Command) map[string]string {
	given := make(map[string]string)
	c.Flags().Visit(func(f *pflag.Flag) { given[f.Name] = f.Value.String() })
	return given
}

// follow reloads on each hangup until the context ends.
func (r *reloader) follow(ctx context.Context, hangup <-chan os.Signal, s *relayserver.Server) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		if err := r.reload(s); err != nil {
			r.log.Error("SIGHUP: all stays as it was", "error", err)
		}
	}
}

// read returns the settings as the command line and the file have them now.
func (r *reloader) read() (options, *pflag.FlagSet, error) {
	var o options
	c := &cobra.Command{Use: "serve"}
	o.flags(c.Flags())
	for name, value := range r.given {
		if err := c.Flags().Set(name, value); err != nil {
			return o, nil, err
		}
	}
	if err := applyFile(c, o.config, c.Flags().Changed("config")); err != nil {
		return o, nil, err
	}
	_, err := o.check()
	return o, c.Flags(), err
}

// reload has what is reloadable take effect. The error says what is wrong, and
// nothing has changed then.
func (r *reloader) reload(s *relayserver.Server) error {
	next, flags, err := r.read()
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	if err := next.setLevel(level); err != nil {
		return err
	}
	switching := (next.certificate == "") != (r.certificate == nil)
	if r.certificate != nil && !switching {
		if err := r.certificate.Reload(next.certificate, next.key); err != nil {
			return err
		}
	}
	if err := s.SetLimits(next.maxClients, next.rate); err != nil {
		return err // check has refused such limits
	}
	r.level.Set(level.Level())
	r.options = next
	if waiting := r.waiting(flags, switching); len(waiting) > 0 {
		r.log.Warn("SIGHUP: these settings take effect at the next start", "settings", strings.Join(waiting, ","))
	}
	ends := "none"
	if r.certificate != nil {
		ends = r.certificate.NotAfter().Format(time.RFC3339)
	}
	r.log.Info("SIGHUP: read again", "certificate", ends, "max_clients", next.maxClients, "rate", next.rate, "log_level", next.logLevel)
	return nil
}

// waiting returns the names of settings that differ from those of the start and take
// effect at the next one only; switching says that TLS is one.
func (r *reloader) waiting(flags *pflag.FlagSet, switching bool) (names []string) {
	flags.VisitAll(func(f *pflag.Flag) {
		if before := r.flags.Lookup(f.Name); before == nil || before.Value.String() == f.Value.String() {
			return
		}
		if !slices.Contains(reloadable, f.Name) || switching && strings.HasPrefix(f.Name, "tls-") {
			names = append(names, f.Name)
		}
	})
	return names
}
