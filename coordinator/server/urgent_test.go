package server

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// TestRevocationOvertakesReconnect lets the map requests of many devices wait for
// the loop, and behind them a revocation, and then a suspension: each is carried
// out before the first map is made, and told before most of them.
func TestRevocationOvertakesReconnect(t *testing.T) {
	for name, cmd := range map[string]registry.Command{
		"revocation": registry.RevokeDevice{Node: 1, KeepKey: true}, "suspension": registry.SuspendUser{Login: "bob@example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, o *site) {
				const returning = 60
				victim := o.join(o.bobs(), "victim")
				watcher := o.join(o.alices(), "watcher")
				devices := make([]*device, returning)
				key := o.alices()
				for i := range devices {
					d := newDevice(t)
					d.connect(o)
					if _, refused := d.register(key, fmt.Sprint("d", i)); refused != nil {
						t.Fatal(refused)
					}
					devices[i] = d
				}
				synctest.Wait()
				// The loop is busy while all ask for their maps.
				release := make(chan struct{})
				go o.do(context.Background(), func() { <-release })
				synctest.Wait()
				for _, d := range devices {
					go d.say(wire.MapRequest{NodeKey: d.node, Proof: d.proof()})
				}
				synctest.Wait()
				streaming := -1
				o.onRevoke = func() { streaming = len(o.byNode) }
				told := make(chan int, 1)
				go func() {
					o.must(cmd)
					// In the loop's next turn for administrators: what it had to say at once is
					// out, and at most a few maps were made.
					o.doBy(context.Background(), o.urgent, func() {
						if _, waits := o.narrowed[o.byNode[2]]; waits {
							t.Error("who saw the device is not told yet")
						}
						told <- len(o.byNode)
					})
				}()
				synctest.Wait()
				close(release)
				if n := <-told; streaming != 2 || n > 1+3*pumpsATurn {
					t.Errorf("%d devices had their maps when it was carried out, %d when it was told", streaming, n)
				}
				for _, d := range devices {
					if m, ok := d.hear().(*wire.Map); !ok || m.Peers[1].Certificate != nil {
						t.Error("a device that came back was told of the one that is gone")
					}
				}
				synctest.Wait()
				if _, there := watcher.held().Peers[ident.NodeID(1)]; there || victim.why() == 0 {
					t.Errorf("who saw the device holds it still, or it was not told: %d", victim.why())
				}
				for _, d := range devices {
					d.ch.Close()
				}
				watcher.close()
			})
		})
	}
}
