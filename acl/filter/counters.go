package filter

// The families that Counters tells apart.
const (
	family4 = iota
	family6
	families
)

func family(version uint8) int {
	if version == 6 {
		return family6
	}
	return family4
}

// Counters counts packets by direction, family and reason. The zero value is
// ready to use. It is not safe for concurrent use.
type Counters struct {
	packets [2][families][NumReasons]uint64
}

// Count adds one packet. version is 4 or 6; everything else counts as IPv4. It
// is for packets that are decided on before a Peer is known.
func (c *Counters) Count(d Direction, version uint8, r Reason) {
	c.packets[d&1][family(version)][r]++
}

// CountMany is Count for n packets.
func (c *Counters) CountMany(d Direction, version uint8, r Reason, n uint64) {
	c.packets[d&1][family(version)][r] += n
}

// Packets returns how many packets were counted.
func (c *Counters) Packets(d Direction, version uint8, r Reason) uint64 {
	return c.packets[d&1][family(version)][r]
}

// Add adds everything that other has counted.
func (c *Counters) Add(other *Counters) {
	for d := range c.packets {
		for f := range c.packets[d] {
			for r := range c.packets[d][f] {
				c.packets[d][f][r] += other.packets[d][f][r]
			}
		}
	}
}
