package relay

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// crowd is a server with members of every kind that datagrams are forwarded to
// differently.
type crowd struct {
	*rig
	members []*client
	// headers are those that a member may write, one for each number there is.
	headers map[netip.AddrPort][][DatagramHeader]byte
}

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	w := &crowd{rig: newDatagramRig(t, 2_000_000), headers: make(map[netip.AddrPort][][DatagramHeader]byte)}
	for i, at := range []struct{ token, addr string }{
		{"net1", "192.0.2.7:1000"},
		{"net1", "198.51.100.9:2000"},
		{"net1", "[2001:db8::7]:3000"}, // what is long goes to it by the stream
		{"net2", "203.0.113.5:4000"},
	} {
		w.members = append(w.members, w.joinUDP(byte(i+1), at.token, at.addr))
	}
	for _, from := range w.members {
		for _, to := range w.members {
			w.wire(from, to.key.Public(), "asks for the number")
		}
	}
	// This one hears no datagrams any more.
	w.members = append(w.members, w.joinUDP(9, "net1", "192.0.2.9:9000"))
	silent := w.members[4]
	w.wire(w.members[0], silent.key.Public(), "asks for the number")
	if err := w.server.HandleMessage(silent.id, AppendFrame(nil, FrameStream), w.now); err != nil {
		t.Fatal(err)
	}
	var numbers []uint32
	for _, m := range w.members {
		numbers = append(numbers, m.session.datagrams.number)
	}
	numbers = append(numbers, 12345) // nobody's
	for _, m := range w.members {
		for _, n := range numbers {
			var h [DatagramHeader]byte
			putHeader(h[:], datagramData, m.session.datagrams.tag, n)
			w.headers[m.addr] = append(w.headers[m.addr], h)
		}
	}
	return w
}

// TestRunsOfDatagrams compares HandleDatagrams with its reference, HandleDatagram
// for each: what comes out, what waits for the connections, and what was counted.
func TestRunsOfDatagrams(t *testing.T) {
	long := 0 // runs that were handled at once
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		one, run := newCrowd(t), newCrowd(t)
		now := one.now
		for step := range 200 {
			now = now.Add(time.Duration(random.IntN(3000)) * time.Microsecond)
			if step == 190 {
				now = now.Add(datagramWait) // nobody has bound an address for so long
			}
			from := one.members[random.IntN(len(one.members))].addr
			headers := one.headers[from]
			switch random.IntN(20) {
			case 0:
				from = netip.MustParseAddrPort("192.0.2.77:7777") // nobody's
			case 1:
				headers = one.headers[one.members[0].addr]
			}
			datagrams := randomDatagrams(random, headers)
			var want []string
			for _, b := range datagrams {
				if to, out := one.server.HandleDatagram(from, bytes.Clone(b), now); to.IsValid() {
					want = append(want, to.String()+string(out))
				}
			}
			var got []string
			for rest := cloneAll(datagrams); len(rest) > 0; {
				to, out, handled := run.server.HandleDatagrams(from, rest, now)
				if handled < 1 || handled > len(rest) || to.IsValid() != (len(out) > 0) {
					t.Fatalf("seed %d, step %d: handled %d of %d, %d to %v", seed, step, handled, len(rest), len(out), to)
				}
				if len(out) > 1 {
					long++
				}
				for _, b := range out {
					got = append(got, to.String()+string(b))
				}
				rest = rest[handled:]
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, step %d: %d datagrams come out, want %d, or others", seed, step, len(got), len(want))
			}
			backlog := random.IntN(4) > 0
			one.server.HandleBacklog(backlog, now)
			run.server.HandleBacklog(backlog, now)
			if a, b := one.server.Snapshot(), run.server.Snapshot(); a != b {
				t.Fatalf("seed %d, step %d: counted\n%+v, want\n%+v", seed, step, b, a)
			}
		}
		for _, m := range one.members {
			a, _ := one.server.NextMessage(m.id, nil)
			b, _ := run.server.NextMessage(m.id, nil)
			if !bytes.Equal(a, b) {
				t.Fatalf("seed %d: other messages for %s", seed, m.key.Public().Short())
			}
		}
		if st := run.server.Snapshot().Stats; seed == 0 && (st.DroppedRate == 0 || st.DroppedShare == 0 || st.DroppedNoPeer == 0 || st.DatagramsUnbound == 0) {
			t.Errorf("the test reaches too little: %+v", st)
		}
	}
	if long < 1000 {
		t.Errorf("only %d runs of more than one", long)
	}
}

// randomDatagrams returns runs of datagrams with one header each.
func randomDatagrams(random *rand.Rand, headers [][DatagramHeader]byte) (out [][]byte) {
	sizes := []int{0, 1, 100, safePayload, safePayload + 1, 1452, 1452, 1452, 1464, 1465}
	for range 1 + random.IntN(4) {
		header, size := headers[random.IntN(len(headers))], sizes[random.IntN(len(sizes))]
		for range 1 + random.IntN(40) {
			if random.IntN(10) == 0 {
				size = sizes[random.IntN(len(sizes))]
			}
			b := append(header[:], make([]byte, size)...)
			switch random.IntN(60) {
			case 0:
				b[0] = byte(random.IntN(256))
			case 1:
				b = b[:random.IntN(len(b))]
			}
			out = append(out, b)
		}
	}
	return out
}

func cloneAll(datagrams [][]byte) (out [][]byte) {
	for _, b := range datagrams {
		out = append(out, bytes.Clone(b))
	}
	return out
}
