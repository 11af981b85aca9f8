package agent

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/warren-overlay/warren/netstack/router"
	"github.com/warren-overlay/warren/netstack/userstack"
)

// TestUserspaceRouter serves and stops serving, and takes no settings that make
// no sense.
func TestUserspaceRouter(t *testing.T) {
	stack, err := userstack.New(userstack.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	r := userspaceRouter{stack}
	s := router.Settings{
		Own: []netip.Addr{netip.MustParseAddr("100.64.0.1")}, Overlay: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
		Forward: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/24")}, Except: []netip.Addr{netip.MustParseAddr("10.20.0.5")},
	}
	if err := r.Configure(s); err != nil {
		t.Error(err)
	}
	if err := r.Configure(router.Settings{}); err != nil {
		t.Error(err)
	}
	s.Forward[0] = netip.MustParsePrefix("10.20.0.1/24")
	if err := r.Configure(s); !errors.Is(err, router.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
