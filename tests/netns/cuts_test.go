//go:build linux

package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"github.com/warren-overlay/warren/tests/lab"
)

// toldLimit is how soon a program must know that its flow has ended.
const toldLimit = 3 * time.Second

// instant is a moment that goroutines set.
type instant struct{ at atomic.Int64 }

func (i *instant) now() { i.at.Store(time.Now().UnixNano()) }

// first sets the moment where it is not set yet.
func (i *instant) first() { i.at.CompareAndSwap(0, time.Now().UnixNano()) }

func (i *instant) since(begin time.Time) (time.Duration, bool) {
	at := i.at.Load()
	return time.Unix(0, at).Sub(begin), at != 0
}

// cutFlow is a flow from the laptop with numbered packets there and echoes back.
type cutFlow struct {
	name string
	// sent and arrived count what the laptop sends, and what came of it.
	sent, arrived, echoed atomic.Int64
	last, lastEcho        instant
	// counted are those that arrived of the packets with base and later numbers;
	// there is no base before it is set.
	base, counted atomic.Int64
	// told is when each end's program had an error; an end that has none to
	// expect is left out.
	told     [2]instant
	tells    [2]bool
	stop     chan struct{}
	stopOnce sync.Once
}

const flowInterval = 10 * time.Millisecond

func newCutFlow(t *testing.T, name string) *cutFlow {
	f := &cutFlow{name: name, stop: make(chan struct{})}
	f.base.Store(math.MaxInt64)
	t.Cleanup(f.end)
	return f
}

func (f *cutFlow) end() { f.stopOnce.Do(func() { close(f.stop) }) }

// send calls write until the flow is stopped.
func (f *cutFlow) send(write func(number []byte) error, goesOn bool) {
	tick := time.NewTicker(flowInterval)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
		if err := write(binary.BigEndian.AppendUint64(nil, uint64(f.sent.Load()))); err != nil {
			f.told[0].first()
			if !goesOn {
				return
			}
			continue
		}
		f.sent.Add(1)
	}
}

// startTCP connects the two hosts; the service listens on one address and is
// reached at another where it stands behind a stack in user space.
func startTCP(t *testing.T, name string, from, to *lab.Host, listen, dial string) *cutFlow {
	t.Helper()
	return startTCPBy(t, name, from.Dial, to, listen, dial)
}

// startSOCKS is startTCP from a host whose stack stands in user space, by its
// proxy.
func startSOCKS(t *testing.T, name string, from *lab.Host, proxyAddress string, to *lab.Host, listen string) *cutFlow {
	t.Helper()
	by := func(ctx context.Context, network, address string) (net.Conn, error) {
		dialer, err := proxy.SOCKS5("tcp", proxyAddress, nil, hostDialer{ctx, from})
		if err != nil {
			return nil, err
		}
		return dialer.Dial(network, address)
	}
	return startTCPBy(t, name, by, to, listen, listen)
}

func startTCPBy(t *testing.T, name string, by func(context.Context, string, string) (net.Conn, error), to *lab.Host, listen, dial string) *cutFlow {
	t.Helper()
	f := newCutFlow(t, name)
	f.tells = [2]bool{true, true}
	l := to.Listen(t, listen)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		number := make([]byte, 8)
		for {
			if _, err := io.ReadFull(c, number); err != nil {
				f.told[1].first()
				return
			}
			f.arrived.Add(1)
			f.last.now()
			c.Write(number)
		}
	}()
	var c net.Conn
	lab.Eventually(t, 10*time.Second, func() (err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		c, err = by(ctx, "tcp", dial)
		return err
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		number := make([]byte, 8)
		for {
			if _, err := io.ReadFull(c, number); err != nil {
				f.told[0].first()
				return
			}
			f.echoed.Add(1)
			f.lastEcho.now()
		}
	}()
	go f.send(func(b []byte) error { _, err := c.Write(b); return err }, false)
	return f
}

func startUDP(t *testing.T, name string, from, to *lab.Host, listen, dial string) *cutFlow {
	t.Helper()
	f := newCutFlow(t, name)
	f.tells = [2]bool{true, false} // the service's socket is not connected
	s := to.ListenPacket(t, listen)
	go func() {
		buffer := make([]byte, 64)
		for {
			n, peer, err := s.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n == 8 {
				if int64(binary.BigEndian.Uint64(buffer)) >= f.base.Load() {
					f.counted.Add(1)
				}
				f.arrived.Add(1)
				f.last.now()
				s.WriteTo(buffer[:n], peer)
			}
		}
	}()
	c, err := from.Dial(t.Context(), "udp", dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buffer := make([]byte, 64)
		for {
			_, err := c.Read(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				f.told[0].first()
				continue
			}
			f.echoed.Add(1)
			f.lastEcho.now()
		}
	}()
	go f.send(func(b []byte) error { _, err := c.Write(b); return err }, true)
	return f
}

// startICMP asks for echoes by a raw socket. What arrives is the replies.
func startICMP(t *testing.T, name string, from *lab.Host, family, dial string, id uint16) *cutFlow {
	t.Helper()
	f := newCutFlow(t, name)
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if family == "-6" {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	var c net.PacketConn
	from.Do(func() (err error) {
		c, err = net.ListenPacket(network, "")
		return err
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		buffer := make([]byte, 1500)
		for {
			n, peer, err := c.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n >= 8 && buffer[0] == reply && binary.BigEndian.Uint16(buffer[4:]) == id && peer.String() == dial {
				f.arrived.Add(1)
				f.last.now()
				f.lastEcho.now()
			}
		}
	}()
	to := &net.IPAddr{IP: net.ParseIP(dial)}
	go f.send(func(number []byte) error {
		b := append([]byte{request, 0, 0, 0, byte(id >> 8), byte(id)}, number[6:]...)
		sum := uint32(0)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum)) // the kernel writes that of ICMPv6
		_, err := c.WriteTo(b, to)
		return err
	}, true)
	return f
}

// cutPolicy is what the matrix begins with. The grant in the middle is what its
// events take away; nothing else lets the laptop ask whether the others are
// there.
func cutPolicy(members, work string) string {
	return fmt.Sprintf(`{
	"groups": {"group:eng": [%s]},
	"tagOwners": {"tag:db": [], "tag:web": [], "tag:mate": [], "tag:work": []},
	"grants": [
		%s
		{"src": ["tag:mate"], "dst": ["tag:db", "tag:web"], "ip": ["udp:7000-7009"]},
	],
}`, members, work)
}

const (
	alice     = `"alice@example.com"`
	workGrant = `{"src": ["group:eng"], "dst": ["tag:db", "tag:web"], "ip": ["tcp:6000-6001", "udp:6000-6001", "sctp:6000-6001"]},
		{"src": ["tag:web"], "dst": ["group:eng"], "ip": ["tcp:6100-6101"]},`
	movedTo = `{"src": ["group:eng"], "dst": ["tag:db", "tag:web"], "ip": ["tcp:6500", "udp:6500", "sctp:6500"]},
		{"src": ["tag:web"], "dst": ["group:eng"], "ip": ["tcp:6600"]},`
	taggedWork = `{"src": ["group:eng"], "dst": ["tag:work"], "ip": ["tcp:6000-6001", "udp:6000-6001", "sctp:6000-6001"]},
		{"src": ["tag:work"], "dst": ["group:eng"], "ip": ["tcp:6100-6101"]},`

	// webProxy is where programs on the host without a TUN device begin.
	webProxy = "127.0.0.1:1080"
)

// TestCutsMatrix ends established flows of every protocol and family, to a node
// with a TUN device and to one with a stack in user space, on direct and on
// relayed paths, in every way that an administrator has; two labs run at a time.
// The node without a TUN device opens flows, too. It measures the last packet on
// both ends, requires that the programs on both ends are told, and counts what
// flows of another device lose: nothing.
func TestCutsMatrix(t *testing.T) {
	for _, relayed := range []bool{false, true} {
		t.Run(map[bool]string{false: "direct", true: "relayed"}[relayed], func(t *testing.T) {
			t.Parallel()
			cutLab(t, relayed)
		})
	}
}

type cutLabNodes struct {
	coordinator           *lab.Coordinator
	laptop, mate, db, web *lab.Node
}

// setPolicy puts a policy in force and waits until the nodes have it.
func (n *cutLabNodes) setPolicy(t *testing.T, text string) {
	t.Helper()
	nodes := []*lab.Node{n.laptop, n.db, n.web} // nothing changes for the fourth
	epoch := func(node *lab.Node) float64 {
		e, _ := node.Status()["policy_epoch"].(float64)
		return e
	}
	before := make([]float64, len(nodes))
	for i, node := range nodes {
		before[i] = epoch(node)
	}
	n.coordinator.SetPolicy(text)
	for i, node := range nodes {
		lab.Eventually(t, 40*time.Second, func() error {
			if e := epoch(node); e <= before[i] {
				return fmt.Errorf("%s still has policy %v", node.Host.Name, e)
			}
			return nil
		})
	}
}

func cutLab(t *testing.T, relayed bool) {
	l := lab.New(t)
	c := l.Host("hub").Coordinator(t)
	n := &cutLabNodes{coordinator: c}
	c.Admin("users", "create", "alice@example.com")
	c.SetPolicy(cutPolicy(alice, workGrant))
	n.laptop, n.mate, n.db = l.Host("laptop").Daemon(t), l.Host("mate").Daemon(t), l.Host("db").Daemon(t)
	n.web = l.Host("web").Daemon(t, "--tun", "userspace", "--socks5", webProxy)
	if relayed {
		for _, a := range []*lab.Node{n.laptop, n.mate} {
			for _, b := range []*lab.Node{n.db, n.web} {
				a.Host.BlockUDP(b.Host)
				b.Host.BlockUDP(a.Host)
			}
		}
	}
	n.laptop.Up(c, c.Key("--user", "alice@example.com"))
	n.mate.Up(c, c.Key("--tags", "tag:mate"))
	n.db.Up(c, c.Key("--tags", "tag:db,tag:work"))
	n.web.Up(c, c.Key("--tags", "tag:web,tag:work"))
	direct := func() {
		if !relayed {
			n.laptop.CLI("ping", "--until-direct", "db")
			n.laptop.CLI("ping", "--until-direct", "web")
		}
	}
	direct()
	var table []string
	for _, event := range []struct {
		name   string
		echoes bool // whether they end, too
		cut    func() time.Time
		undo   func() // what a policy does not undo; nil for nothing
	}{
		{"rule removed", true, func() time.Time {
			begin := time.Now()
			c.SetPolicy(cutPolicy(alice, ""))
			return begin
		}, nil},
		{"rule narrowed to another port", false, func() time.Time {
			begin := time.Now()
			c.SetPolicy(cutPolicy(alice, movedTo))
			return begin
		}, nil},
		{"group membership removed", true, func() time.Time {
			begin := time.Now()
			c.SetPolicy(cutPolicy("", workGrant))
			return begin
		}, nil},
		{"tag removed", true, func() time.Time {
			begin := time.Now()
			c.Admin("devices", "tag", "db", "--tags", "tag:db")
			c.Admin("devices", "tag", "web", "--tags", "tag:web")
			return begin
		}, func() {
			c.Admin("devices", "tag", "db", "--tags", "tag:db,tag:work")
			c.Admin("devices", "tag", "web", "--tags", "tag:web,tag:work")
		}},
		{"user suspended", true, func() time.Time {
			begin := time.Now()
			c.Admin("users", "suspend", "alice@example.com")
			return begin
		}, func() {
			c.Admin("users", "resume", "alice@example.com")
			lab.Eventually(t, 40*time.Second, func() error {
				if state := n.laptop.Status()["state"]; state != "connected" {
					return fmt.Errorf("after the user was resumed the laptop is %v", state)
				}
				return nil
			})
			direct()
		}},
		{"notAfter, coordinator stopped", true, func() time.Time {
			end := time.Now().Add(6 * time.Second).Truncate(time.Second).UTC()
			n.setPolicy(t, cutPolicy(alice, strings.ReplaceAll(workGrant, `"src"`, fmt.Sprintf(`"notAfter": %q, "src"`, end.Format(time.RFC3339)))))
			c.Kill()
			return end
		}, nil},
		{"device revoked", true, func() time.Time {
			begin := time.Now()
			c.Admin("devices", "revoke", "laptop")
			return begin
		}, nil},
	} {
		switch {
		case event.name == "notAfter, coordinator stopped" && relayed:
			continue // the relay is a part of the coordinator; ring 2 has this cell
		case event.name == "device revoked" && !relayed:
			c.Start()
			n.setPolicy(t, cutPolicy(alice, workGrant)) // the nodes are connected again
		case event.name == "tag removed":
			n.setPolicy(t, cutPolicy(alice, taggedWork))
		default:
			c.SetPolicy(cutPolicy(alice, workGrant))
		}
		t.Run(event.name, func(t *testing.T) {
			table = append(table, cutEvent(t, n, event.name, event.echoes, event.cut)...)
		})
		if event.undo != nil {
			event.undo()
		}
	}
	slices.Sort(table)
	t.Logf("last packet at the receiver, last echo, and when the programs on both ends knew:\n%s", strings.Join(table, "\n"))
}

func cutEvent(t *testing.T, n *cutLabNodes, name string, echoes bool, cut func() time.Time) (table []string) {
	var ends, stays []*cutFlow
	for _, target := range []struct {
		kind string
		node *lab.Node
	}{{"TUN", n.db}, {"userspace", n.web}} {
		for _, family := range families {
			listen := func(port int) string { return address(target.node, family, port) }
			if target.kind == "userspace" {
				listen = func(port int) string {
					return joined(map[string]string{"-4": "127.0.0.1", "-6": "::1"}[family], port)
				}
			}
			label := target.kind + " IPv" + family[1:]
			host := target.node.Host
			dial := address(target.node, family, 6000)
			ends = append(ends, startTCP(t, label+" TCP", n.laptop.Host, host, listen(6000), dial), startUDP(t, label+" UDP", n.laptop.Host, host, listen(6000), dial))
			if target.kind == "TUN" { // the stack in user space has no SCTP
				ends = append(ends, startSCTP(t, label+" SCTP", n.laptop.Host, host, family, target.node.IP(family), 6000))
			}
			if target.kind == "userspace" {
				ends = append(ends, startSOCKS(t, label+" TCP opened there", host, webProxy, n.laptop.Host, address(n.laptop, family, 6100)))
			}
			if echoes {
				ends = append(ends, startICMP(t, label+" ICMP", n.laptop.Host, family, target.node.IP(family), uint16(os.Getpid())))
			}
			stays = append(stays, startUDP(t, label+" UDP of another device", n.mate.Host, host, listen(7000), address(target.node, family, 7000)))
		}
	}
	for _, f := range append(slices.Clone(ends), stays...) {
		lab.Eventually(t, 10*time.Second, func() error {
			if f.arrived.Load() < 10 {
				return fmt.Errorf("%s: %d packets arrived", f.name, f.arrived.Load())
			}
			return nil
		})
	}
	// What the first packets lost on a way that was not there yet is not counted:
	// it begins with a number that was not sent yet.
	for _, f := range stays {
		f.base.Store(f.sent.Load() + 5)
	}
	for _, f := range ends { // errors before the cut are of the beginning
		f.told[0].at.Store(0)
	}
	begin := cut()
	lab.Eventually(t, 15*time.Second, func() error {
		if since := time.Since(begin); since < lab.Quiet {
			return fmt.Errorf("%v since the change", since)
		}
		for _, f := range ends {
			if since := time.Since(time.Unix(0, f.last.at.Load())); since < lab.Quiet {
				return fmt.Errorf("%s: the last packet arrived %v ago", f.name, since)
			}
		}
		return nil
	})
	for _, f := range ends {
		last, _ := f.last.since(begin)
		echo, _ := f.lastEcho.since(begin)
		row := fmt.Sprintf("%-30s %-31s %8v %8v", name, f.name, max(last, 0).Round(time.Millisecond), max(echo, 0).Round(time.Millisecond))
		if last > cutLimit || echo > cutLimit {
			t.Errorf("%s went on for %v, its echoes for %v", f.name, last, echo)
		}
		for end, tells := range f.tells {
			told, ok := f.told[end].since(begin)
			if tells && (!ok || told > toldLimit) {
				t.Errorf("%s: the program on end %d was told: %v, after %v", f.name, end, ok, told)
			}
			if ok {
				row += fmt.Sprintf(" %8v", told.Round(time.Millisecond))
			}
		}
		table = append(table, row)
	}
	for _, f := range stays {
		f.end()
		lab.Eventually(t, 3*time.Second, func() error {
			sent := f.sent.Load() - f.base.Load()
			if lost := sent - f.counted.Load(); lost != 0 || sent < 100 {
				return fmt.Errorf("%s, which nothing has cut, lost %d of %d packets", f.name, lost, sent)
			}
			return nil
		})
	}
	for _, f := range ends {
		f.end()
	}
	return table
}
