package lab

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// RelayConfig says what a relay is like.
type RelayConfig struct {
	// Name is how the coordinator knows it.
	Name string
	// Datagrams has it take packets over UDP, and answer STUN requests there; else
	// they go inside HTTPS only.
	Datagrams bool
}

// RelayMetricsPort is where a Relay serves its metrics, TCP of 127.0.0.1.
const RelayMetricsPort = "9091"

// datagramPort is where a Relay takes packets over UDP.
const datagramPort = "3478"

// RelayEntry returns the coordinator's setting --relay for a Relay on the host: nodes
// reach it by wss on port 443, by the name that Internet.Name gave the host, else by
// its IPv4 address.
func (h *Host) RelayEntry(cfg RelayConfig) string {
	entry := fmt.Sprintf("name=%s,url=wss://%s", cfg.Name, h.at())
	if cfg.Datagrams {
		udp := net.JoinHostPort(h.at(), datagramPort)
		entry += fmt.Sprintf(",udp=%s,stun=%s", udp, udp)
	}
	return entry
}

// Relay is a running warren-relay.
type Relay struct {
	Host *Host
	Name string

	t       testing.TB
	url     string // of itself, for the host
	args    []string
	process *process
}

// Relay starts a relay on the host for the network of a coordinator, which knows it
// by Host.RelayEntry of the same configuration. It has a certificate that programs on
// the lab's hosts trust.
func (h *Host) Relay(t testing.TB, c *Coordinator, cfg RelayConfig) *Relay {
	t.Helper()
	p := h.authority.issue(t, h.Name, h.domain, h.addresses()...)
	r := h.newRelay(t, c, cfg, "https://"+h.V4.String(), ":"+httpsPort, ":"+datagramPort)
	r.args = append(r.args, "--tls-cert", p.certificate, "--tls-key", p.key)
	r.Start()
	return r
}

func (h *Host) newRelay(t testing.TB, c *Coordinator, cfg RelayConfig, url, listen, udp string) *Relay {
	t.Helper()
	if !cfg.Datagrams {
		udp = "off"
	}
	return &Relay{Host: h, Name: cfg.Name, t: t, url: url, args: []string{
		"serve", "--name", cfg.Name, "--listen", listen, "--udp-listen", udp, "--metrics-listen", "127.0.0.1:" + RelayMetricsPort,
		"--data", filepath.Join(t.TempDir(), cfg.Name), "--coordinator", c.urlFor(h), "--fingerprint", c.Fingerprint(), "--log-level", "debug",
	}}
}

// Start starts the relay again after Kill or Stop and waits until it serves.
func (r *Relay) Start() {
	r.t.Helper()
	r.process = r.Host.launch(r.t, r.Host.program(r.t, "warren-relay"), r.args...)
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{
		DialContext: r.Host.Dial, TLSClientConfig: r.Host.authority.client(), DisableKeepAlives: true,
	}}
	Eventually(r.t, 20*time.Second, func() error {
		response, err := client.Get(r.url)
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

// Signal sends a signal to the relay.
func (r *Relay) Signal(s syscall.Signal) {
	r.process.signal(s)
	if s == syscall.SIGSTOP {
		// A test that fails in between must be able to end it.
		r.t.Cleanup(func() { r.process.signal(syscall.SIGCONT) })
	}
}

// Ended is closed when the relay has ended.
func (r *Relay) Ended() <-chan struct{} { return r.process.exited }
