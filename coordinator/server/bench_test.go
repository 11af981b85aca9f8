package server

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// crowd is a site with n devices that all see each other.
func crowd(b *testing.B, n int) (*site, []*device) {
	o := newSite(b)
	o.must(registry.CreateUser{Login: "alice@example.com"})
	o.must(registry.SetPolicy{Text: everyone})
	key := o.alices()
	devices := make([]*device, n)
	for i := range devices {
		d := newDevice(b)
		if _, refused := d.connect(o); refused != nil {
			b.Fatal(refused)
		}
		if _, refused := d.register(key, fmt.Sprint("d", i)); refused != nil {
			b.Fatal(refused)
		}
		devices[i] = d
	}
	var wg sync.WaitGroup
	for _, d := range devices {
		wg.Go(func() {
			if refused := d.listen(); refused != nil {
				b.Error(refused)
			}
		})
	}
	wg.Wait()
	// What is measured begins when all know that all are there.
	until(b, devices, func(d *device) bool {
		m := d.held()
		for _, p := range m.Peers {
			if !p.State.Online {
				return false
			}
		}
		return len(m.Peers) == n-1
	})
	b.Cleanup(func() {
		for _, d := range devices {
			d.ch.Close()
		}
		o.stop()
	})
	return o, devices
}

// until waits until every device holds what f wants.
func until(b *testing.B, devices []*device, f func(*device) bool) {
	for _, d := range devices {
		for !f(d) {
			<-d.changed
		}
	}
}

// BenchmarkPolicyEdit measures from the edit of a policy that concerns
// everybody until the last device has its new rules (CONVERGE).
func BenchmarkPolicyEdit(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o, devices := crowd(b, n)
			for i := 0; b.Loop(); i++ {
				before := make(map[*device]string)
				for _, d := range devices {
					before[d] = string(d.held().Rules)
				}
				o.must(registry.SetPolicy{Text: fmt.Sprintf(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:%d"]}]}`, i+1)})
				until(b, devices, func(d *device) bool { return string(d.held().Rules) != before[d] })
			}
		})
	}
}

// BenchmarkRevoke measures from the revocation of a device until the last of
// its peers has dropped it.
func BenchmarkRevoke(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o, devices := crowd(b, n)
			for i := 0; b.Loop(); i++ {
				if i == n-1 {
					b.Skip("all are gone")
				}
				o.must(registry.RevokeDevice{Node: ident.NodeID(i + 1), KeepKey: true})
				until(b, devices[i+1:], func(d *device) bool { _, there := d.held().Peers[ident.NodeID(i+1)]; return !there })
			}
		})
	}
}

// BenchmarkRevokeDuringReconnect measures from a revocation, right behind the
// moment when nine in ten devices come back at once, until the last of those that
// stayed has dropped the device. It says, too, how long the coming back takes.
func BenchmarkRevokeDuringReconnect(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o, devices := crowd(b, n)
			stay, back := devices[:n/10], devices[n/10:]
			var whole time.Duration
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				if i == len(stay)-1 {
					b.Skip("all are gone")
				}
				for _, d := range back {
					d.close()
				}
				for _, d := range back {
					if _, refused := d.connect(o); refused != nil {
						b.Fatal(refused)
					}
				}
				var wg sync.WaitGroup
				b.StartTimer()
				began := time.Now()
				for _, d := range back {
					wg.Go(func() {
						if refused := d.listen(); refused != nil {
							b.Error(refused)
						}
					})
				}
				o.must(registry.RevokeDevice{Node: ident.NodeID(i + 1), KeepKey: true})
				until(b, stay[i+1:], func(d *device) bool { _, there := d.held().Peers[ident.NodeID(i+1)]; return !there })
				b.StopTimer()
				wg.Wait()
				whole += time.Since(began)
				b.StartTimer()
			}
			b.ReportMetric(float64(whole.Milliseconds())/float64(b.N), "ms/reconnect")
		})
	}
}

// BenchmarkReconnect measures from the moment when every device lost its
// connection until the last one listens again (L04).
func BenchmarkReconnect(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o, devices := crowd(b, n)
			for b.Loop() {
				for _, d := range devices {
					d.close()
				}
				var wg sync.WaitGroup
				for _, d := range devices {
					wg.Go(func() {
						if _, refused := d.connect(o); refused != nil {
							b.Error(refused)
							return
						}
						if refused := d.listen(); refused != nil {
							b.Error(refused)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}
