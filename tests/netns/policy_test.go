//go:build linux

package netns

import (
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

// TestAllowedAndDenied sends real bytes between TUN devices and asserts at the
// application: what a rule allows arrives, what none allows does not, and the
// counter that names the reason moves.
func TestAllowedAndDenied(t *testing.T) {
	n := newNetwork(t)
	for _, family := range families {
		t.Run("family"+family, func(t *testing.T) {
			db := n.db.IP(family)
			lab.ServeTCP(t, n.db.Host, address(n.db, family, 5432))
			lab.ServeUDP(t, n.db.Host, address(n.db, family, 5353))
			deniedTCP := lab.ServeTCP(t, n.db.Host, address(n.db, family, 22))
			deniedUDP := lab.ServeUDP(t, n.db.Host, address(n.db, family, 53))

			if err := lab.EchoTCP(within(t, 10*time.Second), n.laptop.Host, address(n.db, family, 5432)); err != nil {
				t.Errorf("allowed TCP to %s: %v", db, err)
			}
			if err := lab.EchoUDP(within(t, 5*time.Second), n.laptop.Host, address(n.db, family, 5353)); err != nil {
				t.Errorf("allowed UDP to %s: %v", db, err)
			}

			const counter = "warren_outbound_dropped_packets_total"
			before := metric(t, n.laptop, counter)
			if err := lab.EchoTCP(within(t, 2*time.Second), n.laptop.Host, address(n.db, family, 22)); err == nil {
				t.Error("denied TCP went through")
			}
			if err := lab.EchoUDP(within(t, time.Second), n.laptop.Host, address(n.db, family, 53)); err == nil {
				t.Error("denied UDP went through")
			}
			if after := metric(t, n.laptop, counter); after < before+2 {
				t.Errorf("%s went from %v to %v over two denied flows", counter, before, after)
			}
			if deniedTCP.Load() != 0 || deniedUDP.Load() != 0 {
				t.Errorf("%d denied connections and %d denied datagrams arrived", deniedTCP.Load(), deniedUDP.Load())
			}

			// The other way round there is no rule at all.
			lab.ServeTCP(t, n.laptop.Host, address(n.laptop, family, 5432))
			if err := lab.EchoTCP(within(t, 2*time.Second), n.db.Host, address(n.laptop, family, 5432)); err == nil {
				t.Error("the database reached the laptop")
			}
		})
	}
}

// TestUserspace lets a node without a device of its own be reached, and reach
// others through its SOCKS5 proxy.
func TestUserspace(t *testing.T) {
	n := newNetwork(t, "--tun", "userspace", "--socks5", "127.0.0.1:1080")
	for _, family := range families {
		t.Run("family"+family, func(t *testing.T) {
			local := map[string]string{"-4": "127.0.0.1", "-6": "::1"}[family]
			lab.ServeTCP(t, n.web.Host, joined(local, 8080))
			lab.ServeUDP(t, n.web.Host, joined(local, 8080))
			secret := lab.ServeTCP(t, n.web.Host, joined(local, 8081))
			if err := lab.EchoTCP(within(t, 10*time.Second), n.laptop.Host, address(n.web, family, 8080)); err != nil {
				t.Errorf("TUN to userspace, TCP: %v", err)
			}
			if err := lab.EchoUDP(within(t, 5*time.Second), n.laptop.Host, address(n.web, family, 8080)); err != nil {
				t.Errorf("TUN to userspace, UDP: %v", err)
			}
			if err := lab.EchoTCP(within(t, 2*time.Second), n.laptop.Host, address(n.web, family, 8081)); err == nil || secret.Load() != 0 {
				t.Errorf("a denied port of the host was reached: %v, %d connections", err, secret.Load())
			}

			lab.ServeTCP(t, n.db.Host, address(n.db, family, 5432))
			if err := echoSOCKS(within(t, 10*time.Second), n.web.Host, "127.0.0.1:1080", address(n.db, family, 5432)); err != nil {
				t.Errorf("userspace to TUN through the proxy: %v", err)
			}
			if err := echoSOCKS(within(t, 5*time.Second), n.web.Host, "127.0.0.1:1080", address(n.db, family, 22)); err == nil {
				t.Error("the proxy reached a denied port")
			}
		})
	}
}

// cutLimit is the published bound: from the administrator's command to the last
// packet at the receiver.
const cutLimit = 2 * time.Second

// TestCuts ends established flows by an edit of the policy and by a revocation,
// while a flow that neither concerns goes on.
func TestCuts(t *testing.T) {
	n := newNetwork(t)
	for _, family := range families {
		t.Run("policy"+family, func(t *testing.T) {
			n.coordinator.SetPolicy(policy)
			waitForRule(t, n)
			tcp := lab.StartTCP(t, n.laptop.Host, n.db.Host, address(n.db, family, 5432))
			udp := lab.StartUDP(t, n.laptop.Host, n.db.Host, address(n.db, family, 5353))
			unconcerned := lab.StartTCP(t, n.laptop.Host, n.web.Host, address(n.web, family, 8080))
			begin := time.Now()
			n.coordinator.SetPolicy(policyWithoutDatabase)
			for name, s := range map[string]*lab.Stream{"TCP": tcp, "UDP": udp} {
				if took := s.CutAfter(t, begin); took > cutLimit {
					t.Errorf("%s went on for %v after the edit", name, took)
				} else {
					t.Logf("%s ended %v after the edit was begun", name, took)
				}
			}
			select {
			case err := <-tcp.Ended:
				t.Logf("the application was told: %v", err)
			case <-time.After(lab.Quiet):
				t.Error("the application was not told that its connection ended")
			}
			unconcerned.Alive(t)
		})
	}
	t.Run("revoke", func(t *testing.T) {
		n.coordinator.SetPolicy(policy)
		waitForRule(t, n)
		tcp := lab.StartTCP(t, n.laptop.Host, n.db.Host, address(n.db, "-4", 5432))
		udp := lab.StartUDP(t, n.laptop.Host, n.db.Host, address(n.db, "-6", 5353))
		unconcerned := lab.StartTCP(t, n.web.Host, n.db.Host, joined(n.db.IP("-6"), 5432))
		begin := time.Now()
		n.coordinator.Admin("devices", "revoke", "laptop")
		for name, s := range map[string]*lab.Stream{"TCP": tcp, "UDP": udp} {
			if took := s.CutAfter(t, begin); took > cutLimit {
				t.Errorf("%s went on for %v after the revocation", name, took)
			} else {
				t.Logf("%s ended %v after the revocation was begun", name, took)
			}
		}
		unconcerned.Alive(t)
		if _, err := n.laptop.Try("up"); err == nil {
			t.Error("the revoked device came back by itself")
		}
	})
}

// waitForRule waits until the grant that the cuts take away is in force.
func waitForRule(t *testing.T, n *network) {
	t.Helper()
	lab.Eventually(t, 10*time.Second, func() error {
		_, err := n.laptop.Try("ping", "-c", "1", "db")
		return err
	})
}
