package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-overlay/warren/tests/lab"
)

// roundTime is how long one measurement takes.
const roundTime = 3 * time.Second

// BenchmarkTunnel measures one TCP stream between two TUN devices through
// Warren, with its filter, against bare wireguard-go on the same topology. The
// two take turns in one run, because rates on a small machine move by more from
// run to run than the engines differ; what counts is the ratio.
func BenchmarkTunnel(b *testing.B) {
	from, to := hosts(b)
	compare(b, [2]*tunnel{bareTunnel(b, from, to), warrenTunnel(b)})
}

// congestionControls are those that streams are measured with. Most systems use
// CUBIC; BBR does not slow down when a packet is lost, so what keeps queues short
// does not concern it.
var congestionControls = []string{"cubic", "bbr"}

// eachCongestionControl runs measure for each of them that the kernel has, with a
// function that makes a connection use it.
func eachCongestionControl(b *testing.B, measure func(b *testing.B, use func(net.Conn))) {
	for _, name := range congestionControls {
		b.Run(name, func(b *testing.B) {
			measure(b, func(c net.Conn) {
				raw, err := c.(*net.TCPConn).SyscallConn()
				if err != nil {
					b.Fatal(err)
				}
				var refused error
				err = raw.Control(func(fd uintptr) {
					refused = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
				})
				if errors.Is(refused, unix.ENOENT) {
					b.Skipf("the kernel has no %s", name)
				}
				if err := errors.Join(err, refused); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// compare reports the second tunnel's figures, and its ratios to the first's:
// medians over as many paired measurements as the benchmark has iterations.
func compare(b *testing.B, tunnels [2]*tunnel) {
	b.Helper()
	eachCongestionControl(b, func(b *testing.B, use func(net.Conn)) { compareStreams(b, tunnels, use) })
}

func compareStreams(b *testing.B, tunnels [2]*tunnel, use func(net.Conn)) {
	b.Helper()
	var rate, cost [2][]float64
	for round := 1; b.Loop(); round++ {
		for i := range tunnels {
			// The one that goes first changes, so that neither gains.
			i = (i + round) % 2
			gigabits, seconds := tunnels[i].measure(b, use)
			rate[i], cost[i] = append(rate[i], gigabits), append(cost[i], seconds)
			b.Logf("round %d: %-12s %.2f Gbit/s, %.2f CPU s/GB", round, tunnels[i].name, gigabits, seconds)
		}
	}
	var rates, costs []float64
	for i := range rate[0] {
		rates = append(rates, rate[1][i]/rate[0][i])
		costs = append(costs, cost[1][i]/cost[0][i])
	}
	b.ReportMetric(median(rate[1]), "Gbit/s")
	b.ReportMetric(median(cost[1]), "CPU-s/GB")
	b.ReportMetric(median(rates), "throughput-ratio")
	b.ReportMetric(median(costs), "CPU-ratio")
	b.ReportMetric(0, "ns/op")
}

func hosts(b *testing.B) (from, to *lab.Host) {
	l := lab.New(b)
	return l.Host("a"), l.Host("b")
}

// warrenTunnel joins two hosts by Warren, on a direct path.
func warrenTunnel(b *testing.B) *tunnel {
	b.Helper()
	c, db, host := pair(b)
	laptop := host.Daemon(b)
	laptop.Up(c, c.Key("--user", "alice@example.com"))
	laptop.CLI("ping", "--until-direct", "db")
	address, err := netip.ParseAddr(db.IP("-4"))
	if err != nil {
		b.Fatal(err)
	}
	return &tunnel{name: "warren", from: host, to: db.Host, address: address, pids: [2]int{laptop.Pid(), db.Pid()}}
}

// measure sends one TCP stream, which use has prepared, for roundTime and returns its rate and the
// processor time that both ends of the tunnel took for a gigabyte.
func (t *tunnel) measure(b *testing.B, use func(net.Conn)) (gigabits, secondsPerGB float64) {
	b.Helper()
	l := t.to.Listen(b, netip.AddrPortFrom(t.address, 0).String())
	defer l.Close()
	received := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			received <- 0
			return
		}
		defer c.Close()
		buffer := make([]byte, 256<<10)
		var total int64
		for {
			n, err := c.Read(buffer)
			total += int64(n)
			if err != nil {
				received <- total
				return
			}
		}
	}()
	c, err := t.from.Dial(b.Context(), "tcp", l.Addr().String())
	if err != nil {
		b.Fatalf("%s: %v", t.name, err)
	}
	defer c.Close()
	use(c)
	buffer := make([]byte, 256<<10)
	before := processorTime(b, t.pids)
	begin := time.Now()
	for time.Since(begin) < roundTime {
		if _, err := c.Write(buffer); err != nil {
			b.Fatalf("%s: %v", t.name, err)
		}
	}
	c.Close()
	total := <-received
	took := time.Since(begin)
	used := processorTime(b, t.pids) - before
	if total == 0 {
		b.Fatalf("%s carried nothing", t.name)
	}
	return float64(total) * 8 / took.Seconds() / 1e9, used.Seconds() / (float64(total) / 1e9)
}

// processorTime returns user and system time of the processes
// (proc_pid_stat, fields 14 and 15, in ticks of 10 ms).
func processorTime(b *testing.B, pids [2]int) time.Duration {
	b.Helper()
	var ticks int64
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			b.Fatal(err)
		}
		// The second field is the name in parentheses, which may hold spaces.
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		for _, field := range fields[11:13] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
