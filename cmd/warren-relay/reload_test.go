package main

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/coordinator/wire/channel"
	"github.com/warren-overlay/warren/netstack/relay"
)

// TestReload: on SIGHUP the certificate and the file are read again, and what can
// take effect does, for connections that there are as for new ones; where anything is
// wrong, it is told, and nothing does.
func TestReload(t *testing.T) {
	s := newSite(t)
	h := s.selfSigned(1)
	write := func(lines ...string) {
		t.Helper()
		lines = append(lines, "genesis: "+s.path("genesis"), "tls-cert: "+s.path("cert.pem"), "tls-key: "+s.path("key.pem"))
		if err := os.WriteFile(s.path("config.yaml"), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("max-clients: 1", "region: fra", "rate: 1000")
	address, _, out, _ := s.serve("--config", s.path("config.yaml"), "--rate", "2000000")
	enters := func(what string, h *http.Client, want relay.EventKind, reason relay.Reason) {
		t.Helper()
		if e := s.enter("wss://"+address, s.network.NodeKey(), h, "fra").next(); e.Kind != want || e.Reason != reason {
			t.Errorf("%s: %+v", what, e)
		}
	}
	serves := func(what string, serial int64) {
		t.Helper()
		c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // only the serial counts
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); got != serial {
			t.Errorf("%s it serves certificate %d, want %d", what, got, serial)
		}
	}
	// hangup returns what is logged about it.
	hangup := func(level string) string {
		t.Helper()
		out.forget()
		s.hangup <- syscall.SIGHUP
		return out.wait(t, `level=`+level+` (msg="SIGHUP: (?:read again|all stays)[^\n]*)\n`)
	}
	enters("the first", h, relay.EventReady, 0)
	enters("one above max-clients", h, relay.EventClosed, relay.ReasonFull)

	renewed := s.selfSigned(2)
	write("max-clients: 2", "region: nyc", "rate: 1000", "log-level: debug")
	said := hangup("INFO")
	if !strings.Contains(said, "max_clients=2 rate=2000000 log_level=debug") {
		t.Errorf("it says %s", said)
	}
	if waiting := out.wait(t, `level=WARN msg="SIGHUP: these settings take effect at the next start" settings=(\S+)`); waiting != "region" {
		t.Errorf("settings that wait for the next start: %s", waiting)
	}
	serves("renewed", 2)
	enters("the second", renewed, relay.EventReady, 0)

	write("max-clients: 9", "regoin: x")
	if said := hangup("ERROR"); !strings.Contains(said, "there is no setting") || !strings.Contains(said, "line 2") {
		t.Errorf("it says %s", said)
	}
	enters("after a file that is wrong", renewed, relay.EventClosed, relay.ReasonFull)
	write("max-clients: 0")
	if said := hangup("ERROR"); !strings.Contains(said, "--max-clients and --rate are above zero") {
		t.Errorf("it says %s", said)
	}
	write("max-clients: 9", "log-level: loud")
	if said := hangup("ERROR"); !strings.Contains(said, "--log-level") {
		t.Errorf("it says %s", said)
	}
	write("max-clients: 9")
	if err := os.WriteFile(s.path("cert.pem"), []byte("half a fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := hangup("ERROR"); !strings.Contains(said, "reading the certificate") {
		t.Errorf("it says %s", said)
	}
	serves("with half a file", 2)
	enters("with half a certificate", renewed, relay.EventClosed, relay.ReasonFull)
	again := s.selfSigned(3)
	if said := hangup("INFO"); !strings.Contains(said, "max_clients=9") {
		t.Errorf("it says %s", said)
	}
	serves("in order again", 3)
	enters("in order again", again, relay.EventReady, 0)
}

// TestReloadWhileStarting: SIGHUP does not end a relay that still asks the coordinator
// for the network, and is heeded when it relays.
func TestReloadWhileStarting(t *testing.T) {
	s := newSite(t)
	s.hangup = make(chan os.Signal, 1)
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGHUP) // and does not end the test
	defer signal.Stop(told)
	mux := http.NewServeMux()
	mux.HandleFunc(channel.GenesisPath, func(w http.ResponseWriter, _ *http.Request) {
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Signal(syscall.SIGHUP)
		}
		if err != nil {
			t.Error(err)
			return
		}
		select {
		case <-told:
		case <-time.After(patience):
			t.Error("there is no signal")
		}
		w.Write(s.network.Genesis.AppendBinary(nil))
	})
	coordinator := httptest.NewServer(mux)
	defer coordinator.Close()
	_, _, out, _ := s.serve("--coordinator", coordinator.URL)
	out.wait(t, `level=INFO msg="(SIGHUP: read again)"`)
}
