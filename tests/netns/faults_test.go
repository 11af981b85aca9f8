//go:build linux

package netns

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// path returns how a node reaches a peer now: what its status says.
func path(t *testing.T, from *lab.Node, peer string) string {
	t.Helper()
	for line := range strings.Lines(from.CLI("status")) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == peer {
			return line
		}
	}
	t.Fatalf("%s does not see %s:\n%s", from.Host.Name, peer, from.CLI("status"))
	return ""
}

// TestRelay blocks UDP between two nodes: the relay carries their traffic.
// Where the block ends they become direct, and where it comes back they fall
// back.
func TestRelay(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	lab.ServeTCP(t, n.db.Host, address(n.db, "-4", 5432))
	block := func() {
		n.laptop.Host.BlockUDP(n.db.Host)
		n.db.Host.BlockUDP(n.laptop.Host)
	}
	block()
	if err := lab.EchoTCP(within(t, 15*time.Second), n.laptop.Host, address(n.db, "-4", 5432)); err != nil {
		t.Fatalf("through the relay: %v", err)
	}
	if line := path(t, n.laptop, "db"); !strings.Contains(line, "relay") {
		t.Errorf("UDP is blocked and status says %q", line)
	}

	n.laptop.Host.UnblockUDP()
	n.db.Host.UnblockUDP()
	lab.Eventually(t, 30*time.Second, func() error {
		if err := lab.EchoTCP(within(t, 5*time.Second), n.laptop.Host, address(n.db, "-4", 5432)); err != nil {
			return err
		}
		if line := path(t, n.laptop, "db"); !strings.Contains(line, "direct") {
			return fmt.Errorf("UDP is free and status says %q", line)
		}
		return nil
	})

	block()
	begin := time.Now()
	lab.Eventually(t, 15*time.Second, func() error {
		return lab.EchoTCP(within(t, 5*time.Second), n.laptop.Host, address(n.db, "-4", 5432))
	})
	t.Logf("back through the relay %v after UDP was blocked", time.Since(begin))
}

// TestCoordinatorKilled kills the coordinator: tunnels that stand stay, known
// peers that never spoke can begin to, and a node that restarts comes back
// from its cache. After the coordinator's return nothing that it had
// acknowledged is lost.
func TestCoordinatorKilled(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	established := lab.StartTCP(t, n.laptop.Host, n.db.Host, address(n.db, "-4", 5432))
	lab.ServeTCP(t, n.web.Host, address(n.web, "-4", 8080))
	web := address(n.web, "-4", 8080)
	database := address(n.db, "-6", 5432)
	lab.ServeTCP(t, n.db.Host, database)

	n.coordinator.Admin("users", "create", "carol@example.com")
	key := n.coordinator.Key("--user", "carol@example.com")
	before := n.coordinator.Admin("devices", "list", "--json")
	n.coordinator.Kill()

	established.Alive(t)
	if err := lab.EchoTCP(within(t, 15*time.Second), n.laptop.Host, web); err != nil {
		t.Errorf("a new tunnel between known peers: %v", err)
	}

	n.web.Kill()
	n.web.Start()
	lab.Eventually(t, 20*time.Second, func() error {
		return lab.EchoTCP(within(t, 5*time.Second), n.web.Host, database)
	})
	established.Alive(t)

	begin := time.Now()
	n.coordinator.Start()
	t.Logf("the coordinator serves again after %v", time.Since(begin))
	if users := n.coordinator.Admin("users", "list"); !strings.Contains(users, "carol@example.com") {
		t.Errorf("an acknowledged user is gone:\n%s", users)
	}
	if keys := n.coordinator.Admin("keys", "list"); !strings.Contains(keys, strings.Split(key, "-")[2]) {
		t.Errorf("an acknowledged key is gone:\n%s", keys)
	}
	after := n.coordinator.Admin("devices", "list", "--json")
	for _, name := range []string{"laptop", "db", "web"} {
		if strings.Contains(before, name) && !strings.Contains(after, name) {
			t.Errorf("device %s is gone:\n%s", name, after)
		}
	}
	n.coordinator.Admin("audit", "verify")
	established.Alive(t)

	// The nodes are told of changes again.
	n.coordinator.SetPolicy(policyWithoutDatabase)
	if took := established.CutAfter(t, time.Now()); took > 40*time.Second {
		t.Errorf("the flow went on for %v", took)
	}
}

// TestStockWireGuard runs Debian's wg(8) against our device, and a stock
// wireguard-go that knows our key and port but has no certificate.
func TestStockWireGuard(t *testing.T) {
	// Not beside others: wg(8) finds a device by a file of its name, of which the
	// machine has one for all namespaces.
	if _, err := exec.LookPath("wg"); err != nil {
		t.Skip("needs wg, of Debian's package wireguard-tools")
	}
	n := newNetwork(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lab.ServeTCP(t, n.db.Host, address(n.db, "-4", 5432))
	if err := lab.EchoTCP(within(t, 10*time.Second), n.laptop.Host, address(n.db, "-4", 5432)); err != nil {
		t.Fatal(err)
	}
	shown, err := n.laptop.Host.Run(ctx, "wg", "show", "warren0")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"interface: warren0", "public key:", "listening port:", "peer:", n.db.IP("-4") + "/32", "latest handshake:"} {
		if !strings.Contains(shown, want) {
			t.Errorf("wg show warren0 does not say %q:\n%s", want, shown)
		}
	}
	strangerIsRefused(t, n, n.lab, shown)
}
