package wg

import (
	"encoding/binary"

	"github.com/warren-overlay/warren/acl/ident"
)

// sessionHeader is how much of a transport message comes before its payload:
// type, receiver index, counter (the WireGuard paper, 5.4.6).
const sessionHeader = 16

// Sender returns the key of the peer whose session opened buf, a packet as
// Config.TUN's Write is given it, with its payload at offset: what comes before
// is the message's header still, and its receiver index names the session. It
// reports false where there is no such session any more, or no header.
//
// WireGuard itself has checked before Write that the source address belongs to
// the same peer, but by what its list of prefixes was at that time.
func (d *Device) Sender(buf []byte, offset int) (key ident.NodeKey, ok bool) {
	if offset < sessionHeader || len(buf) < offset {
		return key, false
	}
	p := d.bind.indexes.owner(binary.LittleEndian.Uint32(buf[offset-sessionHeader+4:]))
	if p == nil {
		return key, false
	}
	return p.key, true
}
