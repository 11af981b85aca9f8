package packet

import "encoding/binary"

// The codepoints of explicit congestion notification (RFC 3168, 5).
const (
	notCapable  = 0
	experienced = 3
)

// MarkCongested marks b, a packet that Parse accepts, as one that met congestion,
// instead of dropping it: its receiver tells its sender, which then sends less (RFC
// 3168). It reports false, and changes nothing, where the sender did not say that it
// takes part. The header's checksum is corrected.
func MarkCongested(b []byte) bool {
	if b[0]>>4 == 6 {
		// The traffic class lies across the first two bytes (RFC 8200, 3).
		if b[1]>>4&3 == notCapable {
			return false
		}
		b[1] |= experienced << 4
		return true
	}
	if b[1]&3 == notCapable {
		return false
	}
	before := binary.BigEndian.Uint16(b)
	b[1] |= experienced
	updateChecksum(b[10:12], before, binary.BigEndian.Uint16(b), false)
	return true
}
