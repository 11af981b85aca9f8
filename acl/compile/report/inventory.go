package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/warren-overlay/warren/acl/compile"
	"github.com/warren-overlay/warren/acl/ident"
)

// ErrInventory is wrapped by every error about an inventory.
var ErrInventory = errors.New("report: invalid inventory")

// MaxInventorySize bounds an inventory in bytes: 100,000 devices of 300 bytes.
const MaxInventorySize = 32 << 20

type inventoryUser struct {
	ID    json.RawMessage `json:"id"`
	Name  string          `json:"name"`
	Email string          `json:"email"`
	Role  string          `json:"role"`
}

type inventoryNode struct {
	Name       string            `json:"name"`
	User       *string           `json:"user"`
	Tags       []string          `json:"tags"`
	IPv4       string            `json:"ipv4"`
	IPv6       string            `json:"ipv6"`
	Advertised []string          `json:"advertised_routes"`
	Approved   []string          `json:"approved_routes"`
	Attributes map[string]string `json:"attributes"`
	Granted    []string          `json:"granted"`
}

// ParseInventory reads {"users": […], "nodes": […]}. Users and devices get
// ids in the order in which they are listed, from 1; the ids of the text are
// for its author. Empty text is an empty directory. The error wraps
// ErrInventory.
func ParseInventory(text []byte) (compile.Directory, error) {
	var in struct {
		Users []inventoryUser `json:"users"`
		Nodes []inventoryNode `json:"nodes"`
	}
	var dir compile.Directory
	if len(text) > MaxInventorySize {
		return dir, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrInventory, len(text), MaxInventorySize)
	}
	if len(text) == 0 {
		return dir, nil
	}
	if err := json.Unmarshal(text, &in); err != nil {
		return dir, fmt.Errorf("%w: %w", ErrInventory, err)
	}
	byName := map[string]ident.UserID{}
	for i, u := range in.Users {
		id := ident.UserID(i + 1)
		dir.Users = append(dir.Users, compile.User{ID: id, Name: u.Name, Email: u.Email, Role: u.Role})
		for _, name := range []string{u.Email, u.Name} {
			if name != "" {
				byName[strings.ToLower(name)] = id
			}
		}
	}
	for i, n := range in.Nodes {
		node, err := n.node(ident.NodeID(i+1), byName)
		if err != nil {
			return compile.Directory{}, fmt.Errorf("%w: node %q: %w", ErrInventory, n.Name, err)
		}
		dir.Nodes = append(dir.Nodes, node)
	}
	return dir, nil
}

func (n *inventoryNode) node(id ident.NodeID, users map[string]ident.UserID) (compile.Node, error) {
	out := compile.Node{ID: id, Name: n.Name, Attributes: n.Attributes, Granted: n.Granted}
	if n.Name == "" {
		return out, errors.New("it has no name")
	}
	for _, t := range n.Tags {
		tag := ident.Tag(t)
		if !tag.Valid() {
			return out, fmt.Errorf("%q is not a tag", t)
		}
		out.Tags = append(out.Tags, tag)
	}
	if n.User != nil && *n.User != "" && len(n.Tags) == 0 {
		owner, ok := users[strings.ToLower(*n.User)]
		if !ok {
			return out, fmt.Errorf("its user %q is not among the users", *n.User)
		}
		out.Owner = owner
	}
	for _, text := range []string{n.IPv4, n.IPv6} {
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			return out, fmt.Errorf("%q is not an address", text)
		}
		out.Addresses = append(out.Addresses, a)
	}
	var err error
	if out.AdvertisedRoutes, err = prefixes(n.Advertised); err != nil {
		return out, err
	}
	out.Routes, err = prefixes(n.Approved)
	return out, err
}

func prefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a prefix", text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
