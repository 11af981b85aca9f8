package authority

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/canonical"
	"github.com/warren-overlay/warren/acl/ident"
)

// Certificate is everything about a device that its peers rely on. The
// coordinator signs it; peers believe nothing about a device that is not in it.
type Certificate struct {
	// Serial grows with every certificate of the network; a device never goes
	// back to a lower one for the same Node.
	Serial  uint64
	Node    ident.NodeID
	NodeKey ident.NodeKey
	// Name is the device's name in the network: one DNS label.
	Name   string
	Owner  ident.UserID
	Labels ident.LabelSet
	// Addresses are the device's own, 1 to 8, one of a family at least.
	Addresses []netip.Addr
	// Routes are the approved prefixes behind the device, ascending.
	Routes []netip.Prefix
	// NotBefore <= now < NotAfter is when the certificate holds, to the
	// second.
	NotBefore, NotAfter time.Time
}

const (
	certificateVersion = 1

	// Limits on what a certificate may hold. They bound what a peer costs the
	// devices that admit it.
	maxLabels    = 1024
	maxAddresses = 8
	maxRoutes    = 1024

	// maxValidity bounds a certificate's life, so that a lost device without
	// any coordinator ends some day. It is a year and a month.
	maxValidity = 400 * 24 * time.Hour

	// clockSkew is how far a coordinator's clock may be ahead of a device's.
	// It only widens NotBefore; nothing widens NotAfter.
	clockSkew = 5 * time.Minute
)

// appendBinary appends the canonical encoding of c.
func (c *Certificate) appendBinary(b []byte) []byte {
	b = canonical.AppendArray(b, 11)
	b = canonical.AppendUint(b, certificateVersion)
	b = canonical.AppendUint(b, c.Serial)
	b = canonical.AppendUint(b, uint64(c.Node))
	b = canonical.AppendBytes(b, c.NodeKey[:])
	b = canonical.AppendText(b, c.Name)
	b = canonical.AppendUint(b, uint64(c.Owner))
	b = canonical.AppendArray(b, c.Labels.Len())
	for _, l := range c.Labels.Slice() {
		b = canonical.AppendUint(b, uint64(l))
	}
	b = canonical.AppendArray(b, len(c.Addresses))
	for _, a := range c.Addresses {
		b = appendAddr(b, a)
	}
	b = canonical.AppendArray(b, len(c.Routes))
	for _, p := range c.Routes {
		b = appendPrefix(b, p)
	}
	b = canonical.AppendUint(b, uint64(c.NotBefore.Unix()))
	return canonical.AppendUint(b, uint64(c.NotAfter.Unix()))
}

func decodeCertificate(b []byte) (*Certificate, error) {
	r := canonical.NewReader(b)
	r.Record(11, certificateVersion)
	c := &Certificate{Serial: r.Uint(), Node: ident.NodeID(r.Uint())}
	r.Fixed(c.NodeKey[:])
	c.Name = r.Text(maxName)
	c.Owner = ident.UserID(r.Uint())
	var labels []ident.Label
	for range r.Array(maxLabels) {
		labels = append(labels, ident.Label(r.Uint()))
	}
	c.Labels = ident.NewLabelSet(labels...)
	if !slices.Equal(labels, c.Labels.Slice()) || len(labels) > 0 && labels[0] == 0 {
		r.Fail("labels not in ascending order, or one that is none")
	}
	for range r.Array(maxAddresses) {
		c.Addresses = append(c.Addresses, readAddr(r))
	}
	for range r.Array(maxRoutes) {
		c.Routes = append(c.Routes, readPrefix(r))
	}
	c.NotBefore, c.NotAfter = readTime(r), readTime(r)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: certificate: %w", ErrMalformed, err)
	}
	return c, nil
}

// maxName is the longest name in bytes (RFC 1035, section 2.3.4).
const maxName = 63

// ValidName reports whether s can name a device: one DNS label of lower-case
// letters, digits and inner dashes (RFC 1035, section 2.3.1, with the digit
// allowed first by RFC 1123, section 2.1). Names reach configuration files and
// screens, so nothing else is let through, by the signer or by the receiver.
func ValidName(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// check reports what in c the network does not allow, whatever the time.
func (c *Certificate) check(g *Genesis) error {
	switch {
	case c.Serial == 0 || c.Node == 0 || c.NodeKey.IsZero():
		return fmt.Errorf("%w: certificate without serial, device or key", ErrMalformed)
	case !ValidName(c.Name):
		return fmt.Errorf("%w: %q is not a device name", ErrOutOfBounds, c.Name)
	case len(c.Addresses) == 0 || len(c.Addresses) > maxAddresses:
		return fmt.Errorf("%w: %d addresses", ErrOutOfBounds, len(c.Addresses))
	case c.Labels.Len() > maxLabels || len(c.Routes) > maxRoutes:
		return fmt.Errorf("%w: more than %d labels or %d routes", ErrOutOfBounds, maxLabels, maxRoutes)
	case c.Labels.Len() > 0 && c.Labels.Slice()[0] == 0:
		return fmt.Errorf("%w: the label zero, which is none", ErrMalformed)
	case c.NotBefore.Unix() < 0 || c.NotAfter.Unix() > maxTime || c.NotBefore.Unix() >= c.NotAfter.Unix() ||
		c.NotAfter.Sub(c.NotBefore) > maxValidity:
		return fmt.Errorf("%w: valid from %v to %v", ErrOutOfBounds, c.NotBefore, c.NotAfter)
	}
	for i, a := range c.Addresses {
		if !g.inside(a) {
			return fmt.Errorf("%w: address %v lies outside %v and %v", ErrOutOfBounds, a, g.Prefix4, g.Prefix6)
		}
		if slices.Contains(c.Addresses[:i], a) {
			return fmt.Errorf("%w: address %v twice", ErrOutOfBounds, a)
		}
	}
	for i, p := range c.Routes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("%w: %v is not a prefix", ErrMalformed, p)
		}
		if i > 0 && comparePrefix(c.Routes[i-1], p) >= 0 {
			return fmt.Errorf("%w: routes not in ascending order", ErrMalformed)
		}
		// A default route contains the overlay too; the data plane always
		// prefers a device's own addresses over it. Anything narrower that
		// touches the overlay would claim other devices' addresses.
		if p.Bits() > 0 && (p.Overlaps(g.Prefix4) || p.Overlaps(g.Prefix6)) {
			return fmt.Errorf("%w: route %v overlaps the network's own addresses", ErrOutOfBounds, p)
		}
		if p.Bits() > 0 && unroutable(p) {
			return fmt.Errorf("%w: route %v is of no network that one device can reach for another", ErrOutOfBounds, p)
		}
	}
	return nil
}

// local are the ranges whose addresses mean something else on every device
// (RFC 6890): a route to them would lead peers to this device's own services,
// its link or its cloud's metadata.
var local = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/128"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::ffff:0:0/96"),
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// unroutable reports whether p lies in a local range. A wider route that
// contains one is sound: the filter drops packets to such addresses whatever
// the routes (design of the packet filter, P3 and P4).
func unroutable(p netip.Prefix) bool {
	for _, l := range local {
		if l.Overlaps(p) && l.Bits() <= p.Bits() {
			return true
		}
	}
	return false
}

// comparePrefix orders prefixes by address, then by length.
func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// SortRoutes brings routes into the order that a certificate wants and drops
// repeats. It sorts in place and returns the shortened slice.
func SortRoutes(routes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(routes, comparePrefix)
	return slices.Compact(routes)
}

// IssueCertificate signs c for the network that g begins, with times cut to
// seconds. It refuses what Admit would refuse of it at c.NotBefore, whatever
// was admitted before, so that a coordinator cannot hand out a certificate that
// nobody takes. The error wraps ErrMalformed, ErrOutOfBounds
// or ErrSigner.
func IssueCertificate(g *Genesis, c *Certificate, signer ident.SignerPrivate) ([]byte, error) {
	if err := c.check(g); err != nil {
		return nil, err
	}
	if !g.may(signer.Public(), SignDevices) {
		return nil, ErrSigner
	}
	return sign(kindDevice, g.Fingerprint(), c.appendBinary(nil), signer), nil
}
