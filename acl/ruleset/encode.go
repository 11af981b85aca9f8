package ruleset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/warren-overlay/warren/acl/ident"
)

// encodingVersion is the first byte of an encoded set. It changes when a field
// is added or its meaning changes; a device refuses a version that it does not
// know, because a rule of which it understands only a part is not a rule.
const encodingVersion = 1

const (
	// MaxEncodedSize bounds the input of Decode in bytes: 10,000 rules of usual
	// size are below 1 MiB.
	MaxEncodedSize = 16 << 20
	// MaxDecodedSize bounds what a decoded set takes in memory, in bytes. Rules
	// of usual size take three to six times what they are encoded in; the
	// shortest ones there are would take more than thirty times as much.
	MaxDecodedSize = 128 << 20
	// MaxRules bounds the rules of one direction of a decoded set.
	MaxRules = 100_000
	// MaxRuleIDLength bounds a rule's ID in bytes, because it is written into
	// every record of a flow.
	MaxRuleIDLength = 255

	// maxZoneLength is above the longest name of a time zone.
	maxZoneLength = 64
)

var (
	// ErrMalformedRuleSet is wrapped by every error of Decode.
	ErrMalformedRuleSet = errors.New("ruleset: malformed encoded rule set")
	// ErrRuleSetVersion is wrapped, beside ErrMalformedRuleSet, where the
	// encoding is of a version that this program does not know.
	ErrRuleSetVersion = errors.New("ruleset: unknown encoding version")
)

// AppendBinary appends the canonical encoding of the set to b and returns the
// extended slice. Two sets that hold the same rules in the same order have the
// same encoding, so that a signature over it is a signature over the set; host
// bits of prefixes and the time zone of times carry no meaning and are left
// out. A nil set is encoded as an empty one of epoch 0. What breaks a limit of
// Decode is encoded nevertheless, and refused there.
func (s *RuleSet) AppendBinary(b []byte) []byte {
	b = append(b, encodingVersion)
	if s == nil {
		s = &RuleSet{}
	}
	b = binary.BigEndian.AppendUint64(b, uint64(s.Epoch))
	for _, rules := range [2][]Rule{s.In, s.Out} {
		b = binary.AppendUvarint(b, uint64(len(rules)))
		for i := range rules {
			b = rules[i].appendBinary(b)
		}
	}
	return b
}

func (r *Rule) appendBinary(b []byte) []byte {
	b = appendString(b, string(r.ID))
	b = append(b, byte(r.Action), byte(r.Mode))
	b = appendTime(b, r.NotBefore)
	b = appendTime(b, r.NotAfter)
	b = r.Schedule.appendBinary(b)
	b = binary.BigEndian.AppendUint64(b, uint64(r.MaxSession))
	b = binary.AppendUvarint(b, uint64(len(r.Peers)))
	for _, sel := range r.Peers {
		b = binary.AppendUvarint(b, uint64(sel.Labels.Len()))
		for _, l := range sel.Labels.Slice() {
			b = binary.BigEndian.AppendUint64(b, uint64(l))
		}
		b = appendPrefixes(b, sel.Prefixes)
		if sel.Subnets {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	b = appendPrefixes(b, r.Own)
	b = binary.AppendUvarint(b, uint64(len(r.Services)))
	for _, svc := range r.Services {
		b = append(b, svc.Protocol)
		b = binary.BigEndian.AppendUint16(b, svc.First)
		b = binary.BigEndian.AppendUint16(b, svc.Last)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Capabilities)))
	for _, c := range r.Capabilities {
		b = appendString(b, c.Name)
		b = binary.AppendUvarint(b, uint64(len(c.Values)))
		for _, v := range c.Values {
			b = appendString(b, v)
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendBinary writes the number of windows first: 0 is no schedule.
func (s *Schedule) appendBinary(b []byte) []byte {
	if s == nil {
		return append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(len(s.windows)))
	for _, w := range s.windows {
		b = append(b, w.Days)
		b = binary.BigEndian.AppendUint16(b, w.Start)
		b = binary.BigEndian.AppendUint16(b, w.End)
	}
	return appendString(b, s.Zone())
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	b = append(b, 1)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Unix()))
	return binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
}

func appendPrefixes(b []byte, prefixes []netip.Prefix) []byte {
	b = binary.AppendUvarint(b, uint64(len(prefixes)))
	for _, p := range prefixes {
		// An invalid prefix contains nothing. It is kept, because a list that
		// became empty without it would mean something else and wider.
		a := p.Masked().Addr()
		switch {
		case !p.IsValid():
			b = append(b, 0)
		case a.Is4():
			a4 := a.As4()
			b = append(append(b, 4, byte(p.Bits())), a4[:]...)
		default:
			a16 := a.As16()
			b = append(append(b, 6, byte(p.Bits())), a16[:]...)
		}
	}
	return b
}

// Decode reads what AppendBinary wrote, and nothing else: what it accepts
// encodes again to the very same bytes. The result shares no memory with b.
// Empty lists come back as nil, times in UTC. Every error wraps
// ErrMalformedRuleSet and says where in b it is.
func Decode(b []byte) (*RuleSet, error) {
	if len(b) > MaxEncodedSize {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformedRuleSet, len(b), MaxEncodedSize)
	}
	d := &decoder{rest: b, size: len(b), memory: MaxDecodedSize, zones: map[string]*time.Location{}}
	if v := d.byte(); d.err == nil && v != encodingVersion {
		return nil, fmt.Errorf("%w: %w %d, want %d", ErrMalformedRuleSet, ErrRuleSetVersion, v, encodingVersion)
	}
	s := &RuleSet{Epoch: Epoch(d.uint64())}
	s.In = d.rules()
	s.Out = d.rules()
	if d.err == nil && len(d.rest) > 0 {
		d.refuse("%d bytes too many", len(d.rest))
	}
	if d.err != nil {
		return nil, d.err
	}
	return s, nil
}

// decoder reads from rest until err is set; after that every read gives zero.
type decoder struct {
	rest []byte
	size int
	// memory is what the rest of the set may still take.
	memory int
	// zones are those that were named, each loaded once: one takes kilobytes,
	// and a rule that names it some forty bytes.
	zones map[string]*time.Location
	err   error
}

func (d *decoder) refuse(format string, args ...any) {
	if d.err == nil {
		at := d.size - len(d.rest)
		d.err = fmt.Errorf("%w: byte %d: %s", ErrMalformedRuleSet, at, fmt.Sprintf(format, args...))
	}
	d.rest = nil
}

// take returns the next n bytes, or n zero bytes for an n of at most 16.
func (d *decoder) take(n int) []byte {
	if d.err == nil && n > len(d.rest) {
		d.refuse("the input ends %d bytes early", n-len(d.rest))
	}
	if d.err != nil {
		return make([]byte, min(n, 16))
	}
	taken := d.rest[:n]
	d.rest = d.rest[n:]
	return taken
}

func (d *decoder) byte() byte     { return d.take(1)[0] }
func (d *decoder) uint16() uint16 { return binary.BigEndian.Uint16(d.take(2)) }
func (d *decoder) uint64() uint64 { return binary.BigEndian.Uint64(d.take(8)) }

// item says what an item of a list takes, in bytes.
type item struct {
	encoded int // at least
	memory  int // by itself, on a machine of 64 bits
}

// count reads the length of a list. One of more items than the input or the
// memory has room for is refused before anything is made for it.
func (d *decoder) count(of item, limit int) int {
	n, size := binary.Uvarint(d.rest)
	if d.err != nil {
		return 0
	}
	switch {
	case size <= 0:
		d.refuse("a count that is cut off or too large")
	case size > 1 && d.rest[size-1] == 0:
		d.refuse("a count that is not in its shortest form")
	case n > uint64(limit):
		d.refuse("a count of %d, the limit is %d", n, limit)
	case n > uint64((len(d.rest)-size)/of.encoded):
		d.refuse("a count of %d, more than the input can hold", n)
	case n > uint64(d.memory/of.memory):
		d.refuse("a set that takes more than %d bytes of memory", MaxDecodedSize)
	default:
		d.rest = d.rest[size:]
		d.memory -= int(n) * of.memory
		return int(n)
	}
	return 0
}

// What lists hold.
var (
	ruleItem       = item{18, 184}
	selectorItem   = item{3, 56}
	prefixItem     = item{1, 32}
	capabilityItem = item{2, 40}
	textItem       = item{1, 16}
	byteItem       = item{1, 1}
	labelItem      = item{8, 8}
	serviceItem    = item{5, 6}
	windowItem     = item{5, 6}
)

func (d *decoder) rules() []Rule {
	n := d.count(ruleItem, MaxRules)
	if n == 0 {
		return nil
	}
	rules := make([]Rule, n)
	for i := range rules {
		if d.rule(&rules[i]); d.err != nil {
			return nil
		}
	}
	return rules
}

func (d *decoder) rule(r *Rule) {
	r.ID = RuleID(d.string(MaxRuleIDLength))
	if r.Action = Action(d.byte()); r.Action > Deny {
		d.refuse("unknown action %d", r.Action)
	}
	if r.Mode = Mode(d.byte()); r.Mode > Audit {
		d.refuse("unknown mode %d", r.Mode)
	}
	r.NotBefore = d.time()
	r.NotAfter = d.time()
	r.Schedule = d.schedule()
	r.MaxSession = time.Duration(d.uint64())
	if r.MaxSession < 0 || r.MaxSession%time.Second != 0 {
		d.refuse("a session of %d nanoseconds", int64(r.MaxSession))
	}
	if n := d.count(selectorItem, MaxEncodedSize); n > 0 {
		r.Peers = make([]Selector, n)
		for i := range r.Peers {
			r.Peers[i].Labels = d.labels()
			r.Peers[i].Prefixes = d.prefixes()
			r.Peers[i].Subnets = d.bool()
		}
	}
	r.Own = d.prefixes()
	if n := d.count(serviceItem, MaxEncodedSize); n > 0 {
		r.Services = make([]Service, n)
		for i := range r.Services {
			svc := Service{Protocol: d.byte(), First: d.uint16(), Last: d.uint16()}
			if svc.First > svc.Last {
				d.refuse("a port range from %d to %d", svc.First, svc.Last)
			}
			r.Services[i] = svc
		}
	}
	if n := d.count(capabilityItem, MaxEncodedSize); n > 0 {
		r.Capabilities = make([]Capability, n)
		for i := range r.Capabilities {
			c := &r.Capabilities[i]
			c.Name = d.string(MaxEncodedSize)
			if values := d.count(textItem, MaxEncodedSize); values > 0 {
				c.Values = make([]string, values)
				for k := range c.Values {
					c.Values[k] = d.string(MaxEncodedSize)
				}
			}
		}
	}
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.refuse("a truth value of %d", v)
	}
	return v == 1
}

func (d *decoder) string(limit int) string {
	b := d.take(d.count(byteItem, limit))
	if !utf8.Valid(b) {
		d.refuse("a text that is not UTF-8")
	}
	return string(b)
}

func (d *decoder) schedule() *Schedule {
	n := d.count(windowItem, MaxWindows)
	if n == 0 {
		return nil
	}
	windows := make([]Window, n)
	for i := range windows {
		windows[i] = Window{Days: d.byte(), Start: d.uint16(), End: d.uint16()}
	}
	zone := d.string(maxZoneLength)
	if d.err != nil {
		return nil
	}
	location, ok := d.zones[zone]
	var err error
	if !ok {
		if location, err = loadZone(zone); err != nil {
			d.refuse("%v", err)
			return nil
		}
		d.zones[zone] = location
	}
	s, err := newSchedule(location, windows)
	if err != nil {
		d.refuse("%v", err)
		return nil
	}
	if s.Zone() != zone || !slices.Equal(s.windows, windows) {
		d.refuse("a schedule that is not sorted")
	}
	return s
}

// The seconds since 1970 between which a time must lie: the years 1 to 9999,
// within which all arithmetic on times is exact.
const (
	earliestSecond = -62_135_596_800
	latestSecond   = 253_402_300_799
)

func (d *decoder) time() time.Time {
	switch d.byte() {
	case 0:
		return time.Time{}
	case 1:
	default:
		d.refuse("a time is neither absent nor present")
	}
	seconds := int64(d.uint64())
	nanoseconds := binary.BigEndian.Uint32(d.take(4))
	if d.err != nil {
		return time.Time{}
	}
	t := time.Unix(seconds, int64(nanoseconds)).UTC()
	if seconds < earliestSecond || seconds > latestSecond || nanoseconds >= 1e9 || t.IsZero() {
		d.refuse("a time out of range")
	}
	return t
}

func (d *decoder) labels() ident.LabelSet {
	n := d.count(labelItem, MaxEncodedSize)
	if n == 0 {
		return ident.LabelSet{}
	}
	labels := make([]ident.Label, n)
	for i := range labels {
		labels[i] = ident.Label(d.uint64())
		if d.err == nil && (labels[i] == 0 || i > 0 && labels[i] <= labels[i-1]) {
			d.refuse("labels that do not ascend")
		}
	}
	return ident.NewLabelSet(labels...)
}

func (d *decoder) prefixes() []netip.Prefix {
	n := d.count(prefixItem, MaxEncodedSize)
	if n == 0 {
		return nil
	}
	prefixes := make([]netip.Prefix, n)
	for i := range prefixes {
		prefixes[i] = d.prefix()
	}
	return prefixes
}

func (d *decoder) prefix() netip.Prefix {
	var a netip.Addr
	family := d.byte()
	switch family {
	case 0:
		return netip.Prefix{}
	case 4, 6:
	default:
		d.refuse("unknown address family %d", family)
	}
	bits := int(d.byte())
	if family == 4 {
		a = netip.AddrFrom4([4]byte(d.take(4)))
	} else {
		a = netip.AddrFrom16([16]byte(d.take(16)))
	}
	p := netip.PrefixFrom(a, bits)
	if d.err == nil && (!p.IsValid() || p.Masked() != p) {
		d.refuse("%v/%d is not a prefix", a, bits)
	}
	return p
}
