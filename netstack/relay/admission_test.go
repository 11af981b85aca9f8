package relay

import (
	"net/netip"
	"testing"
	"time"
)

// TestAdmissionEnds: a connection lasts as long as its token, longer with a
// newer one or where the admitter extends it, and not otherwise.
func TestAdmissionEnds(t *testing.T) {
	const life = 9 * time.Minute
	r := newRig(t, 0)
	r.admitter.until = epoch.Add(life)
	renewed, ended := r.join(1, "net1"), r.join(2, "net1")
	r.tick(epoch.Add(life - time.Minute))
	r.admitter.until = r.now.Add(life)
	renewed.session.HandleToken([]byte("net1"), r.now)
	ended.session.HandleToken([]byte("net2"), r.now) // another network's: no use
	r.pump()
	r.tick(epoch.Add(life + endSweep))
	if renewed.gone || !ended.gone || ended.closed != ReasonExpired {
		t.Fatalf("renewed gone: %v, the other gone: %v by %v", renewed.gone, ended.gone, ended.closed)
	}
	r.admitter.extend = r.now.Add(10 * life)
	r.tick(epoch.Add(3 * life))
	if renewed.gone {
		t.Fatal("ended although it was extended")
	}
	r.admitter.extend = time.Time{}
	r.tick(epoch.Add(12 * life))
	if !renewed.gone || renewed.closed != ReasonExpired {
		t.Fatalf("gone: %v by %v", renewed.gone, renewed.closed)
	}
	if st := r.server.Snapshot().Stats; st.Expired != 2 || st.RejectedToken != 1 {
		t.Errorf("%+v", st)
	}
	if r.server.limited != 0 {
		t.Errorf("%d admissions are still watched", r.server.limited)
	}
}

// TestHelloPerSource: connections from one address that say nothing make room
// for each other and for nobody else.
func TestHelloPerSource(t *testing.T) {
	r := newRig(t, 0)
	connect := func(source string) *client {
		r.lastConn++
		c := &client{id: r.lastConn}
		r.clients[c.id] = c
		if err := r.server.HandleConnect(c.id, netip.MustParseAddr(source), nil, r.now); err != nil {
			t.Fatal(err)
		}
		r.pump()
		return c
	}
	quiet := connect("198.51.100.9")
	var strangers []*client
	for range defaultHelloPerSource {
		strangers = append(strangers, connect("2001:db8::1"))
	}
	for _, c := range strangers {
		if c.gone {
			t.Fatal("one within the limit ended")
		}
	}
	connect("2001:db8::ffff") // the same /64
	if !strangers[0].gone || strangers[0].closed != ReasonFull || strangers[1].gone || quiet.gone {
		t.Errorf("oldest gone: %v, next: %v, another source's: %v", strangers[0].gone, strangers[1].gone, quiet.gone)
	}
	if n := r.server.Snapshot().Stats.HelloPerSource; n != 1 {
		t.Errorf("counted %d", n)
	}
	if member := r.join(1, "net1"); !member.session.Ready() {
		t.Error("a member is kept out")
	}
	r.tick(r.now.Add(helloWait))
	if len(r.server.hellos) != 0 {
		t.Errorf("%d sources are left", len(r.server.hellos))
	}
}

// TestLeaving: every client hears that the relay stops, and goes on until then.
func TestLeaving(t *testing.T) {
	r := newRig(t, 0)
	a, b := r.join(1, "net1"), r.join(2, "net2")
	r.server.HandleLeaving(r.now)
	r.pump()
	for _, c := range []*client{a, b} {
		if c.last().Kind != EventLeaving || !c.session.Ready() {
			t.Errorf("last event %+v", c.last())
		}
	}
}
