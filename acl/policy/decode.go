package policy

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/hujson"
	"github.com/warren-overlay/warren/acl/ident"
)

// Parse reads and checks a document. The error is an ErrorList, which wraps
// ErrInvalid. The text is not kept.
func Parse(text []byte) (*Document, error) {
	d := &decoder{
		reader: *newReader(text),
		doc:    &Document{},
		groups: map[string]bool{}, tags: map[ident.Tag]bool{}, hosts: map[string]netip.Prefix{},
		ipsets: map[string][]netip.Prefix{}, postures: map[string]bool{}, resources: map[string]bool{}, levels: map[string]bool{},
	}
	root, ok := d.parse()
	if ok {
		d.document(&root)
	}
	if err := d.errs.sorted(); err != nil {
		return nil, err
	}
	return d.doc, nil
}

// decoder fills a document, section by section: definitions first, so that
// rules can be checked against them.
type decoder struct {
	reader
	doc *Document

	groups    map[string]bool
	tags      map[ident.Tag]bool
	hosts     map[string]netip.Prefix
	ipsets    map[string][]netip.Prefix
	postures  map[string]bool
	resources map[string]bool
	levels    map[string]bool
	// combinations counts towards MaxCombinations.
	combinations int
}

func (d *decoder) groupNames() []string { return slices.Sorted(maps.Keys(d.groups)) }

func (d *decoder) hostNames() []string { return slices.Sorted(maps.Keys(d.hosts)) }

func (d *decoder) tagNames() []string {
	var out []string
	for _, t := range slices.Sorted(maps.Keys(d.tags)) {
		out = append(out, string(t))
	}
	return out
}

func (d *decoder) document(root *hujson.Value) {
	// The order of reading. Each section is read when all that it may refer
	// to has been.
	sections := []field{
		{"groups", d.readGroups},
		{"tagOwners", d.readTagOwners},
		{"hosts", d.readHosts},
		{"ipsets", d.readIPSets},
		{"postures", d.readPostures},
		{"defaultSrcPosture", func(v *hujson.Value) { d.doc.DefaultSrc = d.postureNames(v, "defaultSrcPosture") }},
		{"sensitivity", d.readSensitivity},
		{"resources", d.readResources},
		{"jit", d.readJIT},
		{"mode", func(v *hujson.Value) { d.doc.Mode = d.mode(v) }},
		{"acls", d.readACLs},
		{"grants", d.readGrants},
		{"ssh", d.readSSH},
		{"nodeAttrs", d.readNodeAttrs},
		{"autoApprovers", d.readApprovers},
		{"tests", d.readTests},
		{"sshTests", d.readSSHTests},
		{"randomizeClientPort", func(v *hujson.Value) { d.doc.Options.RandomizeClientPort = d.bool(v, "randomizeClientPort") }},
		{"disableIPv4", func(v *hujson.Value) { d.doc.Options.DisableIPv4 = d.bool(v, "disableIPv4") }},
		{"oneCGNATRoute", func(v *hujson.Value) { d.doc.Options.OneCGNATRoute, _ = d.string(v, "oneCGNATRoute") }},
		{"derpMap", d.readDERPMap},
	}
	values := make([]*hujson.Value, len(sections))
	collect := make([]field, len(sections))
	for i, s := range sections {
		collect[i] = field{s.name, func(v *hujson.Value) { values[i] = v }}
	}
	if !d.object(root, "the document", collect) {
		return
	}
	for i, s := range sections {
		if values[i] != nil {
			s.read(values[i])
		}
	}
	d.nameRules()
}

func (d *decoder) readDERPMap(v *hujson.Value) {
	if v.Value.Kind() != '{' {
		d.wrongKind(v, "derpMap", "an object, { }")
		return
	}
	d.doc.Options.DERPMap = minimal(v)
}

func (d *decoder) readGroups(v *hujson.Value) {
	d.entries(v, "groups", func(name string, at Position, v *hujson.Value) {
		rest, ok := strings.CutPrefix(name, "group:")
		if !ok || rest == "" || strings.ContainsAny(rest, " \t:@*") {
			d.fail(at, name, fmt.Sprintf("groups[%q]: a group's name must start with 'group:'", name), `write a name such as "group:eng"`)
			return
		}
		d.groups[name] = true
		errors := len(d.errs)
		members := d.selectors(v, fmt.Sprintf("groups[%q]", name), &groupMember)
		for _, e := range d.errs[errors:] {
			e.Message = fmt.Sprintf("groups[%q]: %s", name, e.Message)
		}
		d.doc.Groups = append(d.doc.Groups, Group{name, members, at})
	})
	slices.SortFunc(d.doc.Groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
}

func (d *decoder) readTagOwners(v *hujson.Value) {
	type entry struct {
		tag   ident.Tag
		at    Position
		value *hujson.Value
	}
	var all []entry
	d.entries(v, "tagOwners", func(name string, at Position, v *hujson.Value) {
		tag := ident.Tag(name)
		if !tag.Valid() {
			message, hint := "tag names must start with a letter, after 'tag:'", `go on with letters, digits and dashes, as in "tag:web-1"`
			if !strings.HasPrefix(name, "tag:") {
				message = "tag names must start with 'tag:'"
			}
			d.fail(at, name, fmt.Sprintf("tagOwners[%q]: %s", name, message), hint)
			return
		}
		d.tags[tag] = true
		all = append(all, entry{tag, at, v})
	})
	for _, e := range all {
		what := fmt.Sprintf("tagOwners[%q]", e.tag)
		d.doc.TagOwners = append(d.doc.TagOwners, TagOwner{e.tag, d.selectors(e.value, what, &people), e.at})
	}
	slices.SortFunc(d.doc.TagOwners, func(a, b TagOwner) int { return strings.Compare(string(a.Tag), string(b.Tag)) })
}

func (d *decoder) readHosts(v *hujson.Value) {
	d.entries(v, "hosts", func(name string, at Position, v *hujson.Value) {
		text, ok := d.string(v, fmt.Sprintf("hosts[%q]", name))
		if !ok {
			return
		}
		if strings.ContainsAny(name, " \t@*/:") {
			d.fail(at, name, fmt.Sprintf("hosts[%q]: a host's name has none of the characters @ * / : and space", name), `write a plain name, such as "db1"`)
			return
		}
		text = strings.TrimSpace(text)
		prefixes, message := parseAddresses(text)
		if message == "" && len(prefixes) != 1 {
			message = "a host is one address or prefix"
		}
		if message != "" {
			d.fail(d.at(v), text, fmt.Sprintf("hosts[%q]: %q: %s", name, text, message), "write an address or a prefix, such as 10.1.0.0/16")
			return
		}
		d.hosts[name] = prefixes[0]
		d.doc.Hosts = append(d.doc.Hosts, Host{name, prefixes[0], at})
	})
	slices.SortFunc(d.doc.Hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
}

// readIPSets reads sets, which may build on one another in any order.
func (d *decoder) readIPSets(v *hujson.Value) {
	type entry struct {
		name  string
		at    Position
		value *hujson.Value
	}
	all := map[string]entry{}
	d.entries(v, "ipsets", func(name string, at Position, v *hujson.Value) {
		if rest, ok := strings.CutPrefix(name, "ipset:"); !ok || rest == "" {
			d.fail(at, name, fmt.Sprintf("ipsets[%q]: an ipset's name must start with 'ipset:'", name), `write a name such as "ipset:offices"`)
			return
		}
		all[name] = entry{name, at, v}
	})
	open := map[string]bool{}
	work := 0
	var build func(e entry) addressSet
	build = func(e entry) addressSet {
		open[e.name] = true
		defer delete(open, e.name)
		what := fmt.Sprintf("ipsets[%q]", e.name)
		var set addressSet
		var pending []addressRange
		d.list(e.value, what, MaxSelectors, func(v *hujson.Value) {
			text, ok := d.string(v, "an entry of "+what)
			if !ok || work > MaxIPSetWork {
				return // the error about too much work has been reported
			}
			fields := strings.Fields(text)
			remove := len(fields) == 2 && fields[0] == "remove"
			if len(fields) == 2 && (remove || fields[0] == "add") {
				fields = fields[1:]
			}
			if len(fields) != 1 {
				d.fail(d.at(v), text, fmt.Sprintf("%s: invalid entry %q", what, text), `write an address, a prefix, a range, host:NAME or ipset:NAME, with "add" or "remove" before it`)
				return
			}
			var prefixes []netip.Prefix
			target := fields[0]
			host, _ := strings.CutPrefix(target, "host:")
			if other, ok := all[target]; ok {
				if open[target] {
					d.fail(d.at(v), text, fmt.Sprintf("%s: %q contains itself", what, target), "remove one of the references")
					return
				}
				if d.ipsets[target] == nil {
					d.ipsets[target] = build(other).prefixes()
				}
				prefixes = d.ipsets[target]
			} else if p, ok := d.hosts[host]; ok {
				prefixes = []netip.Prefix{p}
			} else {
				var message string
				if prefixes, message = parseAddresses(target); message != "" {
					d.fail(d.at(v), text, fmt.Sprintf("%s: %q: %s", what, target, message), "write an address, a prefix, a range, host:NAME or ipset:NAME")
					return
				}
			}
			if work += len(prefixes) * (1 + len(set)/100); work > MaxIPSetWork {
				d.fail(d.at(v), text, fmt.Sprintf("%s comes to too much", what), fmt.Sprintf("at most %d prefixes are worked through for all ipsets together", MaxIPSetWork))
				return
			}
			for _, p := range prefixes {
				if remove {
					set, pending = set.union(pending).remove(prefixRange(p)), nil
				} else {
					pending = append(pending, prefixRange(p))
				}
			}
		})
		return set.union(pending)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		e := all[name]
		if d.ipsets[name] == nil {
			d.ipsets[name] = build(e).prefixes()
		}
		d.doc.IPSets = append(d.doc.IPSets, IPSet{name, d.ipsets[name], e.at})
	}
}

func (d *decoder) mode(v *hujson.Value) Mode {
	s, ok := d.string(v, "mode")
	switch {
	case !ok || s == "enforce":
		return Enforce
	case s == "audit":
		return Audit
	}
	d.fail(d.at(v), s, fmt.Sprintf("%q is not a mode", s), `write "enforce" or "audit"`)
	return Enforce
}

// nameRules gives every rule an ID of its own. A derived ID depends on what
// the rule says and on nothing else.
func (d *decoder) nameRules() {
	taken := map[string]int{}
	for i := range d.doc.Rules {
		r := &d.doc.Rules[i]
		if r.ID == "" {
			continue
		}
		if first, ok := taken[r.ID]; ok {
			d.fail(r.Pos, r.ID, fmt.Sprintf("the id %q is taken", r.ID), fmt.Sprintf("the rule at line %d has it", d.doc.Rules[first].Pos.Line))
		}
		taken[r.ID] = i
	}
	copies := map[string]int{}
	var all []byte // the rules' bodies, one after the other
	ends := make([]int, len(d.doc.Rules)+1)
	for i := range d.doc.Rules {
		all = appendRule(all, &d.doc.Rules[i])
		ends[i+1] = len(all)
	}
	body := func(i int) []byte { return all[ends[i]:ends[i+1]] }
	for i := range d.doc.Rules {
		r := &d.doc.Rules[i]
		if r.ID != "" {
			continue
		}
		base := derivedID(r, body(i))
		r.ID = base
		for {
			copies[base]++
			if n := copies[base]; n > 1 {
				r.ID = fmt.Sprintf("%s.%d", base, n)
			}
			if _, ok := taken[r.ID]; !ok {
				break
			}
		}
		taken[r.ID] = i
	}
	var whole []byte
	for i := range d.doc.Rules {
		whole = appendWhole(whole[:0], &d.doc.Rules[i], body(i))
		d.doc.Rules[i].Digest = sha256.Sum256(whole)
	}
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// derivedID names a rule by what it says, as written.
func derivedID(r *Rule, body []byte) string {
	sum := sha256.Sum256(body)
	kind := "acl-"
	if r.Kind == Grant {
		kind = "grant-"
	}
	return kind + idEncoding.EncodeToString(sum[:])[:12]
}

// appendWhole describes a rule whole, addresses resolved.
func appendWhole(b []byte, r *Rule, body []byte) []byte {
	b = append(appendText(b, r.ID), body...)
	if r.SrcPosture == nil {
		b = append(b, 'd')
	}
	for _, s := range r.Src {
		b = appendPrefixes(b, s.Prefixes)
	}
	for _, s := range r.Dst {
		b = appendPrefixes(b, s.Prefixes)
	}
	return b
}

// appendRule appends what a rule says, as written, so that no two rules that
// say different things come to the same.
func appendRule(b []byte, r *Rule) []byte {
	b = append(b, byte(r.Kind), byte(r.Mode), 0)
	if r.Deny {
		b[len(b)-1] = 1
	}
	for _, t := range [2]time.Time{r.NotBefore, r.NotAfter} {
		b = binary.BigEndian.AppendUint64(b, uint64(t.Unix()))
	}
	b = binary.AppendUvarint(b, uint64(len(r.Src)))
	for _, s := range r.Src {
		b = appendText(append(b, byte(s.Kind)), s.Name)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Dst)))
	for _, s := range r.Dst {
		b = appendText(append(b, byte(s.Kind)), s.Name)
		b = appendServices(b, s.Services)
	}
	b = binary.AppendUvarint(b, uint64(len(r.App)))
	for _, a := range r.App {
		b = appendText(b, a.Name)
		b = binary.AppendUvarint(b, uint64(len(a.Values)))
		for _, v := range a.Values {
			b = appendText(b, v)
		}
	}
	for _, names := range [2][]Name{r.Via, r.SrcPosture} {
		b = binary.AppendUvarint(b, uint64(len(names)))
		for _, n := range names {
			b = appendText(b, n.Name)
		}
	}
	if r.Schedule != nil {
		b = fmt.Appendf(b, "%q %v", r.Schedule.Zone, r.Schedule.Windows)
	}
	return b
}

func appendServices(b []byte, services []Service) []byte {
	b = binary.AppendUvarint(b, uint64(len(services)))
	for _, service := range services {
		b = appendText(b, string(service.Protocols))
		b = binary.BigEndian.AppendUint16(b, service.First)
		b = binary.BigEndian.AppendUint16(b, service.Last)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendPrefixes(b []byte, list []netip.Prefix) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, p := range list {
		var err error
		if b, err = p.AppendBinary(b); err != nil {
			panic("BUG: policy: a prefix does not marshal: " + err.Error())
		}
	}
	return b
}
