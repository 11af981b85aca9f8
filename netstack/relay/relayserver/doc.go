// Package relayserver is a relay that stands apart from the coordinator: its
// listeners, who may use it (package admission), its metrics, its certificate, and
// how it stops.
//
// # Stopping
//
// When Run's context ends, the relay tells its clients to go elsewhere and
// forwards for relayhttp.Drain longer. Whoever has another relay in the configuration is
// there by then; whoever has not comes back to this one when it runs again.
//
// # Goroutines
//
// Run starts one for each listener, one that asks the coordinator for
// revocations, and those of relayhttp.Server.Run. All have ended when it returns.
package relayserver
