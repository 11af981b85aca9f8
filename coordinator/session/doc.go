// Package session is the coordinator's side of one control connection: what a
// node may say when, what it is told, and when it counts as gone.
//
// A Session is driven by its owner: frames and the time go in; requests to the
// coordinator and frames to the node come out. Changes of the network arrive
// as touches; the Session asks for the views behind them only when all that it
// said before was written, so that a slow node is sent one delta for many
// changes and costs no memory.
//
// The node is the machine key of the channel. Nothing that it says names it.
//
// The package is pure. A Session is not safe for concurrent use.
package session
