package wg

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

// Stats is what the device knows of its session with a peer.
type Stats struct {
	// LastHandshake is zero where there was none.
	LastHandshake time.Time
	// RxBytes and TxBytes count sealed bytes; received ones are authentic.
	RxBytes, TxBytes uint64
}

// Stats returns the statistics of all peers, at the cost of one listing of the
// device.
func (d *Device) Stats() (map[ident.NodeKey]Stats, error) {
	text, err := d.device.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("wg: listing the device: %w", err)
	}
	out := make(map[ident.NodeKey]Stats)
	var key ident.NodeKey
	var seconds int64
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		s := out[key]
		switch name {
		case "public_key":
			if _, err := hex.Decode(key[:], []byte(value)); err != nil {
				return nil, fmt.Errorf("wg: listing the device: %w", err)
			}
			out[key], seconds = Stats{}, 0
			continue
		case "last_handshake_time_sec":
			seconds, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			var nanoseconds int64
			if nanoseconds, err = strconv.ParseInt(value, 10, 64); seconds != 0 || nanoseconds != 0 {
				s.LastHandshake = time.Unix(seconds, nanoseconds)
			}
		case "rx_bytes":
			s.RxBytes, err = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			s.TxBytes, err = strconv.ParseUint(value, 10, 64)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("wg: listing the device: %s: %w", name, err)
		}
		out[key] = s
	}
	return out, nil
}
