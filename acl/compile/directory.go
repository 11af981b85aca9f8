package compile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/policy"
)

// User is a person of the network.
type User struct {
	ID ident.UserID
	// Name is the login name, Email the address; a selector may name either,
	// in any case. Email may be empty.
	Name, Email string
	// Role is "owner", "admin", "it-admin", "network-admin", "auditor",
	// "billing-admin", "member" or "", which is the same as "member".
	Role string
}

// Node is a device of the network.
type Node struct {
	ID   ident.NodeID
	Name string
	// Owner is the device's user, zero where it is tagged.
	Owner ident.UserID
	Tags  []ident.Tag
	// Addresses are the device's own.
	Addresses []netip.Addr
	// AdvertisedRoutes is what the device offers to route, Routes what of it
	// was approved.
	AdvertisedRoutes, Routes []netip.Prefix
	// Attributes are the posture attributes known of the device at present,
	// such as node:os, as text. Besides those of the language there are
	// warren:mfaAge (seconds since the last strong sign-in) and warren:risk (a
	// number).
	Attributes map[string]string
	// Granted names the resources that the device's user holds an approved
	// request for at present.
	Granted []string
}

// Directory is everyone and everything that a policy speaks of.
type Directory struct {
	Users []User
	Nodes []Node
}

// ErrDirectory is wrapped by the errors about users and devices that cannot
// be.
var ErrDirectory = errors.New("compile: invalid directory")

func (d *Directory) validate() error {
	users := make(map[ident.UserID]bool, len(d.Users))
	for _, u := range d.Users {
		if u.ID == 0 || users[u.ID] {
			return fmt.Errorf("%w: user %q has the id %v, which is zero or taken", ErrDirectory, u.Name, u.ID)
		}
		users[u.ID] = true
	}
	nodes := make(map[ident.NodeID]bool, len(d.Nodes))
	for _, n := range d.Nodes {
		if n.ID == 0 || nodes[n.ID] {
			return fmt.Errorf("%w: device %q has the id %v, which is zero or taken", ErrDirectory, n.Name, n.ID)
		}
		nodes[n.ID] = true
	}
	return nil
}

// clone copies what the caller may still write to.
func (n Node) clone() Node {
	n.Tags = slices.Clone(n.Tags)
	n.Addresses = slices.Clone(n.Addresses)
	n.AdvertisedRoutes = slices.Clone(n.AdvertisedRoutes)
	n.Routes = slices.Clone(n.Routes)
	slices.SortFunc(n.Routes, netip.Prefix.Compare)
	n.Routes = slices.Compact(n.Routes)
	n.Granted = slices.Clone(n.Granted)
	n.Attributes = cloneAttributes(n.Attributes)
	return n
}

// logins returns the names under which a selector may mean the user, in lower
// case. A name that is not an address is also written with an @ behind it,
// because the language tells users from hosts by that.
func (u *User) logins() []string {
	var out []string
	for _, s := range []string{u.Email, u.Name} {
		s = strings.ToLower(strings.TrimSpace(s))
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
		if s != "" && !strings.Contains(s, "@") {
			out = append(out, s+"@")
		}
	}
	return out
}

// domain returns what follows the @ of the user's address, or "".
func (u *User) domain() string {
	for _, s := range u.logins() {
		if _, domain, ok := strings.Cut(s, "@"); ok && domain != "" {
			return domain
		}
	}
	return ""
}

// localPart returns what comes before the @ of the user's address, or "".
func (u *User) localPart() string {
	for _, s := range u.logins() {
		if local, _, ok := strings.Cut(s, "@"); ok {
			return local
		}
	}
	return ""
}

// roles returns the autogroups that the user's role puts the user in. An owner
// is an admin too.
func (u *User) roles() []string {
	switch role := strings.ToLower(u.Role); role {
	case "owner":
		return []string{"autogroup:member", "autogroup:admin", "autogroup:owner"}
	case "admin", "it-admin", "network-admin", "auditor", "billing-admin":
		return []string{"autogroup:member", "autogroup:" + role}
	default:
		return []string{"autogroup:member"}
	}
}

// domains returns the domains that belong to the network: those of its owners,
// and where no owner has one those of all users.
func domains(users []User) map[string]bool {
	owners, all := map[string]bool{}, map[string]bool{}
	for i := range users {
		domain := users[i].domain()
		if domain == "" {
			continue
		}
		all[domain] = true
		if strings.EqualFold(users[i].Role, "owner") {
			owners[domain] = true
		}
	}
	if len(owners) > 0 {
		return owners
	}
	return all
}

// checkDomains refuses user:*@domain and localpart:*@domain of domains that
// are not the network's: someone else hands out the names there. Where no
// domain is known, none is refused.
func checkDomains(doc *policy.Document, users []User) error {
	own := domains(users)
	if len(own) == 0 {
		return nil
	}
	var errs policy.ErrorList
	check := func(section, domain string, pos policy.Position) {
		if !own[strings.ToLower(domain)] {
			errs = append(errs, &policy.ParseError{
				Position: pos, Text: domain,
				Message: fmt.Sprintf("[%s] %s is not associated with this network and cannot be used in user:*@<domain> expressions", section, domain),
				Hint:    "name the domain of the network's owner, or the users themselves",
			})
		}
	}
	selectors := func(section string, list []policy.Selector) {
		for _, s := range list {
			if s.Kind == policy.Domain {
				check(section, s.Name, s.Pos)
			}
		}
	}
	for _, r := range doc.Rules {
		selectors(r.Kind.String(), r.Src)
		for _, to := range r.Dst {
			selectors(r.Kind.String(), []policy.Selector{to.Selector})
		}
	}
	for _, a := range doc.NodeAttrs {
		selectors("nodeAttrs", a.Target)
	}
	for _, r := range doc.SSH {
		selectors("ssh", r.Src)
		for _, u := range r.Users {
			if domain, ok := localPartDomain(u.Name); ok {
				check("ssh", domain, u.Pos)
			}
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}

// localPartDomain returns the domain of "localpart:*@domain". Other texts that
// begin with "localpart:" are plain names.
func localPartDomain(user string) (string, bool) {
	return strings.CutPrefix(user, "localpart:*@")
}
