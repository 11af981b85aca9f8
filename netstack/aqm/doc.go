// Package aqm keeps the queues between a host and the overlay short: active queue
// management (RFC 7567).
//
// A TUN device forgets whose packets it holds, so a sender is not slowed by what
// waits in its own host, as it is before a network card. One TCP stream then keeps
// megabytes on their way, everything else waits behind them, and the processors
// gain little from it.
//
// Control judges a queue as CoDel does (RFC 8289), but by another measure. CoDel asks
// whether the shortest wait of an interval was too long; here each hop does what has
// gathered when a processor gets to it, so that every queue is empty now and then and
// full between. It is the average that counts, for each byte, and by Little's law the
// backlog follows from it: a queue that holds little is left alone however long its
// bytes waited.
//
// Window slows TCP, by the window that a receiver offers: every sender obeys that,
// also one that does not slow down for a lost packet (BBR's first version), and
// nothing is lost. Where bytes wait for twice as long as they may, everything else loses
// a packet, and more and more often while that goes on; or the packet is marked (RFC
// 3168). That is what is no TCP, connections whose windows cannot be changed, those
// that have the least window, and those that send less than that while a queue is
// judged: of hundreds beside each other none is slowed by its window.
//
// A path without a backlog loses nothing: what waits elsewhere, at a slow link, is not
// seen here.
//
// The package is pure.
package aqm
