//go:build linux

package netns

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/tests/lab"
)

// strangerIsRefused lets unmodified wireguard-go, which knows the laptop's key
// and address, try to shake hands without a certificate. The laptop must count
// the attempts and answer none.
func strangerIsRefused(t *testing.T, n *network, l *lab.Lab, shown string) {
	t.Helper()
	find := func(pattern string) string {
		match := regexp.MustCompile(pattern).FindStringSubmatch(shown)
		if match == nil {
			t.Fatalf("wg show has no %q:\n%s", pattern, shown)
		}
		return match[1]
	}
	key, err := base64.StdEncoding.DecodeString(find(`public key: (\S+)`))
	if err != nil {
		t.Fatal(err)
	}
	private, err := ident.NewNodePrivate(bytes.NewReader(bytes.Repeat([]byte{9}, ident.KeySize)))
	if err != nil {
		t.Fatal(err)
	}

	channel := tuntest.NewChannelTUN()
	stranger := device.NewDevice(channel.TUN(), conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(stranger.Close)
	l.Host("stranger").Do(func() error {
		settings := fmt.Sprintf("private_key=%x\npublic_key=%s\nendpoint=%s:%s\nallowed_ip=100.64.0.0/10\n",
			private.SecretBytes(), hex.EncodeToString(key), n.laptop.Host.V4, find(`listening port: (\d+)`))
		if err := stranger.IpcSet(settings); err != nil {
			return err
		}
		if err := stranger.Up(); err != nil {
			return err
		}
		// The channel device says by itself that it is up, and then the socket
		// was made elsewhere: make it again, on this host.
		return stranger.BindUpdate()
	})

	const counter = "warren_lost_packets_total"
	before := metric(t, n.laptop, counter, `reason="unknown_initiation"`)
	packet := tuntest.Ping(netip.MustParseAddr(n.laptop.IP("-4")), netip.MustParseAddr("100.64.99.99"))
	lab.Eventually(t, 20*time.Second, func() error {
		select {
		case channel.Outbound <- packet:
		default:
		}
		if now := metric(t, n.laptop, counter, `reason="unknown_initiation"`); now < before+2 {
			return fmt.Errorf("the laptop counted %v attempts", now-before)
		}
		return nil
	})
	state, err := stranger.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(state, "last_handshake_time_sec=0\n") || !strings.Contains(state, "rx_bytes=0\n") {
		t.Errorf("a stranger shook hands, or was answered:\n%s", state)
	}
}
