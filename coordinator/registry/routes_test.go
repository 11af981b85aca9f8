package registry

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestRoutes(t *testing.T) {
	s := world(t, whole)
	mustRun(t, s, register(1, "once"), begin)
	for _, step := range []struct {
		cmd                  Command
		advertised, approved []netip.Prefix
		err                  error
	}{
		{AdvertiseRoutes{1, prefixes("10.2.0.0/24", "10.1.0.0/24", "10.2.0.0/24")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), nil, nil},
		{AdvertiseRoutes{1, prefixes("100.64.1.0/24")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), nil, ErrInvalid},
		{AdvertiseRoutes{1, prefixes("96.0.0.0/4")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), nil, ErrInvalid},
		{AdvertiseRoutes{1, prefixes("127.0.0.1/32")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), nil, ErrInvalid},
		{AdvertiseRoutes{1, prefixes("169.254.169.254/32")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), nil, ErrInvalid},
		{AdvertiseRoutes{1, prefixes("fe80::/64")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), nil, ErrInvalid},
		{AdvertiseRoutes{1, []netip.Prefix{{}}}, prefixes("10.1.0.0/24", "10.2.0.0/24"), nil, ErrInvalid},
		{AdvertiseRoutes{9, prefixes("10.1.0.0/24")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), nil, ErrNotFound},
		{ApproveRoutes{1, prefixes("10.1.0.0/24")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), prefixes("10.1.0.0/24"), nil},
		{ApproveRoutes{1, nil}, prefixes("10.1.0.0/24", "10.2.0.0/24"), prefixes("10.1.0.0/24"), ErrInvalid},
		{ApproveRoutes{1, prefixes("0.0.0.0/0")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), prefixes("0.0.0.0/0", "10.1.0.0/24", "::/0"), nil},
		{RemoveRoutes{1, prefixes("10.2.0.0/24")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), prefixes("0.0.0.0/0", "10.1.0.0/24", "::/0"), ErrNotFound},
		{RemoveRoutes{1, prefixes("::/0")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), prefixes("10.1.0.0/24"), nil},
		{RemoveRoutes{1, prefixes("::/0")}, prefixes("10.1.0.0/24", "10.2.0.0/24"), prefixes("10.1.0.0/24"), ErrNotFound},
		{AdvertiseRoutes{1, nil}, nil, prefixes("10.1.0.0/24"), nil},
	} {
		if _, err := run(t, s, step.cmd, begin); !errors.Is(err, step.err) || (err == nil) != (step.err == nil) {
			t.Errorf("%+v: %v, want %v", step.cmd, err, step.err)
		}
		if d := s.Device(1); !slices.Equal(d.Advertised, step.advertised) || !slices.Equal(d.Approved, step.approved) {
			t.Errorf("after %+v: advertised %v, approved %v", step.cmd, d.Advertised, d.Approved)
		}
	}
	// Who registers again as the same keeps what was approved; another identity
	// begins with nothing.
	mustRun(t, s, register(1, "many"), begin)
	if d := s.Device(1); !slices.Equal(d.Approved, prefixes("10.1.0.0/24")) {
		t.Errorf("after another registration: approved %v", d.Approved)
	}
	mustRun(t, s, register(1, "db"), begin)
	if d := s.Device(1); len(d.Approved) != 0 {
		t.Errorf("another identity inherited the approval of %v", d.Approved)
	}
}
