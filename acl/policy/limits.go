package policy

const (
	// MaxSize bounds the text of a document in bytes. 5,000 long rules take
	// about 1.5 MiB.
	MaxSize = 8 << 20
	// MaxDepth bounds how deep objects and lists nest, because the text is
	// parsed recursively. A real document needs 6 and what an application's
	// parameters need.
	MaxDepth = 64
	// MaxRules bounds acls and grants together.
	MaxRules = 20_000
	// MaxSelectors bounds the selectors of one list, such as the src of a rule
	// or the members of a group.
	MaxSelectors = 10_000
	// MaxDefinitions bounds the entries of one section: groups, hosts, ipsets
	// and so on.
	MaxDefinitions = 50_000
	// MaxServices bounds the protocol and port ranges of one destination.
	MaxServices = 1_000
	// MaxIPSetWork bounds how many prefixes are worked through for all ipsets
	// together, because sets can list one another over and over.
	MaxIPSetWork = 200_000
	// MaxExpansion bounds how many pairs of source and destination selectors
	// one rule may come to.
	MaxExpansion = 1_000_000
	// MaxCombinations bounds what all rules together compile to: for each rule
	// its sources, times its postures, times the different services among its
	// destinations. One takes about 400 bytes and a microsecond.
	MaxCombinations = 500_000
	// MaxNameLength bounds a name in bytes.
	MaxNameLength = 254
	// MaxErrors bounds how many errors of one document are reported.
	MaxErrors = 50
)
