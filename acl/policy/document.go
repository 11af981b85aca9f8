package policy

import (
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// Document is a policy as it was written, checked as far as the text alone can
// be. Lists keep the order of the text; sections that are objects are sorted
// by name.
type Document struct {
	Groups     []Group
	TagOwners  []TagOwner
	Hosts      []Host
	IPSets     []IPSet
	Rules      []Rule // acls first, then grants
	Postures   []Posture
	SSH        []SSHRule
	NodeAttrs  []NodeAttr
	Approvers  AutoApprovers
	Tests      []Test
	SSHTests   []SSHTest
	Resources  []Resource
	Levels     []Level // sensitivity
	JIT        []JIT
	Mode       Mode
	Options    Options
	DefaultSrc []Name // defaultSrcPosture
	// ACLs and Grants say whether the sections are there at all, even empty.
	ACLs, Grants bool
}

// Mode says whether a rule acts or only reports.
type Mode uint8

const (
	// Enforce rules act.
	Enforce Mode = iota
	// Audit rules are computed and reported, never applied.
	Audit
)

// Name is a name with the place where it was written.
type Name struct {
	Name string
	Pos  Position
}

// Group is a named list of users. Groups do not nest.
type Group struct {
	Name    string // with "group:"
	Members []Selector
	Pos     Position
}

// TagOwner says who may give a tag to a device.
type TagOwner struct {
	Tag    ident.Tag
	Owners []Selector
	Pos    Position
}

// Host is a name for an address or prefix.
type Host struct {
	Name   string
	Prefix netip.Prefix
	Pos    Position
}

// IPSet is a named set of addresses.
type IPSet struct {
	Name string // with "ipset:"
	// Prefixes is what its entries come to, sorted and without overlap.
	Prefixes []netip.Prefix
	Pos      Position
}

// Kind says what a selector names.
type Kind uint8

const (
	// Any is "*": every device and, as a source, the subnets behind it; as a
	// destination every address.
	Any Kind = iota
	// User is a login name, in lower case.
	User
	// Domain is "user:*@domain"; Name is the domain in lower case.
	Domain
	// GroupName is "group:name".
	GroupName
	// TagName is "tag:name".
	TagName
	// Autogroup is "autogroup:name".
	Autogroup
	// Address is an address, a prefix, a range, a host or an ipset.
	Address
	// ResourceName is "resource:name"; it stands for the resource's targets.
	ResourceName
)

// Selector names devices or addresses.
type Selector struct {
	Kind Kind
	// Name is the name with its prefix, except as Kind says. For an Address
	// it is the text as written.
	Name string
	// Prefixes are what an Address comes to, never empty then.
	Prefixes []netip.Prefix
	Pos      Position
}

// Service is protocols and a range of destination ports.
type Service struct {
	// Protocols are IP protocol numbers.
	Protocols []uint8
	// First and Last bound the ports, both included. A protocol that has no
	// ports is not bound by them.
	First, Last uint16
}

// Destination is where a rule leads.
type Destination struct {
	Selector
	// Services is what is admitted there; empty where a grant has no ip.
	Services []Service
}

// App is an application's capability.
type App struct {
	Name string
	// Values are the parameters, each one JSON value in minimal form.
	Values []string
	Pos    Position
}

// RuleKind says in which section a rule stands.
type RuleKind uint8

const (
	// ACL is an entry of acls.
	ACL RuleKind = iota
	// Grant is an entry of grants.
	Grant
)

// String returns the section's name.
func (k RuleKind) String() string {
	if k == ACL {
		return "acls"
	}
	return "grants"
}

// Rule admits or refuses flows.
type Rule struct {
	// ID is the rule's name, given or derived from its content. It is unique
	// in the document.
	ID    string
	Kind  RuleKind
	Index int // in its section, from 0
	Deny  bool
	Mode  Mode
	Src   []Selector
	Dst   []Destination
	App   []App
	Via   []Name // tags
	// SrcPosture lists postures of which the source must satisfy one; nil
	// takes the document's default.
	SrcPosture          []Name
	NotBefore, NotAfter time.Time
	Schedule            *Schedule
	// Digest is equal for rules that say the same, names of hosts and ipsets
	// replaced by what they stand for. The place in the text does not count.
	Digest [32]byte
	Pos    Position
}

// Schedule is when in a week a rule holds.
type Schedule struct {
	Zone    string // IANA time zone, "" is UTC
	Windows []Window
}

// Window is a part of the day on some days of the week; see ruleset.Window.
type Window struct {
	Days       uint8
	Start, End uint16
}

// Posture is a named list of conditions, of which all must be true.
type Posture struct {
	Name       string // with "posture:"
	Conditions []Condition
	Pos        Position
}

// SSHRule admits logins. The first match in the order check before accept
// wins.
type SSHRule struct {
	Check bool
	// CheckPeriod is how long a check holds; 0 asks every time ("always"), and
	// where none was written it is DefaultCheckPeriod.
	CheckPeriod time.Duration
	Src, Dst    []Selector
	Users       []Name
	AcceptEnv   []string
	Recorder    []Selector
	Enforce     bool // enforceRecorder
	SrcPosture  []Name
	Pos         Position
}

// DefaultCheckPeriod is how long a check holds where nothing else was written.
const DefaultCheckPeriod = 12 * time.Hour

// NodeAttr gives attributes to devices.
type NodeAttr struct {
	Target []Selector
	Attr   []Name
	App    []App
	IPPool []netip.Prefix
	Pos    Position
}

// AutoApprovers says whose advertised routes need no approval.
type AutoApprovers struct {
	Routes   []RouteApprover
	ExitNode []Selector
	Services []ServiceApprover
}

// RouteApprover says who may route a prefix and all prefixes within it.
type RouteApprover struct {
	Prefix    netip.Prefix
	Approvers []Selector
	Pos       Position
}

// ServiceApprover says who may offer a named service.
type ServiceApprover struct {
	Service   string
	Approvers []Selector
	Pos       Position
}

// Test asserts what a source may and may not reach.
type Test struct {
	Src Name
	// Protocol is the IP protocol number, 0 where none was written.
	Protocol uint8
	// Accept and Deny are destinations as written, "host:port".
	Accept, Deny []Name
	// Attributes are the posture attributes that the source is taken to have.
	Attributes map[string]Value
	// Malformed says what makes the test unrunnable, so that it fails.
	Malformed string
	Pos       Position
}

// SSHTest asserts as whom a source may log in.
type SSHTest struct {
	Src                 Name
	Dst                 []Name
	Accept, Deny, Check []string
	Pos                 Position
}

// Resource is a named target.
type Resource struct {
	Name        string // without "resource:"
	Target      []Selector
	Services    []Service
	Sensitivity string // a level's name, or ""
	Owner       *Selector
	Pos         Position
}

// Level is what access to resources of a sensitivity takes.
type Level struct {
	Name string // public, internal, confidential or restricted
	// MFAMaxAge is how long ago the last strong sign-in may be; 0 asks for
	// none.
	MFAMaxAge time.Duration
	Posture   []Name
	Country   []string
	// MaxRisk is the highest risk score admitted; nil asks for none.
	MaxRisk *float64
	// JIT asks for an approved request that covers the resource.
	JIT bool
	// MaxSession bounds how long an admitted flow lasts; 0 does not.
	MaxSession time.Duration
	Pos        Position
}

// JIT is what may be requested for a time.
type JIT struct {
	Name        string
	Resources   []Name
	Requesters  []Selector
	Approvers   []Selector
	MaxDuration time.Duration
	// Reason says whether a request must give one.
	Reason bool
	Pos    Position
}

// Options are the settings of the whole network.
type Options struct {
	RandomizeClientPort bool
	DisableIPv4         bool
	OneCGNATRoute       string
	// DERPMap is the relay map as minimal JSON, or "".
	DERPMap string
}
