package agent_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/warren-overlay/warren/client/health"
	"github.com/warren-overlay/warren/client/localapi"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/netstack/config"
)

// TestRoutingSettings changes what is routed, and looks at what the coordinator
// is told and what is kept.
func TestRoutingSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir, n := newNode(t)
		p, _ := n.join(t, c)
		on, none, nobody := true, "", "nobody"
		routes := []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("10.1.0.0/24")}
		set := func(r localapi.Routing) (localapi.Preferences, error) {
			return n.ChangePreferences(t.Context(), localapi.PreferencesChange{Routing: r})
		}
		if _, err := set(localapi.Routing{AdvertiseRoutes: &routes, AcceptRoutes: &on}); err != nil {
			t.Fatal(err)
		}
		want := []netip.Prefix{routes[1], routes[0]}
		if told := take[wire.Update](t, p); !slices.Equal(told.Routes, want) {
			t.Errorf("the coordinator is told %v", told.Routes)
		}
		if s := n.status(); !hasFact(s, health.RouteNotApproved) {
			t.Errorf("health %v", s.Health)
		}
		for _, bad := range []string{"10.1.0.1/24", "0.0.0.0/0", "100.64.1.0/24"} {
			list := []netip.Prefix{netip.MustParsePrefix(bad)}
			var e *localapi.Error
			if _, err := set(localapi.Routing{AdvertiseRoutes: &list}); !errors.As(err, &e) || e.Code != localapi.CodeBadRequest {
				t.Errorf("%s: %v", bad, err)
			}
		}
		var e *localapi.Error
		if _, err := set(localapi.Routing{ExitNode: &nobody}); !errors.As(err, &e) || e.Code != localapi.CodeNotFound {
			t.Errorf("an exit node that is not there: %v", err)
		}
		if err := n.Up(t.Context(), localapi.UpRequest{ShieldsUp: &on}); !errors.As(err, &e) || e.Code != localapi.CodeConflict {
			t.Errorf("up that leaves routes out: %v", err)
		}
		if got, err := set(localapi.Routing{}); err != nil || !slices.Equal(got.AdvertiseRoutes, want) || !got.AcceptRoutes || got.ExitNode != "" {
			t.Errorf("settings %+v, %v", got, err)
		}
		if c := n.plane.last(); c.Exit != config.ExitDirect || len(c.Overlay) != 2 {
			t.Errorf("configuration: exit %v, overlay %v", c.Exit, c.Overlay)
		}
		if _, err := set(localapi.Routing{ExitNode: &none}); err != nil {
			t.Error(err)
		}
		n.stop()

		// It is all there after a restart, and told again.
		n = startNode(t, dir, c)
		p = <-c.accepted
		take[wire.Hello](t, p)
		p.give(wire.Welcome{Version: wire.Newest, Registered: true})
		if request := take[wire.MapRequest](t, p); !slices.Equal(request.Routes, want) {
			t.Errorf("after a restart the coordinator is told %v", request.Routes)
		}
		n.stop()
	})
}
