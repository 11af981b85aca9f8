package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Relay is a relay that nodes may meet at. An empty host in one of its addresses
// stands for the coordinator's own address as the node reached it.
type Relay struct {
	// Name tells the relay from the others. It is part of what a node proves on
	// admission, so the relay must know itself by the same.
	Name string
	// Region says where the relay stands, for people; it may be empty.
	Region string
	// URL is the ws or wss URL of the relay.
	URL string
	// UDP is the host:port at which the relay takes packets over UDP, empty where
	// it takes none.
	UDP string
	// STUN is the host:port of the STUN server beside the relay, empty where there
	// is none.
	STUN string
}

// ErrRelay is wrapped by the errors of Relay.Validate and ParseRelay.
var ErrRelay = errors.New("not the description of a relay")

// MaxRelays is how many relays a coordinator may name: every node measures all
// of them.
const MaxRelays = 64

// maxLabel is the longest label of a domain name (RFC 1035, 2.3.4).
const maxLabel = 63

// described reports whether the relay has what Version1 does not know.
func (r Relay) described() bool { return r.Region != "" || r.UDP != "" || r.STUN != "" }

// Validate reports what is wrong with the description: a name or region that is
// not of lower-case letters, digits and inner hyphens, at most 63 of them, a URL
// that is neither ws nor wss, or an address without a port. The error wraps
// ErrRelay.
func (r Relay) Validate() error {
	if !validLabel(r.Name) {
		return fmt.Errorf("%w: the name %q is not of lower-case letters, digits and inner hyphens", ErrRelay, r.Name)
	}
	if r.Region != "" && !validLabel(r.Region) {
		return fmt.Errorf("%w: the region %q of relay %s is not of lower-case letters, digits and inner hyphens", ErrRelay, r.Region, r.Name)
	}
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.User != nil || u.Opaque != "" || u.Fragment != "" {
		return fmt.Errorf("%w: the URL %q of relay %s is neither ws nor wss", ErrRelay, r.URL, r.Name)
	}
	if u.Port() != "" && !validPort(u.Port()) {
		return fmt.Errorf("%w: the URL %q of relay %s has no valid port", ErrRelay, r.URL, r.Name)
	}
	for _, a := range []struct{ what, address string }{{"udp", r.UDP}, {"stun", r.STUN}} {
		if a.address != "" && !validHostPort(a.address) {
			return fmt.Errorf("%w: %s of relay %s is %q, not HOST:PORT", ErrRelay, a.what, r.Name, a.address)
		}
	}
	return nil
}

// ParseRelay reads a description of the form
// name=NAME,url=URL[,region=REGION][,udp=HOST:PORT][,stun=HOST:PORT]. Unlike a
// description in general, one that is parsed names the host in its addresses.
// The error wraps ErrRelay.
func ParseRelay(text string) (Relay, error) {
	var r Relay
	fields := map[string]*string{"name": &r.Name, "region": &r.Region, "url": &r.URL, "udp": &r.UDP, "stun": &r.STUN}
	for part := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		field := fields[key]
		switch {
		case !ok || field == nil:
			return Relay{}, fmt.Errorf("%w: %q; want name=NAME,url=URL and perhaps region=REGION,udp=HOST:PORT,stun=HOST:PORT", ErrRelay, part)
		case value == "":
			return Relay{}, fmt.Errorf("%w: %s has no value", ErrRelay, key)
		case *field != "":
			return Relay{}, fmt.Errorf("%w: %s is given twice", ErrRelay, key)
		}
		*field = value
	}
	if err := r.Validate(); err != nil {
		return Relay{}, err
	}
	if u, err := url.Parse(r.URL); err != nil || u.Hostname() == "" {
		return Relay{}, fmt.Errorf("%w: the URL %q of relay %s names no host", ErrRelay, r.URL, r.Name)
	}
	for _, a := range []string{r.UDP, r.STUN} {
		if strings.HasPrefix(a, ":") {
			return Relay{}, fmt.Errorf("%w: %q of relay %s names no host", ErrRelay, a, r.Name)
		}
	}
	return r, nil
}

// validLabel reports whether s is a label of a domain name in lower case.
func validLabel(s string) bool {
	if s == "" || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// ErrServer is wrapped by errors about the address of a server.
var ErrServer = errors.New("wire: unusable server")

// CheckServer reports what is wrong with the HOST:PORT of a STUN server that is
// not beside the coordinator, nil for nothing. The error wraps ErrServer.
func CheckServer(s string) error {
	if !validHostPort(s) || strings.HasPrefix(s, ":") {
		return fmt.Errorf("%w: %q is not HOST:PORT", ErrServer, s)
	}
	return nil
}

// validHostPort takes an empty host for one that is left out.
func validHostPort(s string) bool {
	u, err := url.Parse("udp://" + s)
	if err != nil || u.Host != s || !validPort(u.Port()) {
		return false
	}
	if host := u.Hostname(); strings.Contains(host, ":") {
		_, err := netip.ParseAddr(host)
		return err == nil
	}
	return true
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}
