// Package aqm keeps the queues between a host and the overlay short: active queue
// management (RFC 7567).
//
// A TUN device forgets whose packets it holds, so a sender is not slowed by what
// waits in its own host, as it is before a network card. One TCP stream then keeps
// megabytes on their way, everything else waits behind them, and the processors
// gain little from it. TCP sends less when a packet is lost, or marked (RFC 3168): of
// one stream ten in a million suffice.
//
// Control follows CoDel (RFC 8289): it drops one packet when packets wait for longer
// than Target through an Interval, and more and more often while that goes on. It
// differs in what it looks at. CoDel asks whether the shortest wait of an interval
// was too long; here each hop does what has gathered when a processor gets to it,
// so that every queue is empty now and then and full between. It is the average
// that counts, for each byte, and by Little's law the backlog follows from it: a
// queue that holds little is left alone however long its bytes waited.
//
// Senders that do not slow down for a lost packet (BBR's first version) keep their
// backlog. A path without a backlog loses nothing: what waits elsewhere, at a slow
// link, is not seen here.
//
// The package is pure.
package aqm
