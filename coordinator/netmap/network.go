package netmap

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// Config is what a Network needs beside the state.
type Config struct {
	Genesis *authority.Genesis
	// Signer holds all signing roles.
	Signer ident.SignerPrivate
	// Labels is the secret that label numbers are derived from.
	Labels ident.LabelKey
	// Validity is the life of a certificate; zero is DefaultValidity.
	Validity time.Duration
	// Relays and STUN are told to every device.
	Relays []wire.Relay
	STUN   []string
}

// DefaultValidity is the life of a certificate where the configuration says
// nothing: how long a device that cannot be told of its end could at most go
// on with peers that cannot be told either.
const DefaultValidity = 7 * 24 * time.Hour

// backdate is how long before its signing a certificate begins to hold, so
// that a device whose clock is behind takes it all the same (F11).
const backdate = 24 * time.Hour

// Presence is what a device says of itself and the coordinator sees of it.
type Presence struct {
	Online    bool
	Endpoints []netip.AddrPort
	OS        string
	// HomeRelay is the name of the relay at which the device listens, empty for
	// none.
	HomeRelay string
}

func (p *Presence) equal(q *Presence) bool {
	return p.Online == q.Online && p.OS == q.OS && p.HomeRelay == q.HomeRelay && slices.Equal(p.Endpoints, q.Endpoints)
}

// Touch says that the view of a device is no longer what it was: all of it
// where Subject is zero, else what it shows of that peer.
type Touch struct {
	Viewer, Subject ident.NodeID
	// Gone says that the viewer must not hold Subject any more, whatever else is
	// so: it costs nearly nothing to tell, and must be told first.
	Gone bool
}

// Network is what the devices of a network are told.
type Network struct {
	cfg    Config
	state  *registry.State
	policy *compile.Policy
	// candidate is the document in audit, nil for none. It has the same devices
	// and users, and nobody sees anybody by it.
	candidate *compile.Policy
	// candidateError is why the state's candidate does not compile.
	candidateError error
	presence       map[ident.NodeID]Presence
	// issued holds the certificates of the state, verified.
	issued map[ident.NodeID]*authority.Peer
	// rules holds signed rules until they change; views are asked for one by
	// one, so what nobody asks for is not signed.
	rules map[ident.NodeID][]byte
	// candidates holds signed candidate rules likewise.
	candidates map[ident.NodeID][]byte
	// stale are the devices whose certificate may say what is no longer so.
	stale map[ident.NodeID]bool
	// excessive are those whose certificate claims more than is so, as long as
	// nobody was told; withheld those of which nobody is told.
	excessive, withheld map[ident.NodeID]bool
}

// ErrPolicy is wrapped by every PolicyError.
var ErrPolicy = errors.New("netmap: policy refused")

// ErrNoView means that a device cannot be told anything, because its own
// certificate or rules could not be made. Others are not affected.
var ErrNoView = errors.New("netmap: nothing to tell this device")

// New returns the network of the state. The error wraps ErrPolicy where the
// policy in force does not compile; the coordinator then serves no maps rather
// than other ones.
func New(cfg Config, state *registry.State, now time.Time) (*Network, error) {
	if cfg.Validity == 0 {
		cfg.Validity = DefaultValidity
	}
	n := &Network{
		cfg: cfg, state: state, presence: make(map[ident.NodeID]Presence),
		issued: make(map[ident.NodeID]*authority.Peer), rules: make(map[ident.NodeID][]byte), candidates: make(map[ident.NodeID][]byte), stale: make(map[ident.NodeID]bool),
		excessive: make(map[ident.NodeID]bool), withheld: make(map[ident.NodeID]bool),
	}
	doc, err := parse(state.Policy().Text)
	if err != nil {
		return nil, err
	}
	if n.policy, err = n.compile(doc, state.Policy().Epoch, n.members()); err != nil {
		return nil, err
	}
	for _, d := range n.members() {
		n.route(d)
	}
	n.candidateError = n.setCandidate()
	verifier, err := authority.New(cfg.Genesis, ident.NodeKey{}, authority.State{})
	if err != nil {
		return nil, fmt.Errorf("netmap: %w", err)
	}
	for _, d := range n.members() {
		n.stale[d.ID] = true
		if cert := state.Certificate(d.ID); cert != nil {
			// One that does not verify, because it expired, is made anew.
			if peer, err := verifier.Admit(cert.Signed, now); err == nil {
				n.issued[d.ID] = peer
			}
		}
	}
	return n, nil
}

// parse reads a policy's text. An empty one denies everything.
func parse(text string) (*policy.Document, error) {
	if text == "" {
		return nil, nil
	}
	doc, err := policy.Parse([]byte(text))
	if err != nil {
		return nil, refused(err)
	}
	return doc, nil
}

// member returns the device with the id, nil where there is none or its user
// is suspended: then it is told nothing, and nobody is told of it.
func (n *Network) member(id ident.NodeID) *registry.Device {
	d := n.state.Device(id)
	if d == nil || n.state.Suspended(d.Owner) {
		return nil
	}
	return d
}

// members returns all members by ascending id.
func (n *Network) members() []*registry.Device {
	return slices.DeleteFunc(n.state.Devices(), func(d *registry.Device) bool { return n.state.Suspended(d.Owner) })
}

func (n *Network) compile(doc *policy.Document, epoch ruleset.Epoch, devices []*registry.Device) (*compile.Policy, error) {
	dir := compile.Directory{Users: n.users()}
	for _, d := range devices {
		dir.Nodes = append(dir.Nodes, node(d))
	}
	p, err := compile.Compile(doc, dir, n.cfg.Labels, epoch)
	if err != nil {
		return nil, refused(err)
	}
	return p, nil
}

func (n *Network) users() []compile.User {
	var out []compile.User
	for _, u := range n.state.Users() {
		out = append(out, compile.User{ID: u.ID, Name: u.Login, Email: u.Login})
	}
	return out
}

func node(d *registry.Device) compile.Node {
	return compile.Node{
		ID: d.ID, Name: d.Name, Owner: d.Owner, Tags: d.Tags, Addresses: []netip.Addr{d.IPv4, d.IPv6},
		AdvertisedRoutes: d.Advertised,
	}
}

// Routes returns what a device may route at present: of what it offers that
// which an administrator or the policy's autoApprovers approve, in the order
// of a certificate. Default routes come in pairs or not at all.
func (n *Network) Routes(id ident.NodeID) []netip.Prefix {
	d := n.member(id)
	if d == nil {
		return nil
	}
	return n.routes(d)
}

func (n *Network) routes(d *registry.Device) []netip.Prefix {
	approved := func(p netip.Prefix) bool {
		return slices.Contains(d.Approved, p) || n.policy.AutoApproved(d.ID, p)
	}
	exit := !slices.ContainsFunc(registry.Exit(), func(p netip.Prefix) bool {
		return !slices.Contains(d.Advertised, p) || !approved(p)
	})
	var out []netip.Prefix
	for _, p := range d.Advertised {
		if p.Bits() > 0 && approved(p) || p.Bits() == 0 && exit {
			out = append(out, p)
		}
	}
	return out
}

// route tells the policy what the device may route, and returns the devices
// for which that changes something. Who approves may depend on the device's
// tags and groups, so the policy must know the device already.
func (n *Network) route(d *registry.Device) []ident.NodeID {
	routes := n.routes(d)
	if len(routes) == 0 {
		return nil
	}
	described := node(d)
	described.Routes = routes
	return n.policy.SetNode(described)
}

// reroute asks again what devices may route, and returns the views that
// changed.
func (n *Network) reroute(t *toucher) {
	for _, d := range n.members() {
		if len(d.Advertised) == 0 {
			continue
		}
		described := node(d)
		described.Routes = n.routes(d)
		t.whole(n.policy.SetNode(described))
		n.describeToCandidate(described, t)
		n.stale[d.ID] = true
	}
}

// GrantedTags returns those of the tags that the policy lets the user give to
// a device.
func (n *Network) GrantedTags(user ident.UserID, tags []ident.Tag) []ident.Tag {
	var out []ident.Tag
	for _, t := range tags {
		if n.policy.MayTag(user, t) {
			out = append(out, t)
		}
	}
	return out
}

// HandleChanges follows changes that were just applied to the state. It
// returns the views that changed, in no order that means anything, perhaps
// with repeats. The error wraps ErrPolicy for a new policy that does not
// compile, which CheckPolicy would have found; then the old one stays in force.
func (n *Network) HandleChanges(c *registry.Changes) ([]Touch, error) {
	touched := toucher{n: n}
	if len(c.Users) > 0 {
		touched.whole(n.policy.SetUsers(n.users()))
		if n.candidate != nil {
			touched.outlook(n.candidate.SetUsers(n.users()))
		}
	}
	for _, u := range c.Users {
		n.handleSuspension(&u, &touched)
	}
	for _, id := range c.Removed {
		n.remove(id, &touched)
	}
	for _, d := range c.Devices {
		n.set(&d, &touched)
	}
	for _, cert := range c.Certificates {
		if err := n.handleCertificate(&cert, &touched); err != nil {
			return touched.list, err
		}
	}
	if c.Policy != nil {
		if err := n.setPolicy(c.Policy, &touched); err != nil {
			return touched.list, err
		}
	}
	if c.Candidate != nil {
		n.candidateError = n.setCandidate()
		touched.whole(n.policy.Nodes())
	}
	if len(c.Switches) > 0 {
		for _, id := range n.policy.Nodes() { // neither rules nor certificates change
			touched.list = append(touched.list, Touch{Viewer: id})
		}
	}
	return touched.list, nil
}

func (n *Network) setPolicy(p *registry.Policy, t *toucher) error {
	doc, err := parse(p.Text)
	if err != nil {
		return err
	}
	changed, err := n.policy.SetDocument(doc, p.Epoch)
	if err != nil {
		return refused(err)
	}
	t.whole(changed)
	n.reroute(t)
	return nil
}

// handleSuspension takes the devices of a user out who is suspended, and back
// in where that is over.
func (n *Network) handleSuspension(u *registry.User, t *toucher) {
	for _, d := range n.state.DevicesOf(u.ID) {
		_, in := n.policy.Identity(d.ID)
		switch member := n.member(d.ID) != nil; {
		case in && !member:
			n.remove(d.ID, t)
		case !in && member:
			n.set(d, t)
		}
	}
}

// remove forgets a device that is no member any more.
func (n *Network) remove(id ident.NodeID, t *toucher) {
	viewers := n.policy.RemoveNode(id)
	for _, viewer := range viewers {
		if viewer != id {
			t.list = append(t.list, Touch{Viewer: viewer, Subject: id, Gone: true})
		}
	}
	t.whole(viewers)
	if n.candidate != nil {
		n.candidate.RemoveNode(id) // whoever saw the device is touched by that
	}
	delete(n.presence, id)
	delete(n.issued, id)
	delete(n.rules, id)
	delete(n.candidates, id)
	delete(n.stale, id)
	delete(n.excessive, id)
	delete(n.withheld, id)
}

// set takes over what a member is by now.
func (n *Network) set(d *registry.Device, t *toucher) {
	n.stale[d.ID] = true
	described := node(d)
	if have, ok := n.policy.Identity(d.ID); ok {
		described.Routes = have.Routes // until it is known who approves
	}
	t.whole(n.policy.SetNode(described))
	if described.Routes = n.routes(d); !slices.Equal(described.Routes, n.heldRoutes(d.ID)) {
		t.whole(n.policy.SetNode(described))
	}
	n.describeToCandidate(described, t)
}

// heldRoutes returns what the policy believes that the device routes.
func (n *Network) heldRoutes(id ident.NodeID) []netip.Prefix {
	held, ok := n.policy.Identity(id)
	if !ok {
		return nil
	}
	return held.Routes
}

// toucher collects touches and drops what they make stale.
type toucher struct {
	n    *Network
	list []Touch
}

// whole marks devices whose labels, rules or peers may have changed.
func (t *toucher) whole(ids []ident.NodeID) {
	for _, id := range ids {
		delete(t.n.rules, id)
		delete(t.n.candidates, id)
		if t.n.member(id) != nil {
			t.n.stale[id] = true
		}
		t.list = append(t.list, Touch{Viewer: id})
	}
}

// handleCertificate takes over a certificate that is now recorded.
func (n *Network) handleCertificate(cert *registry.Certificate, t *toucher) error {
	verifier, err := authority.New(n.cfg.Genesis, ident.NodeKey{}, authority.State{})
	if err != nil {
		return fmt.Errorf("netmap: %w", err)
	}
	peer, err := verifier.Admit(cert.Signed, cert.NotAfter.Add(-time.Second))
	if err != nil {
		return fmt.Errorf("netmap: certificate %d: %w", cert.Serial, err)
	}
	before := n.issued[cert.Node]
	n.issued[cert.Node] = peer
	delete(n.stale, cert.Node)
	delete(n.excessive, cert.Node)
	shown := !n.withheld[cert.Node]
	delete(n.withheld, cert.Node)
	delete(n.rules, cert.Node) // they carry its serial
	t.list = append(t.list, Touch{Viewer: cert.Node})
	for _, viewer := range n.policy.Peers(cert.Node) {
		touch := Touch{Viewer: viewer, Subject: cert.Node}
		if !shown || before == nil || before.Identity().Owner != peer.Identity().Owner {
			touch.Subject = 0 // who is there, or the viewer's list of users, changes as well
		}
		t.list = append(t.list, touch)
	}
	return nil
}

// SetPresence notes what is known of a device now, and returns the views that
// changed.
func (n *Network) SetPresence(id ident.NodeID, p Presence) []Touch {
	before := n.presence[id]
	if n.member(id) == nil || before.equal(&p) {
		return nil
	}
	p.Endpoints = slices.Clone(p.Endpoints)
	n.presence[id] = p
	var out []Touch
	for _, viewer := range n.policy.Peers(id) {
		out = append(out, Touch{Viewer: viewer, Subject: id})
	}
	return out
}

// Presence returns what is known of a device now.
func (n *Network) Presence(id ident.NodeID) Presence { return n.presence[id] }

// Policy returns the compiled policy. The caller must not change it.
func (n *Network) Policy() *compile.Policy { return n.policy }

// Peers returns the devices that a device may see, ascending.
func (n *Network) Peers(id ident.NodeID) []ident.NodeID { return n.policy.Peers(id) }

// staleDevices returns the devices to look at, ascending.
func (n *Network) staleDevices() []ident.NodeID { return slices.Sorted(maps.Keys(n.stale)) }
