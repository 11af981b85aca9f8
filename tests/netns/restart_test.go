//go:build linux

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// TestGracefulRestart restarts the daemon as a service manager does for an
// upgrade (F25), on either side of established flows: they go on, in between
// nothing of ours is left in the kernel, and what was handed over is used once.
func TestGracefulRestart(t *testing.T) {
	n := newNetwork(t)
	opened := lab.StartTCP(t, n.laptop.Host, n.db.Host, address(n.db, "-4", 5432))
	opened6 := lab.StartTCP(t, n.laptop.Host, n.db.Host, address(n.db, "-6", 5432))

	// The database may not open anything to the laptop: its datagrams pass as
	// answers only, and no window is there for datagrams.
	server := n.db.Host.ListenPacket(t, address(n.db, "-4", 5353))
	client, err := n.laptop.Host.Dial(t.Context(), "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	from := asked(t, client, server)

	for name, node := range map[string]*lab.Node{"the opener's side": n.laptop, "the other side": n.db} {
		flows := filepath.Join(node.State(), "flows.json")
		node.Stop()
		if info, err := os.Stat(flows); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
			t.Errorf("%s: flows handed over: %v, %v", name, info, err)
		}
		if tables := node.Host.Tables(); slices.ContainsFunc(tables, ours) {
			t.Errorf("%s: tables %v are left", name, tables)
		}
		if rules := node.Host.Rules(); slices.Max(rules) != 32767 || len(rules) != 5 {
			t.Errorf("%s: rules %v are left", name, rules)
		}
		if out, err := node.Host.Run(t.Context(), "ip", "-o", "link", "show", "warren0"); err == nil {
			t.Errorf("%s: the interface is left: %s", name, out)
		}
		if out, err := node.Host.Run(t.Context(), "ip", "route", "show", "table", "all"); err != nil || strings.Contains(out, "warren0") {
			t.Errorf("%s: routes are left: %v\n%s", name, err, out)
		}
		begin := time.Now()
		node.Start()
		lab.Eventually(t, 20*time.Second, func() error { return answered(client, server, from) })
		t.Logf("%s: an answer passed %v after the start", name, time.Since(begin))
		for family, s := range map[string]*lab.Stream{"IPv4": opened, "IPv6": opened6} {
			before := s.Lines()
			lab.Eventually(t, 30*time.Second, func() error {
				if s.Lines() < before+20 {
					return errors.New("no more lines come")
				}
				return nil
			})
			select {
			case err := <-s.Ended:
				t.Errorf("%s: the TCP connection over %s was ended: %v", name, family, err)
			default:
			}
		}
		if _, err := os.Stat(flows); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: what was handed over is still there: %v", name, err)
		}
	}

	// What is no snapshot is passed over.
	n.laptop.Stop()
	flows := filepath.Join(n.laptop.State(), "flows.json")
	if err := os.WriteFile(flows, []byte(`{"version":1,"hash":"","saved":"AAAA"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.ServeUDP(t, n.web.Host, address(n.web, "-4", 8080))
	n.laptop.Start()
	lab.Eventually(t, 20*time.Second, func() error {
		return lab.EchoUDP(within(t, 2*time.Second), n.laptop.Host, address(n.web, "-4", 8080))
	})
	before := metric(t, n.laptop, "warren_inbound_dropped_packets_total", `reason="drop_no_rule"`)
	if err := answered(client, server, from); err == nil {
		t.Error("an answer passed though nobody remembers the question")
	}
	if after := metric(t, n.laptop, "warren_inbound_dropped_packets_total", `reason="drop_no_rule"`); after <= before {
		t.Errorf("drop_no_rule went from %v to %v", before, after)
	}
	if _, err := os.Stat(flows); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a corrupt file is still there: %v", err)
	}
}

// asked sends a datagram until it arrives, and returns where it came from.
func asked(t *testing.T, client net.Conn, server net.PacketConn) (from net.Addr) {
	t.Helper()
	buffer := make([]byte, 64)
	lab.Eventually(t, 15*time.Second, func() (err error) {
		if _, err = client.Write([]byte("?")); err != nil {
			return err
		}
		server.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, from, err = server.ReadFrom(buffer)
		return err
	})
	return from
}

// answered sends datagrams back for a second, and reports whether one came; the
// client sends none.
func answered(client net.Conn, server net.PacketConn, to net.Addr) error {
	text := fmt.Sprint("!", time.Now().UnixNano())
	buffer := make([]byte, 64)
	var err error
	for range 5 {
		if _, err = server.WriteTo([]byte(text), to); err != nil {
			return err
		}
		client.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		var n int
		if n, err = client.Read(buffer); err == nil && string(buffer[:n]) == text {
			return nil
		}
	}
	return fmt.Errorf("no answer: %w", err)
}
