package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/config"
)

// Preferences are what the user wants of the data plane.
type Preferences struct {
	// WantRunning is whether the node is to be connected at all.
	WantRunning bool
	ShieldsUp   bool
	// AdvertiseRoutes and AdvertiseExitNode are what this device offers to
	// route. Only what its certificate holds is served.
	AdvertiseRoutes   []netip.Prefix
	AdvertiseExitNode bool
	// AcceptRoutes uses the subnets that other devices route.
	AcceptRoutes bool
	// ExitNode is what the user called the exit node, empty for none, and
	// ExitNodeID the device, zero where it was not found.
	ExitNode   string
	ExitNodeID ident.NodeID
	// Connected are the networks that this machine is connected to, which go
	// before accepted routes.
	Connected []netip.Prefix
	// ExitNodeAllowLAN keeps the local networks out of the exit node.
	ExitNodeAllowLAN bool
	// PortMapping has the gateway asked to forward the port, and Endpoints are
	// addresses outside that lead to this device.
	PortMapping bool
	Endpoints   []netip.AddrPort
}

// Codes are those of the facts that Desired returns.
var Codes = []health.Code{
	health.SettingIgnored, health.RouteNotApproved, health.RouteIgnored, health.ExitNodeUnavailable,
}

// Desired returns what the engine is to do for the view, nil for nothing: where
// the user does not want to be connected, or the device is no member. login is
// the coordinator's URL as this node reached it; it completes relay and STUN
// addresses without a host. What of the settings makes no sense is left out,
// and a fact says so.
func Desired(view *control.View, key ident.NodePrivate, login string, preferences Preferences, now time.Time) (*config.Config, []health.Fact) {
	if view == nil || view.Self == nil || !preferences.WantRunning {
		return nil, nil
	}
	c := &config.Config{
		PrivateKey: key, Lead: view.Lead, Self: view.Self, Rules: view.Rules, Candidate: view.Candidate, RelayToken: view.RelayToken,
		ShieldsUp: preferences.ShieldsUp, Peers: make([]config.Peer, 0, len(view.Peers)), Overlay: view.Overlay,
		PortMapping: preferences.PortMapping && !view.Settings.IsOff(wire.FeaturePortMapping), Endpoints: preferences.Endpoints,
	}
	for _, p := range view.Peers {
		c.Peers = append(c.Peers, config.Peer{Member: p.Member, Endpoints: p.State.Endpoints, HomeRelay: p.State.HomeRelay})
	}
	facts := routes(c, view, preferences, now)
	underlay(c, login)
	ignore := func(what, value string, err error) {
		facts = append(facts, health.Fact{
			Code: health.SettingIgnored, Severity: health.Warning, Subject: what + " " + value, Since: now,
			Text: fmt.Sprintf("The coordinator's setting %s %q is not used: %v. Tell your administrator.", what, value, err),
		})
	}
	stun := func(server string) string {
		complete, err := STUNServer(login, server)
		if err != nil {
			ignore("STUN server", server, err)
			return ""
		}
		if !slices.Contains(c.STUN, complete) {
			c.STUN = append(c.STUN, complete)
		}
		return complete
	}
	for _, s := range view.Settings.STUN {
		stun(s)
	}
	for _, r := range view.Settings.Relays {
		complete, err := relayAt(login, r)
		if err == nil && slices.ContainsFunc(c.Relays, func(other config.Relay) bool { return other.Name == r.Name }) {
			err = fmt.Errorf("%w: another relay is called %s", ErrSetting, r.Name)
		}
		if err == nil && len(c.Relays) == wire.MaxRelays {
			err = fmt.Errorf("%w: there are %d already", ErrSetting, wire.MaxRelays)
		}
		if err != nil {
			ignore("relay", r.URL, err)
			continue
		}
		if r.STUN != "" {
			complete.STUN = stun(r.STUN)
		}
		c.Relays = append(c.Relays, complete)
		underlay(c, complete.URL)
		if complete.UDP != "" {
			underlay(c, "udp://"+complete.UDP)
		}
	}
	return c, facts
}

// relayAt returns the relay with its addresses completed, all but that of its
// STUN server.
func relayAt(login string, r wire.Relay) (config.Relay, error) {
	if r.Name == "" {
		return config.Relay{}, fmt.Errorf("%w: it has no name", ErrSetting)
	}
	out := config.Relay{Name: r.Name, Region: r.Region}
	var err error
	if out.URL, err = RelayURL(login, r.URL); err != nil {
		return config.Relay{}, err
	}
	if r.UDP != "" {
		out.UDP, err = hostPort(login, r.UDP)
	}
	return out, err
}

// ErrSetting is wrapped by the errors of RelayURL and STUNServer.
var ErrSetting = errors.New("reconcile: setting makes no sense")

// webSocketScheme is what http and https URLs become for a relay.
var webSocketScheme = map[string]string{"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

// RelayURL completes the URL of a relay. One with a host is taken as it is, if
// it is a ws, wss, http or https URL. One without a host gets that of login;
// one without a port too gets login's port and, as it is then the same
// listener, login's kind of transport and what stands before its paths. The result is a ws or wss URL. The error
// wraps ErrSetting.
func RelayURL(login, relay string) (string, error) {
	base, err := parseLogin(login)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(relay)
	if err != nil || u.User != nil || u.Opaque != "" {
		return "", fmt.Errorf("%w: not a URL", ErrSetting)
	}
	if u.Hostname() == "" {
		if u.Port() == "" {
			u.Host = base.Host
			u.Scheme = base.Scheme
			u.Path = strings.TrimSuffix(base.Path, "/") + "/" + strings.TrimPrefix(u.Path, "/")
		} else {
			u.Host = joinHostPort(base.Hostname(), u.Port())
		}
	}
	if u.Scheme == "" {
		u.Scheme = base.Scheme
	}
	scheme, ok := webSocketScheme[u.Scheme]
	if !ok {
		return "", fmt.Errorf("%w: scheme %q is not ws or wss", ErrSetting, u.Scheme)
	}
	u.Scheme = scheme
	if err := checkPort(u.Port()); err != nil {
		return "", err
	}
	return u.String(), nil
}

// STUNServer completes the host:port of a STUN server: an empty host becomes
// that of login. The error wraps ErrSetting.
func STUNServer(login, server string) (string, error) { return hostPort(login, server) }

func hostPort(login, server string) (string, error) {
	u, err := url.Parse("udp://" + server)
	if err != nil || u.Port() == "" || u.Host != server {
		return "", fmt.Errorf("%w: not host:port", ErrSetting)
	}
	host, port := u.Hostname(), u.Port()
	if err := checkPort(port); err != nil {
		return "", err
	}
	if host == "" {
		base, err := parseLogin(login)
		if err != nil {
			return "", err
		}
		host = base.Hostname()
	}
	return joinHostPort(host, port), nil
}

// joinHostPort is that of package net, which pure packages do without.
func joinHostPort(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}

func parseLogin(login string) (*url.URL, error) {
	u, err := url.Parse(login)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%w: the coordinator's own address %q is not an http or https URL", ErrSetting, login)
	}
	return u, nil
}

// checkPort takes an empty port for that of the scheme.
func checkPort(port string) error {
	if port == "" {
		return nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%w: port %q", ErrSetting, port)
	}
	return nil
}
