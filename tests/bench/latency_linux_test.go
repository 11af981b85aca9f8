package bench

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warren-overlay/warren/tests/lab"
)

const openPolicy = `{
	"tagOwners": {"tag:db": ["alice@example.com"]},
	"grants": [{"src": ["alice@example.com"], "dst": ["tag:db"], "ip": ["*"]}],
}`

// pair is a coordinator and a database server on one LAN, and a host for
// alice's laptop.
func pair(b *testing.B) (c *lab.Coordinator, db *lab.Node, laptop *lab.Host) {
	b.Helper()
	l := lab.New(b)
	c = l.Host("hub").Coordinator(b)
	c.Admin("users", "create", "alice@example.com")
	c.SetPolicy(openPolicy)
	db = l.Host("db").Daemon(b)
	db.Up(c, c.Key("--tags", "tag:db"))
	return c, db, l.Host("laptop")
}

// report adds the median, the 99th percentile and the maximum of the times as
// metrics.
func report(b *testing.B, times []time.Duration) {
	slices.Sort(times)
	at := func(q float64) float64 {
		return float64(times[min(len(times)-1, int(q*float64(len(times))))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), "ms/median")
	b.ReportMetric(at(0.99), "ms/p99")
	b.ReportMetric(at(1), "ms/max")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkUpToFirstPing measures from the start of `warren up` to the end of
// `warren ping` with one answer: a device that joins and reaches a peer on its
// LAN, the start of both programs included.
func BenchmarkUpToFirstPing(b *testing.B) {
	c, _, host := pair(b)
	key := c.Key("--user", "alice@example.com", "--reusable")
	laptop := host.Daemon(b)
	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		laptop.Up(c, key)
		laptop.CLI("ping", "-c", "1", "db")
		times = append(times, time.Since(begin))
		laptop.CLI("logout")
	}
	report(b, times)
}

// BenchmarkRevoke measures from the start of `devices revoke` to the last
// packet of an established UDP flow at the application that receives it.
func BenchmarkRevoke(b *testing.B) {
	c, db, host := pair(b)
	key := c.Key("--user", "alice@example.com", "--reusable")
	port := 6000
	var times []time.Duration
	for b.Loop() {
		laptop := host.Daemon(b)
		laptop.Up(c, key)
		laptop.CLI("ping", "-c", "1", "db")
		port++
		flow := lab.StartUDP(b, host, db.Host, net.JoinHostPort(db.IP("-4"), strconv.Itoa(port)))
		begin := time.Now()
		c.Admin("devices", "revoke", "--keep-key", "laptop")
		times = append(times, flow.CutAfter(b, begin))
		laptop.Kill()
	}
	report(b, times)
}

// BenchmarkIdleMemory measures the resident memory of a daemon with two peers
// ten seconds after the last packet.
func BenchmarkIdleMemory(b *testing.B) {
	for _, device := range []string{"warren0", "userspace"} {
		b.Run(device, func(b *testing.B) {
			l := lab.New(b)
			c := l.Host("hub").Coordinator(b)
			c.Admin("users", "create", "alice@example.com")
			c.SetPolicy(openPolicy)
			for _, name := range []string{"db", "db2"} {
				l.Host(name).Daemon(b).Up(c, c.Key("--tags", "tag:db"))
			}
			laptop := l.Host("laptop").Daemon(b, "--tun", device)
			laptop.Up(c, c.Key("--user", "alice@example.com"))
			laptop.CLI("ping", "-c", "3", "db")
			laptop.CLI("ping", "-c", "3", "db2")
			idle := time.NewTimer(10 * time.Second)
			<-idle.C
			for b.Loop() {
				b.ReportMetric(resident(b, laptop.Pid()), "MB")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// resident returns a process's resident memory in megabytes (proc_pid_status).
func resident(b *testing.B, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "VmRSS:" {
			kilobytes, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kilobytes / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
