//go:build linux

package netns

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// packetOf is what a capture holds of one packet.
type packetOf struct {
	data    []byte
	comment string
}

// readCapture reads the enhanced packet blocks of a pcapng file (draft-ietf-
// opsawg-pcapng-04, 4.3), independently of how we write them.
func readCapture(t *testing.T, file []byte) []packetOf {
	t.Helper()
	var packets []packetOf
	for len(file) >= 12 {
		kind, length := binary.LittleEndian.Uint32(file), int(binary.LittleEndian.Uint32(file[4:]))
		if length > len(file) || length < 12 {
			t.Fatalf("a block of %d bytes in %d", length, len(file))
		}
		if body := file[8 : length-4]; kind == 6 {
			n := int(binary.LittleEndian.Uint32(body[12:]))
			p := packetOf{data: body[20 : 20+n]}
			for o := body[20+(n+3)/4*4:]; len(o) >= 4; {
				code, size := binary.LittleEndian.Uint16(o), int(binary.LittleEndian.Uint16(o[2:]))
				if code == 0 {
					break
				}
				if code == 1 {
					p.comment = string(o[4 : 4+size])
				}
				o = o[4+(size+3)/4*4:]
			}
			packets = append(packets, p)
		}
		file = file[length:]
	}
	return packets
}

// TestDecisionsAreShown denies a connection on the kernel's TUN device: the
// capture has its packet with the reason, `warren flows` its record, and
// `warren debug why` says what would be allowed.
func TestDecisionsAreShown(t *testing.T) {
	n := newNetwork(t)
	for _, family := range families {
		t.Run("family"+family, func(t *testing.T) {
			lab.ServeTCP(t, n.db.Host, address(n.db, family, 5432))
			file := filepath.Join(t.TempDir(), "capture.pcapng")
			done := make(chan error, 1)
			go func() {
				_, err := n.laptop.Try("debug", "capture", "-w", file, "--peer", "db", "--denied", "--count", "1", "--for", "20s")
				done <- err
			}()
			// The capture has begun when its header is in the file.
			lab.Eventually(t, 10*time.Second, func() error {
				info, err := os.Stat(file)
				if err == nil && info.Size() == 0 {
					err = os.ErrNotExist
				}
				return err
			})
			if err := lab.EchoTCP(within(t, 10*time.Second), n.laptop.Host, address(n.db, family, 5432)); err != nil {
				t.Fatalf("allowed TCP: %v", err)
			}
			if err := lab.EchoTCP(within(t, 5*time.Second), n.laptop.Host, address(n.db, family, 22)); err == nil {
				t.Fatal("denied TCP went through")
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			packets := readCapture(t, raw)
			if len(packets) != 1 || !strings.HasPrefix(packets[0].comment, "denied (drop_no_rule) direction=out peer=db ") {
				t.Fatalf("the capture holds %q", packets)
			}
			header := map[string]int{"-4": 20, "-6": 40}[family]
			if port := binary.BigEndian.Uint16(packets[0].data[header+2:]); port != 22 {
				t.Errorf("the packet is for port %d", port)
			}
			tcpdump(t, file, ".22: Flags [S]")

			record := findFlow(t, n.laptop, n.db.IP(family), 22)
			if record["verdict"] != "denied" || record["reason"] != "drop_no_rule" || record["rule"] != "" || record["direction"] != "out" {
				t.Errorf("record %v", record)
			}
			source, _ := record["source"].(map[string]any)
			destination, _ := record["destination"].(map[string]any)
			if source["name"] != "laptop" || source["user"] != "alice@example.com" || destination["name"] != "db" || record["protocol"] != "tcp" {
				t.Errorf("record %v", record)
			}
			out, err := n.laptop.Try("debug", "why", n.db.IP(family), "tcp:22")
			if err == nil || !strings.Contains(out, "denied: no rule lets this device open tcp:22 to db; what it may open there: tcp:5432, udp:5353") {
				t.Errorf("debug why: %v: %s", err, out)
			}
		})
	}
}

// TestDenialsAreFollowed has `warren flows --denied --follow` show what is denied
// while it runs, and nothing that is allowed.
func TestDenialsAreFollowed(t *testing.T) {
	n := newNetwork(t)
	lab.ServeTCP(t, n.db.Host, address(n.db, "-4", 5432))
	if err := lab.EchoTCP(within(t, 15*time.Second), n.laptop.Host, address(n.db, "-4", 5432)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := n.laptop.Command(ctx, "flows", "--denied", "--follow", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.laptop.Host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	lines := make(chan map[string]any, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			var record map[string]any
			if err := json.Unmarshal(s.Bytes(), &record); err != nil {
				record = map[string]any{"verdict": s.Text()}
			}
			lines <- record
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range lines { // until it has ended
		}
		cmd.Wait()
	})
	// Each attempt is to another port, so that each has a record of its own.
	seen, port := 0, 1000
	lab.Eventually(t, 30*time.Second, func() error {
		port++
		if err := lab.EchoTCP(within(t, 2*time.Second), n.laptop.Host, address(n.db, "-4", port)); err == nil {
			t.Fatal("denied TCP went through")
		}
		for {
			select {
			case record, ok := <-lines:
				if !ok || record["verdict"] != "denied" || record["reason"] != "drop_no_rule" {
					t.Fatalf("it shows %v", record)
				}
				if seen++; seen >= 3 {
					return nil
				}
				continue
			default:
			}
			return fmt.Errorf("%d denials were shown, of %d", seen, port-1000)
		}
	})
}

// findFlow returns the record of a denial to an address and port.
func findFlow(t *testing.T, n *lab.Node, to string, port float64) map[string]any {
	t.Helper()
	var found map[string]any
	lab.Eventually(t, 10*time.Second, func() error {
		out, err := n.Try("flows", "--denied", "--json")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			var record map[string]any
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				return err
			}
			destination, _ := record["destination"].(map[string]any)
			if destination["addr"] == to && destination["port"] == port {
				found = record
				return nil
			}
		}
		return os.ErrNotExist
	})
	return found
}

// tcpdump has somebody else read the file, where tcpdump is installed.
func tcpdump(t *testing.T, file, want string) {
	t.Helper()
	path, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Log("tcpdump is not installed; nobody else has read the capture")
		return
	}
	out, err := exec.Command(path, "-nr", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("tcpdump: %v: %s", err, out)
	}
}
