package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"github.com/warren-overlay/warren/coordinator/server"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/relay/relayhttp"
)

// publicRelay returns the relay's URL under the coordinator's public one, ""
// where there is none.
func publicRelay(public string) (string, error) {
	if public == "" {
		return "", nil
	}
	u, err := url.Parse(public)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("--public-url %q is no http or https URL", public)
	}
	scheme := map[string]string{"http": "ws", "https": "wss"}[u.Scheme]
	return (&url.URL{Scheme: scheme, Host: u.Host, Path: u.Path}).JoinPath(relayhttp.Path).String(), nil
}

// relayList returns the relays that devices are told of: the one beside the
// coordinator, which listens on port and has the STUN server beside it, before
// the others.
func (o *serveOptions) relayList(port int, stun string) ([]wire.Relay, error) {
	var out []wire.Relay
	if o.builtin {
		target, err := publicRelay(o.publicURL)
		if err != nil {
			return nil, err
		}
		if target == "" {
			target = fmt.Sprintf("ws://:%d%s", port, relayhttp.Path)
		}
		out = append(out, wire.Relay{Name: relayName, Region: o.builtinRegion, URL: target, UDP: stun, STUN: stun})
	} else if o.builtinRegion != "" {
		return nil, errors.New("--builtin-relay-region is of no use without the built-in relay")
	}
	for _, text := range o.relays {
		if text == "true" || text == "false" {
			return nil, fmt.Errorf("--relay names another relay; the one beside the coordinator is switched by --builtin-relay=%s", text)
		}
		r, err := wire.ParseRelay(text)
		if err != nil {
			return nil, fmt.Errorf("--relay %q: %w", text, err)
		}
		out = append(out, completeRelay(r))
	}
	return out, server.ValidateRelays(out)
}

// adviseServers says what devices cannot learn from the STUN servers that they are
// told of.
func adviseServers(cfg server.Config, log *slog.Logger) {
	told := wire.Settings{Relays: cfg.Relays, STUN: cfg.STUN}
	const do = "name one with --stun HOST:PORT, or a second relay with --relay"
	switch len(told.STUNServers()) {
	case 0:
		log.Warn("devices are told of no STUN server: they do not learn their public addresses, and those behind a NAT reach each other over relays only", "do", do)
	case 1:
		log.Info("devices are told of one STUN server: they do not learn whether their NAT gives every destination another port, and guess no ports; some pairs are reached over relays that could be reached directly", "do", do)
	}
}

// completeRelay gives a URL without a path the one at which relays serve, and a
// relay that takes packets over UDP the STUN server that it is there.
func completeRelay(r wire.Relay) wire.Relay {
	if r.STUN == "" {
		r.STUN = r.UDP
	}
	if u, err := url.Parse(r.URL); err == nil && strings.Trim(u.Path, "/") == "" {
		r.URL = u.JoinPath(relayhttp.Path).String()
	}
	return r
}
