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

	"github.com/warren-overlay/warren/client/localapi"
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
	return pairOn(b, lab.New(b))
}

// pairOn is pair on a LAN that the caller made.
func pairOn(b *testing.B, l *lab.Lab) (c *lab.Coordinator, db *lab.Node, laptop *lab.Host) {
	b.Helper()
	c = l.Host("hub").Coordinator(b)
	c.Admin("users", "create", "alice@example.com")
	c.SetPolicy(openPolicy)
	db = l.Host("db").Daemon(b)
	db.Up(c, c.Key("--tags", "tag:db"))
	return c, db, l.Host("laptop")
}

// report adds the median, the 95th and the 99th percentile and the maximum of the
// times as metrics.
func report(b *testing.B, times []time.Duration) {
	b.ReportMetric(at(times, 0.5), "ms/median")
	b.ReportMetric(at(times, 0.95), "ms/p95")
	b.ReportMetric(at(times, 0.99), "ms/p99")
	b.ReportMetric(at(times, 1), "ms/max")
	b.ReportMetric(0, "ns/op")
}

// at returns a quantile of the times in milliseconds; it sorts them.
func at(times []time.Duration, q float64) float64 {
	slices.Sort(times)
	return float64(times[min(len(times)-1, int(q*float64(len(times))))].Microseconds()) / 1000
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

// BenchmarkUpToDirect measures from the start of `warren up` to the first answer
// that came on a direct path: a device that joins, and one that returns after
// `warren down`, on the LAN of its peer and of the relay. The pings come from the
// local API, one every few milliseconds, so that no more than that and one round
// trip is added to the moment in which the path became direct.
func BenchmarkUpToDirect(b *testing.B) {
	b.Run("joins", func(b *testing.B) { upTo(b, "direct", true) })
	b.Run("returns", func(b *testing.B) { upTo(b, "direct", false) })
}

// BenchmarkUpToRelayed measures from the start of `warren up` to the first answer
// over the relay, where the two devices may not send each other any UDP.
func BenchmarkUpToRelayed(b *testing.B) {
	b.Run("joins", func(b *testing.B) { upTo(b, "relay", true) })
	b.Run("returns", func(b *testing.B) { upTo(b, "relay", false) })
}

// betweenPings is the pause after an answer that came on another path than the
// one that is waited for.
const betweenPings = 2 * time.Millisecond

// downTime is for how long a device that returns was away: so that it does not
// come more often than its peer's budget of answers to probes is meant for.
const downTime = 3 * time.Second

// upTo measures from the start of `warren up` to the first answer on a path of
// the kind.
func upTo(b *testing.B, kind string, joins bool) {
	c, db, host := pair(b)
	if kind == "relay" {
		host.BlockUDP(db.Host)
		db.Host.BlockUDP(host)
	}
	key := c.Key("--user", "alice@example.com", "--reusable")
	laptop := host.Daemon(b)
	if !joins {
		laptop.Up(c, key)
		laptop.CLI("ping", "-c", "1", "db")
		laptop.CLI("down")
	}
	api := laptop.API()
	var times []time.Duration
	for b.Loop() {
		if !joins && kind == "direct" {
			<-time.After(downTime)
		}
		begin := time.Now()
		if joins {
			laptop.Up(c, key)
		} else {
			laptop.CLI("up")
		}
		connected := time.Since(begin)
		answers := 0
		var first time.Duration
		for {
			reply, err := api.Ping(b.Context(), localapi.PingRequest{Target: "db", Timeout: 20 * time.Second})
			if err != nil {
				b.Fatal(err)
			}
			if answers++; answers == 1 {
				first = time.Since(begin)
			}
			if reply.Path.Kind == kind {
				break
			}
			if time.Since(begin) > 20*time.Second {
				b.Fatalf("after %d answers the path is still %+v", answers, reply.Path)
			}
			<-time.After(betweenPings)
		}
		took := time.Since(begin)
		times = append(times, took)
		b.Logf("connected after %v, the first answer after %v, %s after %v", connected, first, kind, took)
		if joins {
			laptop.CLI("logout")
		} else {
			laptop.CLI("down")
		}
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
