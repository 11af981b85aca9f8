package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// Up begins to connect. It is idempotent: what is already so stays so.
func (a *Agent) Up(ctx context.Context, r localapi.UpRequest) error {
	var key *wire.JoinKey
	if r.AuthKey != "" {
		parsed, err := wire.ParseJoinKey(r.AuthKey)
		if err != nil {
			return localapi.Errorf(localapi.CodeBadRequest, "--auth-key: %v", err)
		}
		key = &parsed
	}
	if r.Hostname != nil && !authority.ValidName(*r.Hostname) {
		return localapi.Errorf(localapi.CodeBadRequest, "--hostname: %q is no name for a device; use lower-case letters, digits and dashes, 63 at most", *r.Hostname)
	}
	failure, err := ask(ctx, a, func(l *loop) error { return l.up(r, key) })
	if err != nil {
		return err
	}
	return failure
}

func (l *loop) up(r localapi.UpRequest, key *wire.JoinKey) error {
	wanted, err := l.wanted(r, key)
	if err != nil {
		return err
	}
	wanted.Port = l.cfg.DataPlane.Status().Port
	before := l.preferences
	another := before.Network != wanted.Network && !l.remembers(wanted.Network)
	if another && before.Network.IsZero() {
		// From here on a directory without a membership has lost it.
		if err := l.forgetNetwork(); err != nil {
			return localapi.Errorf(localapi.CodeInternal, "%v", err)
		}
	}
	if err := l.cfg.State.SavePreferences(wanted); err != nil {
		return localapi.Errorf(localapi.CodeInternal, "saving the preferences: %v", err)
	}
	l.preferences = wanted
	if key != nil && l.machine != nil && l.machine.Snapshot().State == control.Revoked {
		// The keys of a revoked device stay revoked. Whoever has a new key may
		// join as a new device.
		if err := l.forgetDevice(); err != nil {
			return localapi.Errorf(localapi.CodeInternal, "%v", err)
		}
	}
	if another && !before.Network.IsZero() {
		if err := l.forgetNetwork(); err != nil {
			return localapi.Errorf(localapi.CodeInternal, "%v", err)
		}
	}
	if l.machine == nil || before.Network != wanted.Network || before.LoginServer != wanted.LoginServer {
		l.startMachine()
	}
	l.offer()
	if key != nil && !l.member() {
		l.machine.HandleLogin(control.Registration{AuthKey: key.Credential(), Hostname: wanted.Hostname}, l.cfg.Now())
	} else {
		l.machine.HandleStart(l.cfg.Now())
	}
	l.drain()
	l.apply()
	l.bump()
	return nil
}

// wanted returns the preferences that r asks for.
func (l *loop) wanted(r localapi.UpRequest, key *wire.JoinKey) (statefile.Preferences, error) {
	p := l.preferences
	p.WantRunning = true
	if r.LoginServer != "" {
		p.LoginServer = strings.TrimSuffix(r.LoginServer, "/")
	}
	switch u, err := url.Parse(p.LoginServer); {
	case p.LoginServer == "":
		return p, localapi.Errorf(localapi.CodeBadRequest, "which coordinator? Give its address: --login-server http://HOST:PORT")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil:
		return p, localapi.Errorf(localapi.CodeBadRequest, "--login-server: %q is not a URL such as https://warren.example.com or http://10.0.0.1:8080", p.LoginServer)
	}
	if key != nil {
		if l.member() && key.Fingerprint != p.Network {
			return p, localapi.Errorf(localapi.CodeConflict, "this device is a member of another network (at %s), and the key is not for that; run `warren logout` first", l.preferences.LoginServer)
		}
		p.Network = key.Fingerprint
	}
	if p.Network.IsZero() || key == nil && l.needsKey() {
		return p, localapi.Errorf(localapi.CodeNeedsLogin, "this device is not a member of a network; ask your administrator for a key and give it with --auth-key")
	}
	return p, l.settings(&p, r)
}

// settings carries the settings of r into p. A request that mentions some must
// mention all that are not at their defaults, so that the same command always
// gives the same settings; one that mentions none changes none.
func (l *loop) settings(p *statefile.Preferences, r localapi.UpRequest) error {
	if r.Hostname != nil {
		if l.member() && p.Hostname != *r.Hostname {
			return localapi.Errorf(localapi.CodeConflict, "this device joined as %q; its name is part of its certificate. Ask your administrator to rename it, or run `warren logout` and join again", p.Hostname)
		}
		p.Hostname = *r.Hostname
	}
	if p.Hostname == "" {
		p.Hostname = l.cfg.Hostname
	}
	mentioned := r.Hostname != nil || r.ShieldsUp != nil || r.Routing != localapi.Routing{} || r.Reach != localapi.Reach{}
	switch {
	case r.Reset:
		p.ShieldsUp = false
		resetRouting(p)
		resetReach(p)
	case mentioned:
		if missing := unmentioned(p, r); missing != "" {
			return localapi.Errorf(localapi.CodeConflict, "this would leave %s unmentioned, which is not at its default. Mention it too, or use `warren set` to change one setting, or --reset to put all settings back to their defaults", missing)
		}
	}
	if r.ShieldsUp != nil {
		p.ShieldsUp = *r.ShieldsUp
	}
	if err := l.reachability(p, r.Reach); err != nil {
		return err
	}
	return l.routing(p, r.Routing)
}

// unmentioned returns the first flag that r does not mention and whose setting
// is not at its default, "" for none.
func unmentioned(p *statefile.Preferences, r localapi.UpRequest) string {
	for _, s := range []struct {
		set, mentioned bool
		flag           string
	}{
		{p.ShieldsUp, r.ShieldsUp != nil, "--shields-up"},
		{len(p.AdvertiseRoutes) > 0, r.AdvertiseRoutes != nil, "--advertise-routes"},
		{p.AdvertiseExitNode, r.AdvertiseExitNode != nil, "--advertise-exit-node"},
		{p.AcceptRoutes, r.AcceptRoutes != nil, "--accept-routes"},
		{p.ExitNode != "", r.ExitNode != nil, "--exit-node"},
		{p.ExitNodeAllowLAN, r.ExitNodeAllowLAN != nil, "--exit-node-allow-lan-access"},
		{p.NoPortMapping, r.PortMapping != nil, "--port-mapping"},
		{len(p.Endpoints) > 0, r.Endpoints != nil, "--endpoint"},
	} {
		if s.set && !s.mentioned {
			return s.flag
		}
	}
	return ""
}

// member reports whether the device is a member, as far as it knows.
func (l *loop) member() bool { return l.machine != nil && l.view.Self != nil }

// needsKey reports whether only a key leads on.
func (l *loop) needsKey() bool {
	if l.machine == nil {
		return false
	}
	s := l.machine.Snapshot().State
	return (s == control.NeedsLogin || s == control.Revoked) && !l.machine.Registration()
}

// forgetDevice makes this another device, without a network.
func (l *loop) forgetDevice() error {
	if err := l.newKeys(); err != nil {
		return err
	}
	if err := l.forgetNetwork(); err != nil {
		return err
	}
	l.stopMachine()
	l.apply()
	return nil
}

// remembers reports whether what was seen before was seen of the network.
func (l *loop) remembers(network ident.Fingerprint) bool {
	_, err := authority.DecodeGenesis(l.saved.Genesis, network)
	return err == nil
}

// forgetNetwork forgets all that was seen of the network.
func (l *loop) forgetNetwork() error {
	l.saved = control.Saved{}
	if err := l.cfg.State.SaveMembership(l.saved); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}

// Down disconnects and stays a member.
func (a *Agent) Down(ctx context.Context) error {
	failure, err := ask(ctx, a, func(l *loop) error {
		l.preferences.WantRunning = false
		err := l.cfg.State.SavePreferences(l.preferences)
		if l.machine != nil {
			l.machine.HandleStop(l.cfg.Now())
		}
		l.drain()
		l.apply()
		l.bump()
		return err
	})
	if err != nil {
		return err
	}
	return failure
}

// Logout ends the membership and forgets keys, preferences and the network.
func (a *Agent) Logout(ctx context.Context) (localapi.LogoutReply, error) {
	type outcome struct {
		reply localapi.LogoutReply
		// last is the connection over which the coordinator was told.
		last *connection
		err  error
	}
	o, err := ask(ctx, a, func(l *loop) outcome {
		if l.machine == nil {
			return outcome{err: localapi.Errorf(localapi.CodeNotConnected, "this device is not a member of a network")}
		}
		var o outcome
		if l.view.Self != nil {
			o.reply.Name = l.view.Self.Name()
		}
		o.last = l.connection
		o.reply.Told = l.machine.HandleLogout(l.cfg.Now())
		l.drain()
		l.preferences = statefile.Preferences{}
		l.connection = nil // it ends by itself
		l.stopMachine()
		l.saved = control.Saved{}
		l.apply()
		o.err = l.cfg.State.Forget()
		if o.err == nil {
			o.err = l.newKeys()
		}
		l.bump()
		return o
	})
	if err == nil {
		err = o.err
	}
	if err == nil && o.reply.Told && o.last != nil {
		select {
		case <-o.last.done:
		case <-ctx.Done():
		}
	}
	return o.reply, err
}

// ChangePreferences changes what c names and returns all preferences.
func (a *Agent) ChangePreferences(ctx context.Context, c localapi.PreferencesChange) (localapi.Preferences, error) {
	type outcome struct {
		preferences statefile.Preferences
		err         error
	}
	o, err := ask(ctx, a, func(l *loop) outcome {
		wanted := l.preferences
		if c.ShieldsUp != nil {
			wanted.ShieldsUp = *c.ShieldsUp
		}
		if err := errors.Join(l.reachability(&wanted, c.Reach), l.routing(&wanted, c.Routing)); err != nil {
			return outcome{err: err}
		}
		if !wanted.Equal(&l.preferences) {
			if err := l.cfg.State.SavePreferences(wanted); err != nil {
				return outcome{err: err}
			}
			l.preferences = wanted
			l.offer()
			l.drain()
			l.apply()
			l.bump()
		}
		return outcome{preferences: l.preferences}
	})
	if err == nil {
		err = o.err
	}
	p := o.preferences
	return localapi.Preferences{
		LoginServer: p.LoginServer, Network: fingerprintText(p.Network), Hostname: p.Hostname,
		ShieldsUp: p.ShieldsUp, WantRunning: p.WantRunning,
		AdvertiseRoutes: append([]netip.Prefix{}, p.AdvertiseRoutes...), AdvertiseExitNode: p.AdvertiseExitNode,
		AcceptRoutes: p.AcceptRoutes, ExitNode: p.ExitNode, ExitNodeAllowLAN: p.ExitNodeAllowLAN,
		PortMapping: !p.NoPortMapping, Endpoints: append([]netip.AddrPort{}, p.Endpoints...),
	}, err
}

func fingerprintText(f ident.Fingerprint) string {
	if f.IsZero() {
		return ""
	}
	return f.String()
}
