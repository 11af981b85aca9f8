package server

import (
	"fmt"
	"sync"
	"testing"

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
