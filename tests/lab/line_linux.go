package lab

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Impairment is what a line does to the packets of both directions. The numbers
// are the shares of packets, from 0 to 1, and are drawn independently.
type Impairment struct {
	Loss, Duplicate, Reorder float64
	// Corrupt flips a bit in the payload of UDP datagrams of either family and sets
	// their checksum right, so that they arrive. The share is that of all packets;
	// others pass as they are.
	Corrupt float64
	// Delay delays every packet by as much; they stay in order. Jitter delays every
	// packet by up to as much on top, out of order.
	Delay, Jitter time.Duration
}

// reorderDelay is how much later a packet comes that is out of order: behind a
// few others of a busy flow.
const reorderDelay = 5 * time.Millisecond

// Direction says which way a packet goes on a line.
type Direction int

// The directions, as the site has them.
const (
	Outbound Direction = iota
	Inbound
)

// Line is the link of a site to the core, by a middlebox of this process: it can
// lose, repeat, reorder, delay and corrupt packets, by a seed, and whoever is on
// the way can watch, keep and make packets. Packets are IP, without a link
// layer.
type Line struct {
	// Lost, Duplicated, Reordered and Corrupted count packets that this was done to.
	Lost, Duplicated, Reordered, Corrupted atomic.Int64

	ends [2]*os.File // by the direction that is written there
	late [2]chan delayed

	mu         sync.Mutex // protects all below
	rand       *rand.Rand
	impairment Impairment
	watch      func(d Direction, packet []byte) bool
}

// delayed is a packet that is to go on later.
type delayed struct {
	at     time.Time
	packet []byte
}

// maxDelayed is how many packets a line holds in one direction: those of 50 ms at
// 800 Mbit/s. What comes on top waits outside, as it does for a cable.
const maxDelayed = 4096

// PublicByLine is Public with a line in place of a cable.
func (i *Internet) PublicByLine(name string, seed uint64) (*Host, *Line) {
	i.lab.t.Helper()
	l := &Line{rand: rand.New(rand.NewPCG(seed, 0))}
	h := i.lab.newHost(name)
	link := i.connect(h, "eth0", func(_, port string) {
		l.ends = [2]*os.File{Outbound: i.Core.tunnel(port), Inbound: h.tunnel("eth0")}
	})
	h.V4, h.V6 = link.v4, link.v6
	for d, from := range []*os.File{Outbound: l.ends[Inbound], Inbound: l.ends[Outbound]} {
		l.late[d] = make(chan delayed, maxDelayed)
		go l.carry(Direction(d), from)
		go l.deliver(Direction(d))
	}
	i.lab.t.Cleanup(func() {
		l.ends[0].Close()
		l.ends[1].Close()
	})
	return h, l
}

// tunnel makes a TUN device on the host and returns its other end.
func (h *Host) tunnel(name string) *os.File {
	h.t.Helper()
	var file *os.File
	h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("making %s: %w", name, err)
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	})
	h.linkUp(name)
	return file
}

// Impair says what happens to packets from now on.
func (l *Line) Impair(m Impairment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.impairment = m
}

// Watch has f see every packet before anything else happens to it; those for
// which it returns false go no further. f must not keep the packet, and may call
// Send. A nil f ends it.
func (l *Line) Watch(f func(d Direction, packet []byte) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watch = f
}

// Send puts a packet on the line as it is.
func (l *Line) Send(d Direction, packet []byte) {
	// A device that is going away loses it, as a cable does.
	_, _ = l.ends[d].Write(packet)
}

// deliver puts delayed packets on the line in their order until carry ends.
func (l *Line) deliver(d Direction) {
	for p := range l.late[d] {
		<-time.After(time.Until(p.at))
		l.Send(d, p.packet)
	}
}

// carry passes packets on in one direction until the line ends.
func (l *Line) carry(d Direction, from *os.File) {
	defer close(l.late[d])
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		l.pass(d, buffer[:n])
	}
}

func (l *Line) pass(d Direction, packet []byte) {
	l.mu.Lock()
	watch := l.watch
	l.mu.Unlock()
	if watch != nil && !watch(d, packet) {
		return
	}
	l.mu.Lock()
	m, delay, copies := l.impairment, time.Duration(0), 1
	drawn := func(share float64, count *atomic.Int64) bool {
		if share == 0 || l.rand.Float64() >= share {
			return false
		}
		count.Add(1)
		return true
	}
	if drawn(m.Loss, &l.Lost) {
		copies = 0
	} else if drawn(m.Duplicate, &l.Duplicated) {
		copies = 2
	}
	if m.Corrupt > 0 && l.rand.Float64() < m.Corrupt && l.corruptLocked(packet) {
		l.Corrupted.Add(1)
	}
	if drawn(m.Reorder, &l.Reordered) {
		delay = reorderDelay
	}
	if m.Jitter > 0 {
		delay += time.Duration(l.rand.Int64N(int64(m.Jitter)))
	}
	l.mu.Unlock()
	for range copies {
		if delay == 0 && m.Delay == 0 {
			l.Send(d, packet)
			continue
		}
		later := append([]byte(nil), packet...)
		if delay == 0 {
			l.late[d] <- delayed{time.Now().Add(m.Delay), later}
			continue
		}
		time.AfterFunc(m.Delay+delay, func() { l.Send(d, later) })
	}
}

// corruptLocked flips a bit of a UDP datagram's payload, and reports whether the
// packet is one; l.mu is held.
func (l *Line) corruptLocked(packet []byte) bool {
	payload, ok := UDPPayload(packet)
	if !ok || len(payload) == 0 {
		return false
	}
	payload[l.rand.IntN(len(payload))] ^= 1 << l.rand.IntN(8)
	FixUDPChecksum(packet)
	return true
}
