// Package agent is a node: it drives the control machine over a channel to the
// coordinator, gives the engine the configuration that follows, keeps state on
// disk, and answers the local API.
//
// Everything that an Agent decides on belongs to the one goroutine of
// Agent.Run; other goroutines hand it functions. The order of a change is that
// of the control machine's events: first to disk, then to the data plane. What
// cannot be saved is carried out all the same, with a health fact, because it
// may take access away.
//
// A node whose coordinator does not answer works on with what it verified
// before, across its own restarts too.
//
// Join keys are handed to the control machine and nowhere else: they are not
// saved, logged or shown, and forgotten when the coordinator has answered.
//
// Goroutines: Agent.Run has one for itself and up to two for the connection
// (reader and writer). Daemon.Run starts those of the engine, the network
// monitor, the local API, the proxies and the metrics, each by the Run of its
// package, and ends all when one of them fails. Both wait for theirs.
package agent
