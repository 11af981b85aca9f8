package arch

// kind says what a package may do.
type kind int

const (
	// pure packages decide: no clock, goroutine, lock, network, randomness,
	// logger or map order of their own (purity_test.go).
	pure kind = iota
	// shell packages wait, lock, log and talk.
	shell
	// support packages serve tests: only _test.go files and tests/ import
	// them.
	support
	// program is a command: flags, wiring, no logic.
	program
)

// pkg is the entry of one package in the table.
type pkg struct {
	path string // from the module's directory
	kind kind
	// why says in one line what the package is for.
	why string
	// imports are the packages of the module it may import; "a/..." stands for
	// a and all below. Tests may import more (imports_test.go).
	imports []string
}

// table has one line for every package of the module, from the lowest layer to
// the highest.
var table = []pkg{
	{"acl/ident", pure, "ids, keys, labels and their encodings", nil},
	{"acl/canonical", pure, "the one encoding that signatures cover", nil},
	{"acl/packet", pure, "one strict IP parser; builds reject packets", nil},
	{"acl/zone", pure, "time zones, the same on every device", nil},
	{"acl/policy", pure, "policy text: parse, validate, format, positions", []string{"acl/ident", "acl/zone"}},
	{"acl/ruleset", pure, "compiled rules of one node", []string{"acl/ident", "acl/canonical", "acl/packet", "acl/zone"}},
	{"acl/authority", pure, "verifies membership and rules; the only constructor of Peer", []string{"acl/ident", "acl/canonical", "acl/ruleset"}},

	{"acl/compile", pure, "policy and directory to rule sets", []string{"acl/ident", "acl/policy", "acl/ruleset"}},
	{"acl/compile/report", pure, "what a compilation means, as people read it", []string{"acl/ident", "acl/policy", "acl/ruleset", "acl/compile"}},
	{"acl/filter", pure, "stateful verdicts per peer", []string{"acl/ident", "acl/packet", "acl/ruleset"}},
	{"acl/flowlog", pure, "records of what the filter decided, bounded, and their format", []string{"acl/ident", "acl/packet", "acl/ruleset", "acl/filter", "acl/flowlog/flowlogpb"}},
	{"acl/flowlog/flowlogpb", pure, "generated protobuf code of the records of flows", nil},
	{"acl/acltest", support, "slow references and generators", []string{"acl/..."}},
	{"acl/acltest/cputime", support, "how long processors have worked, for bounds that hold under load", nil},

	{"netstack/alarm", shell, "wakes a goroutine at a moment that may be moved", nil},
	{"netstack/aqm", pure, "keeps the queues between host and overlay short", nil},
	{"netstack/stun", pure, "STUN codec", nil},
	{"netstack/stun/stunserver", shell, "a STUN server on a socket", []string{"netstack/stun", "netstack/sock"}},
	{"netstack/disco", pure, "sealed path-probe messages", []string{"acl/ident", "acl/canonical"}},
	{"netstack/relay/relayhttp", shell, "the relay's connections, as WebSockets, and its datagrams", []string{"netstack/alarm", "netstack/relay", "netstack/sock", "netstack/stun", "acl/ident"}},
	{"netstack/relay/relayserver", shell, "a relay that stands apart: listeners, metrics, certificate, stopping", []string{"netstack/alarm", "netstack/relay/...", "netstack/sock", "acl/authority", "acl/ident"}},
	{"netstack/relay/admission", shell, "who may use a relay that stands apart from the coordinator", []string{"netstack/alarm", "netstack/relay", "acl/authority", "acl/ident"}},
	{"netstack/route", pure, "overlay address to peer", []string{"acl/ident"}},
	{"netstack/sock", shell, "UDP sockets, batching, rebind", nil},
	{"netstack/tun", shell, "the system's TUN device, addresses, routes", nil},
	{"netstack/router", shell, "the kernel between the overlay and the machine's networks", []string{"netstack/sock"}},

	{"netstack/config", pure, "the desired data plane, shared by client and engine", []string{"acl/ident", "acl/ruleset", "acl/authority"}},
	{"netstack/nat", pure, "a node's own public endpoints", []string{"netstack/stun", "acl/ident"}},
	{"netstack/pcp", pure, "codec of PCP and NAT-PMP, by which gateways forward ports", nil},
	{"netstack/portmap", shell, "asks the gateways to forward a port, and to let it in over IPv6: PCP, NAT-PMP, UPnP", []string{"netstack/nat", "netstack/pcp"}},
	{"netstack/path", pure, "chooses the path to one peer", []string{"netstack/disco", "acl/ident"}},
	{"netstack/proxy", shell, "SOCKS5 and HTTP CONNECT proxies into the overlay", nil},
	{"netstack/relay", pure, "relay frames, client session, server core", []string{"acl/ident"}},
	{"netstack/relay/home", pure, "where a node listens, and through which relay it sends to whom", []string{"acl/ident", "netstack/disco"}},
	{"netstack/wg", shell, "WireGuard as the data plane uses it", []string{"acl/ident", "netstack/sock", "netstack/tun"}},
	{"netstack/userstack", shell, "gVisor's stack as a device, for nodes without root", []string{"netstack/alarm", "netstack/tun"}},
	{"netstack/pcapng", pure, "captures in the format that everybody reads", nil},
	{"netstack/enginetest", support, "engines joined without a network, for tests", []string{"netstack/...", "acl/..."}},
	{"netstack/simnet", support, "a simulated internet: NATs, loss, latency, roaming", []string{"netstack/..."}},
	{"netstack/engine", shell, "the data plane's goroutines: feeds path, nat, relay, filter, wg", []string{"netstack/...", "acl/ident", "acl/packet", "acl/ruleset", "acl/filter", "acl/flowlog", "acl/authority"}},

	{"coordinator/audit", pure, "hash-chained audit entries", []string{"acl/ident", "acl/canonical"}},
	{"coordinator/registry", pure, "nodes, users, keys: state and command to state and events", []string{"acl/ident", "acl/policy", "acl/ruleset", "acl/authority", "coordinator/audit"}},
	{"coordinator/wire", pure, "control protocol: messages, codec, versions", []string{"acl/ident", "acl/ruleset", "acl/authority", "acl/canonical", "coordinator/wire/wirepb"}},
	{"coordinator/wire/wirepb", pure, "generated protobuf code of the control protocol", nil},

	{"coordinator/wire/channel", shell, "the control channel: Noise IK on a byte stream, whole messages", []string{"acl/ident", "acl/authority", "coordinator/wire"}},
	{"coordinator/store", shell, "persistence; one transaction is state and audit", []string{"acl/ident", "acl/authority", "acl/ruleset", "acl/policy", "coordinator/registry", "coordinator/audit"}},
	{"coordinator/netmap", pure, "what each node may see, and what changed", []string{"acl/...", "coordinator/registry", "coordinator/wire"}},
	{"coordinator/session", pure, "server side of one control connection", []string{"acl/ident", "acl/authority", "acl/ruleset", "coordinator/wire", "coordinator/netmap", "coordinator/registry"}},
	{"coordinator/admin", shell, "the administrator's socket: API and its client", []string{"acl/ident", "acl/policy", "acl/ruleset", "coordinator/audit", "coordinator/netmap", "coordinator/registry", "coordinator/store", "coordinator/wire"}},
	{"coordinator/server", shell, "listeners, sessions, timers; the only loop that changes the state", []string{"acl/...", "coordinator/..."}},

	{"client/clock", shell, "the time, which never goes back", nil},
	{"client/health", pure, "what is wrong with a node, as typed facts", nil},

	{"client/control", pure, "client side of the control protocol", []string{"coordinator/wire/...", "acl/ident", "acl/authority", "acl/ruleset", "client/health"}},
	{"client/statefile", shell, "the state on disk, written whole or not at all", []string{"acl/ident", "acl/authority", "client/control"}},
	{"client/policy", shell, "`warren policy`: check, compile and explain without a server", []string{"acl/..."}},
	{"client/reconcile", pure, "map and preferences to desired configuration to steps", []string{"acl/...", "coordinator/wire", "netstack/config", "client/control", "client/health"}},
	{"client/osconf", shell, "what the system says of its networks", []string{"netstack/alarm"}},
	{"client/localapi", shell, "the Unix socket between command line and daemon", []string{"acl/ident", "client/health"}},
	{"client/agent", shell, "joins machines, engine and system; the only long-lived mutable object", []string{"client/...", "netstack/...", "coordinator/wire/...", "acl/..."}},
	{"cmd/internal/commandline", shell, "how the programs answer those who type", nil},
	{"cmd/warren-coordinator", program, "the coordinator: serve and the administrator's command line", []string{"cmd/internal/commandline", "acl/...", "coordinator/...", "netstack/relay/...", "netstack/sock", "netstack/stun/stunserver"}},
	{"cmd/warren-relay", program, "a relay that stands apart from the coordinator", []string{"cmd/internal/commandline", "acl/...", "coordinator/wire/...", "netstack/relay/...", "netstack/sock"}},
	{"cmd/warren", program, "the node: daemon and command line", []string{"cmd/internal/commandline", "acl/...", "client/...", "netstack/...", "coordinator/wire/..."}},

	{"tests/bench", support, "make bench: the figures of its README", []string{"tests/lab", "acl/...", "netstack/...", "client/...", "coordinator/..."}},
	{"tests/demo", program, "make demo: allowed, denied, cut, on one machine", nil},
	{"tests/netns", support, "ring 3: the programs and the filter on a real kernel", []string{"tests/lab", "client/localapi", "acl/...", "netstack/..."}},
	{"tests/lab", support, "network namespaces, links, NATs and enemies for ring 3", []string{"client/localapi", "acl/ident", "netstack/relay", "netstack/stun"}},
	{"tests/sim", support, "ring 2: whole nodes over a simulated internet", []string{"acl/...", "client/...", "coordinator/...", "netstack/..."}},
	{"tests/cli", support, "the programs driven by script", nil},
	{"tests/soak", support, "make soak: a busy network for a long time, and what grows", nil},
	{"tests/docs", support, "what the documents tell people to type, typed", []string{"tests/lab"}},
	{"tests/arch", support, "these rules", nil},
	{"tests/steps", program, "the steps of the Makefile that need more than a line of shell", nil},
}

// law forbids edges of the import graph whatever the table says, so that a
// line of the table cannot widen the layers in passing. Tests are free of
// it: a test may join two layers to see them agree.
type law struct {
	from   []string // patterns
	to     []string // patterns
	except []string // patterns of to that are allowed all the same
	why    string
}

var laws = []law{
	{
		from: []string{"acl/..."}, to: []string{"netstack/...", "coordinator/...", "client/..."},
		why: "acl is the vocabulary of the other layers; it knows none of them",
	},
	{
		from: []string{"netstack/..."}, to: []string{"coordinator/...", "client/..."},
		why: "the data plane is driven from above, and is tested without a coordinator",
	},
	{
		from: []string{"coordinator/..."}, to: []string{"netstack/...", "client/..."},
		why: "a coordinator carries no packets; relay and STUN stand beside it, joined by the program",
	},
	{
		from: []string{"client/..."}, to: []string{"coordinator/..."}, except: []string{"coordinator/wire/..."},
		why: "a node knows the coordinator by its protocol alone",
	},
	{
		from: []string{"acl/...", "netstack/...", "coordinator/...", "client/..."}, to: []string{"cmd/...", "tests/..."},
		why: "a program is wiring and a test is proof; nothing that ships builds on them",
	},
	{
		from: []string{"cmd/..."}, to: []string{"tests/..."},
		why: "what ships does not depend on tests",
	},
}
