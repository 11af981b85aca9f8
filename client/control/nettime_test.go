package control_test

import (
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/client/control"
	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/coordinator/wire"
)

const (
	hour = time.Hour
	year = 365 * 24 * time.Hour
)

// meet connects the node to a coordinator that says the time theirs, and gives
// it the map.
func (n *node) meet(theirs time.Time, m *wire.Map) {
	n.t.Helper()
	n.m.HandleStart(n.now)
	n.m.HandleConnected(wire.Proof{}, n.now)
	n.receive(wire.Welcome{Version: wire.Newest, Time: theirs, Registered: true})
	n.receive(m)
}

// hangUp ends the connection and the wish for one.
func (n *node) hangUp() {
	n.m.HandleStop(n.now)
	n.drain()
}

// pass lets time pass on the node's clock, with all that is due in it.
func (n *node) pass(d time.Duration) {
	end := n.now.Add(d)
	for at, ok := n.m.NextTimeout(); ok && !at.After(end); at, ok = n.m.NextTimeout() {
		n.m.HandleTimeout(at)
		n.drain()
	}
	n.now = end
	n.m.HandleTimeout(end)
	n.drain()
}

// shortMap is a map in which the victim's certificate ends an hour after start.
func shortMap(n *network) *wire.Map {
	m := n.fullMap(1, 5, bystander, victim)
	short := n.certificate(victim, 30)
	short.NotAfter = start.Add(hour)
	m.Peers[victim] = wire.Peer{Certificate: n.sign(short)}
	return m
}

// TestWrongClock is F11 for the control plane: whatever a device's clock says
// when it starts, with and without a saved map, certificates end when they do by
// the coordinator's time, and the data plane is told how far the clock is off.
func TestWrongClock(t *testing.T) {
	n := newNetwork(t, 1)
	m := shortMap(n)
	fresh := newNode(t, n.config(), start)
	fresh.meet(start, m)
	for name, off := range map[string]time.Duration{
		"right": 0, "a message's way ahead": 400 * time.Millisecond, "an hour behind": -hour, "ten years behind": -10 * year,
		"an hour ahead": hour, "a year ahead": year,
	} {
		for how, saved := range map[string]control.Saved{"new": n.config().Saved, "saved": fresh.saved} {
			t.Run(name+", "+how, func(t *testing.T) {
				cfg := n.config()
				cfg.Saved = saved
				// The daemon's clock begins no earlier than what was saved.
				begin := start.Add(off)
				if begin.Before(saved.Time) {
					begin = saved.Time
				}
				c := newNode(t, cfg, begin)
				c.meet(start, m)
				if got := c.peers(); !slices.Equal(got, []ident.NodeID{bystander, victim}) || c.hasFact(health.PeerRefused) {
					t.Fatalf("peers %v, facts %v", got, c.m.Snapshot().Facts)
				}
				if got := begin.Add(-c.view.Lead).Sub(start); got.Abs() > time.Second {
					t.Errorf("the data plane takes the time for %v off", got)
				}
				if c.told != 1 {
					t.Errorf("told %d times that a coordinator told the time", c.told)
				}
				c.hangUp()
				c.pass(hour - 2*time.Second)
				if got := c.peers(); len(got) != 2 {
					t.Errorf("two seconds before the end: peers %v", got)
				}
				c.pass(3 * time.Second)
				if got := c.peers(); !slices.Equal(got, []ident.NodeID{bystander}) {
					t.Errorf("after the end: peers %v", got)
				}
			})
		}
	}
}

// TestClockSetDuringWelcome: the clock is set a year forward between Hello and
// Welcome, when it is not yet known to be of no use.
func TestClockSetDuringWelcome(t *testing.T) {
	n := newNetwork(t, 1)
	c := newNode(t, n.config(), start)
	c.m.HandleStart(c.now)
	c.m.HandleConnected(wire.Proof{}, c.now)
	c.now = c.now.Add(year)
	c.receive(wire.Welcome{Version: wire.Newest, Time: start, Registered: true})
	c.receive(shortMap(n))
	if got := c.peers(); len(got) != 2 {
		t.Errorf("peers %v, facts %v", got, c.m.Snapshot().Facts)
	}
}

// TestNetworkTimeNeverGoesBack: a coordinator that is behind when the device
// connects again, or that is behind what the device has saved, revives nothing;
// one that is ahead is believed.
func TestNetworkTimeNeverGoesBack(t *testing.T) {
	n := newNetwork(t, 1)
	m := shortMap(n)
	for name, tt := range map[string]struct {
		theirs time.Duration // at the second connection, half an hour after start
		ends   time.Duration // after that, by the device's clock
	}{
		"it agrees": {hour / 2, hour / 2}, "an hour behind": {-hour / 2, hour / 2}, "ten years behind": {-10 * year, hour / 2},
		"ten minutes ahead": {hour/2 + 10*time.Minute, 20 * time.Minute}, "an hour ahead": {3 * hour / 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			for how, again := range map[string]func(c *node) *node{
				"connected again": func(c *node) *node { return c },
				"started again": func(c *node) *node {
					cfg := n.config()
					cfg.Saved = c.saved
					return newNode(t, cfg, c.now)
				},
			} {
				c := newNode(t, n.config(), start.Add(year))
				c.meet(start, m)
				c.hangUp()
				c.pass(hour / 2)
				ends := tt.ends
				if how == "started again" && tt.theirs < 0 {
					// What is certain is what was saved: the first connection.
					ends = hour
				}
				c = again(c)
				c.meet(start.Add(tt.theirs), m)
				c.hangUp()
				c.pass(max(0, ends-time.Second))
				if got := c.peers(); len(got) != 2 && ends > 0 {
					t.Errorf("%s: a second before the end: peers %v", how, got)
				}
				c.pass(2 * time.Second)
				if got := c.peers(); !slices.Equal(got, []ident.NodeID{bystander}) {
					t.Errorf("%s: after the end: peers %v", how, got)
				}
			}
		})
	}
}

// TestUnbelievableTime: a coordinator that gives out a certificate which by its
// own time has ended, or not begun, tells no time.
func TestUnbelievableTime(t *testing.T) {
	n := newNetwork(t, 1)
	for _, theirs := range []time.Time{start.AddDate(50, 0, 0), start.AddDate(-50, 0, 0), {}} {
		c := newNode(t, n.config(), start)
		c.meet(theirs, shortMap(n))
		if got := c.peers(); len(got) != 2 || c.view.Lead != 0 {
			t.Errorf("%v: peers %v, lead %v, facts %v", theirs, got, c.view.Lead, c.m.Snapshot().Facts)
		}
	}
}
