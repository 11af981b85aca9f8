package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/reconcile"
	"github.com/warren-overlay/warren/client/statefile"
	"github.com/warren-overlay/warren/netstack/alarm"
	"github.com/warren-overlay/warren/netstack/engine"
)

// loop is what belongs to the goroutine of Agent.Run.
type loop struct {
	*Agent
	ctx     context.Context //nolint:containedctx // that of Run, for the connections it starts
	running *sync.WaitGroup

	keys        statefile.Keys
	preferences statefile.Preferences
	saved       control.Saved
	// machine is nil while no network is known.
	machine    *control.Machine
	connection *connection // nil for none
	view       *control.View
	reach      engine.Reach // where the data plane says that this device is
	facts      health.Set
	// applied says that the data plane was given a configuration that is not
	// "no network".
	applied bool
	timer   *alarm.Alarm
}

// newLoop reads the state directory.
func newLoop(a *Agent, ctx context.Context, running *sync.WaitGroup) (*loop, error) {
	l := &loop{Agent: a, ctx: ctx, running: running, view: &control.View{}}
	for _, f := range a.startFacts {
		l.facts.Put(f)
	}
	var ok bool
	var err error
	if l.keys, ok, err = a.cfg.State.LoadKeys(); err != nil {
		return nil, fmt.Errorf("agent: reading the device's keys: %w; to begin anew as another device, remove %s", err, a.cfg.State.Path())
	}
	if !ok {
		if err := l.newKeys(); err != nil {
			return nil, err
		}
	}
	if l.preferences, err = a.cfg.State.LoadPreferences(); err != nil {
		l.unusable("preferences", err)
	}
	switch l.saved, err = a.cfg.State.LoadMembership(); {
	case errors.Is(err, statefile.ErrForgotten):
		// A device that never had a network has nothing to forget.
		if !l.preferences.Network.IsZero() {
			l.forgotten(err)
		}
	case err != nil:
		l.unusable("map", err)
	}
	return l, nil
}

// forgotten tells that old policies and certificates cannot be recognised any
// more. It stays, because what is admitted from here on is no proof that nothing
// older was given to the device.
func (l *loop) forgotten(err error) {
	l.log.Error("the protection against old policies was lost", "error", err)
	l.facts.Put(health.Fact{
		Code: health.MemoryLost, Severity: health.Alarm, Since: l.cfg.Now(),
		Text: fmt.Sprintf("The protection against old policies was lost: %v. Whoever controls the coordinator or removed the files of %s could bring back access that was taken away. Compare the epoch of the policy that this device has with the coordinator's, or run `warren logout` and join again with a new key; this notice stays until the daemon is restarted.", err, l.cfg.State.Path()),
	})
}

// unusable tells of a file that is passed over.
func (l *loop) unusable(what string, err error) {
	l.log.Warn("a file of the state directory is not used", "content", what, "error", err)
	l.facts.Put(health.Fact{
		Code: health.CacheUnusable, Severity: health.Warning, Subject: what, Since: l.cfg.Now(),
		Text: fmt.Sprintf("The saved %s cannot be used: %v. What the coordinator says replaces it; if the node stays disconnected, run: warren up --login-server URL --auth-key KEY", what, err),
	})
}

// newKeys makes this another device.
func (l *loop) newKeys() error {
	keys, err := statefile.NewKeys(l.cfg.Rand)
	if err != nil {
		return fmt.Errorf("agent: making keys: %w", err)
	}
	if err := l.cfg.State.SaveKeys(keys); err != nil {
		return fmt.Errorf("agent: saving keys: %w", err)
	}
	l.keys = keys
	return nil
}

func (l *loop) run() {
	defer func() {
		if l.connection != nil {
			l.connection.close()
		}
	}()
	l.timer = alarm.New(0)
	defer l.timer.Stop()
	if l.preferences.LoginServer != "" && !l.preferences.Network.IsZero() {
		l.startMachine()
		if l.preferences.WantRunning {
			l.machine.HandleStart(l.cfg.Now())
		}
	}
	reach := l.cfg.DataPlane.Reach()
	for {
		l.drain()
		select {
		case <-l.ctx.Done():
			return
		case f := <-l.requests:
			f(l)
		case r, ok := <-reach:
			if !ok {
				reach = nil
				continue
			}
			moved := r.Moves != l.reach.Moves
			l.reach = r
			l.rememberPort()
			if l.machine != nil {
				if moved {
					l.machine.HandleNetworkChange(l.cfg.Now())
				}
				l.machine.HandleReach(r.Endpoints, r.HomeRelay, l.cfg.Now())
			}
		case <-l.cfg.NetworkChanges:
			l.cfg.DataPlane.HandleNetworkChange()
			l.apply() // what it says of networks may be another
			l.bump()
			if l.machine != nil {
				l.machine.HandleNetworkChange(l.cfg.Now())
			}
		case <-l.timer.C:
			if l.machine != nil {
				l.machine.HandleTimeout(l.cfg.Now())
			}
		}
	}
}

// rememberPort saves the UDP port where it is another than before.
func (l *loop) rememberPort() {
	port := l.cfg.DataPlane.Status().Port
	if port == 0 || port == l.preferences.Port || l.machine == nil {
		return
	}
	l.preferences.Port = port
	l.save(l.cfg.State.SavePreferences(l.preferences))
}

// startMachine makes the machine for the network of the preferences, from what
// was saved.
func (l *loop) startMachine() {
	m, err := control.New(control.Config{
		Rand: l.cfg.Rand, URL: l.preferences.LoginServer, Network: l.preferences.Network,
		NodeKey: l.keys.Node.Public(), Host: l.cfg.Host, Saved: l.saved,
	}, l.cfg.Now())
	if err != nil {
		panic("BUG: agent: a network without address or key: " + err.Error())
	}
	l.stopMachine()
	l.machine = m
	m.HandleReach(l.reach.Endpoints, l.reach.HomeRelay, l.cfg.Now())
	l.offer()
}

// stopMachine forgets the machine and its connection.
func (l *loop) stopMachine() {
	if l.connection != nil {
		l.connection.close()
		l.connection = nil
	}
	l.machine = nil
	l.view = &control.View{}
}

// drain carries out all that the machine has to say, and sets the timer.
func (l *loop) drain() {
	if l.machine == nil {
		return
	}
	for {
		o, ok := l.machine.NextOutput()
		if !ok {
			break
		}
		l.output(o)
	}
	changed := false
	for {
		e, ok := l.machine.NextEvent()
		if !ok {
			break
		}
		changed = true
		l.event(e)
	}
	if changed {
		l.bump()
	}
	if at, ok := l.machine.NextTimeout(); ok {
		l.timer.Set(max(0, at.Sub(l.cfg.Now())))
	}
}

func (l *loop) output(o control.Output) {
	switch o := o.(type) {
	case control.FetchGenesis:
		l.fetchGenesis(o)
	case control.Dial:
		l.dial(o)
	case control.Send:
		if l.connection != nil {
			l.connection.send(o.Frame)
		}
	case control.Close:
		if l.connection != nil {
			if o.Linger {
				l.connection.linger()
			} else {
				l.connection.close()
			}
			l.connection = nil
		}
	}
}

func (l *loop) event(e control.Event) {
	switch e := e.(type) {
	case control.StateChanged:
		level := slog.LevelInfo
		if e.State == control.Dialing || e.State == control.Handshaking || e.State == control.Registering {
			level = slog.LevelDebug // on the way to something
		}
		l.log.Log(l.ctx, level, "control", "state", e.State.String(), "reason", e.Reason)
	case control.Persist:
		l.saved = e.Saved
		l.save(l.cfg.State.SaveMembership(e.Saved))
	case control.NetMap:
		l.view = e.View
		l.log.Debug("network map", "sequence", e.View.Sequence, "peers", len(e.View.Peers), "cached", e.View.Cached)
		l.apply()
	case control.TimeTold:
		if l.cfg.TimeTold != nil {
			l.cfg.TimeTold()
		}
	case control.HealthChanged:
		for _, f := range l.machine.Snapshot().Facts {
			if f.Severity == health.Alarm {
				l.log.Warn("health", "code", string(f.Code), "subject", f.Subject, "text", f.Text)
			}
		}
	}
}

// save notes how saving went.
func (l *loop) save(err error) {
	if err == nil {
		l.facts.Clear(health.StateNotSaved, "")
		return
	}
	l.log.Error("saving state", "error", err)
	l.facts.Put(health.Fact{
		Code: health.StateNotSaved, Severity: health.Error, Since: l.cfg.Now(),
		Text: fmt.Sprintf("The state could not be saved: %v. After a restart the node would know less; make room in, or repair, the state directory.", err),
	})
}

// apply gives the data plane what follows from view and preferences.
func (l *loop) apply() {
	l.Agent.view.Store(l.view)
	l.findExitNode()
	connected := l.connected()
	p := l.preferences
	desired, facts := reconcile.Desired(l.view, l.keys.Node, p.LoginServer, reconcile.Preferences{
		WantRunning: p.WantRunning, ShieldsUp: p.ShieldsUp,
		Connected: connected, AdvertiseRoutes: p.AdvertiseRoutes, AdvertiseExitNode: p.AdvertiseExitNode, AcceptRoutes: p.AcceptRoutes,
		ExitNode: p.ExitNode, ExitNodeID: p.ExitNodeID, ExitNodeAllowLAN: p.ExitNodeAllowLAN,
		PortMapping: !p.NoPortMapping, Endpoints: p.Endpoints,
	}, l.cfg.Now())
	for _, code := range reconcile.Codes {
		l.facts.Replace(code, slices.DeleteFunc(slices.Clone(facts), func(f health.Fact) bool { return f.Code != code }))
	}
	l.Agent.desired.Store(desired)
	if desired == nil && !l.applied {
		return
	}
	err := l.cfg.DataPlane.Apply(desired)
	l.applied = desired != nil
	if err == nil {
		l.facts.Clear(health.DataPlane, "")
		return
	}
	if errors.Is(err, engine.ErrStopped) {
		return // the daemon is ending, and says why
	}
	l.log.Error("configuring the data plane", "error", err)
	l.facts.Put(health.Fact{
		Code: health.DataPlane, Severity: health.Error, Since: l.cfg.Now(),
		Text: fmt.Sprintf("The network configuration could not be carried out in full: %v", err),
	})
}
