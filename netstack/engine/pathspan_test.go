package engine

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/warren-overlay/warren/netstack/config"
	"github.com/warren-overlay/warren/netstack/wg"
)

// TestTaken: a packet took the way of the moment when it was sent, or the first one
// after where there was none; what it may have taken besides is told, once each and
// not without end.
func TestTaken(t *testing.T) {
	addr := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), port) }
	conn := &relayConn{relay: config.Relay{Name: "fra-1", Region: "eu"}}
	none, relayed, direct := wg.Path{}, wg.Path{Relay: conn}, wg.Path{Direct: addr(1)}
	both := wg.Path{Direct: addr(1), Relay: conn, Both: true}
	flapping := []wg.Path{relayed}
	for port := range uint16(20) {
		flapping = append(flapping, wg.Path{Direct: addr(port + 1)})
	}
	const r, d = "relay fra-1 (eu)", "direct 192.0.2.9:1"
	for name, c := range map[string]struct {
		before, after []wg.Path
		path          string
		others        []string
	}{
		"nothing changed":            {[]wg.Path{none, relayed}, nil, r, nil},
		"an older path is not told":  {[]wg.Path{direct, relayed}, nil, r, nil},
		"relay, then direct":         {[]wg.Path{relayed}, []wg.Path{direct}, r, []string{d}},
		"direct, then relay":         {[]wg.Path{direct}, []wg.Path{relayed}, d, []string{r}},
		"there and back":             {[]wg.Path{relayed}, []wg.Path{direct, relayed}, r, []string{d}},
		"it waited for a path":       {[]wg.Path{none}, []wg.Path{relayed}, r, nil},
		"it waited, then a change":   {[]wg.Path{none}, []wg.Path{relayed, direct}, r, []string{d}},
		"the path was lost":          {[]wg.Path{relayed}, []wg.Path{none}, r, nil},
		"never any":                  {[]wg.Path{none}, nil, "none", nil},
		"both ways":                  {[]wg.Path{both}, nil, d, []string{r}},
		"in doubt before the answer": {[]wg.Path{direct}, []wg.Path{both}, d, []string{r}},
		"again and again":            {flapping[:1], flapping[1:], r, []string{d, "direct 192.0.2.9:2", "direct 192.0.2.9:3", "direct 192.0.2.9:4"}},
	} {
		p := new(peer)
		for _, to := range c.before {
			p.notePath(to)
		}
		sent := p.span.Load()
		for _, to := range c.after {
			p.notePath(to)
		}
		path, others := sent.taken()
		var told []string
		for _, o := range others {
			told = append(told, o.String())
		}
		if path.String() != c.path || !slices.Equal(told, c.others) {
			t.Errorf("%s: %v, others %q; want %s, %q", name, path, told, c.path, c.others)
		}
	}
	if path, others := (*pathSpan)(nil).taken(); path.Kind != PathNone || others != nil {
		t.Errorf("before anything: %v, %v", path, others)
	}
}
