package lab

import (
	"net/http"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Relay is a running warren-relay.
type Relay struct {
	Host *Host
	Name string

	t       testing.TB
	port    uint16
	args    []string
	process *process
}

// relayPort is where a Relay listens, TCP.
const relayPort = 8443

// RelayURL returns where nodes reach a Relay on the host.
func (h *Host) RelayURL() string {
	return "ws://" + netip.AddrPortFrom(h.V4, relayPort).String()
}

// Relay starts a relay on the host for the network of a coordinator, which knows
// it by the name and by Host.RelayURL.
func (h *Host) Relay(t testing.TB, c *Coordinator, name string) *Relay {
	t.Helper()
	return h.relayAt(t, c, name, relayPort)
}

func (h *Host) relayAt(t testing.TB, c *Coordinator, name string, port uint16) *Relay {
	t.Helper()
	r := &Relay{Host: h, Name: name, t: t, port: port, args: []string{
		"serve", "--name", name, "--listen", netip.AddrPortFrom(h.V4, port).String(), "--udp-listen", "off", "--metrics-listen", "off",
		"--data", filepath.Join(t.TempDir(), name), "--coordinator", c.urlFor(h), "--fingerprint", c.Fingerprint(), "--log-level", "debug",
	}}
	r.Start()
	return r
}

// Start starts the relay again after Kill or Stop and waits until it serves.
func (r *Relay) Start() {
	r.t.Helper()
	r.process = r.Host.launch(r.t, r.Host.program(r.t, "warren-relay"), r.args...)
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DialContext: r.Host.Dial, DisableKeepAlives: true}}
	Eventually(r.t, 20*time.Second, func() error {
		response, err := client.Get("http://" + netip.AddrPortFrom(r.Host.V4, r.port).String() + "/")
		if err == nil {
			response.Body.Close()
		}
		return err
	})
}

// Kill ends the relay with SIGKILL.
func (r *Relay) Kill() { r.process.kill() }

// Terminate asks the relay to end, as a service manager does, and does not wait.
func (r *Relay) Terminate() { r.process.signal(syscall.SIGTERM) }

// Ended is closed when the relay has ended.
func (r *Relay) Ended() <-chan struct{} { return r.process.exited }
