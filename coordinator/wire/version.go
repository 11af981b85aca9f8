package wire

// Version counts the versions of the protocol. A node sends the newest that it
// speaks; the coordinator answers with the lower of that and its own.
type Version uint32

const (
	// Version1 (2026-11-22) is the first: registration by join key, signed
	// certificates and rules, one stream of a map and deltas.
	Version1 Version = 1

	// Newest is the newest version that this program speaks.
	Newest = Version1
	// Oldest is the oldest version that this program still speaks.
	Oldest = Version1
)

// Agree returns the version that a coordinator speaks with a node whose newest
// is theirs, and whether there is one.
func Agree(theirs Version) (Version, bool) {
	agreed := min(theirs, Newest)
	return agreed, agreed >= Oldest
}
