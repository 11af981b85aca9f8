// Package relayhttp carries the relay protocol in WebSockets (RFC 6455), so
// that a relay can be reached wherever HTTP can: Dial for nodes, Server for
// relays.
//
// A Server may also have a UDP port, on which it forwards the datagrams of
// clients that have a connection, and answers STUN requests (RFC 8489).
//
// One binary WebSocket message is one message of package relay. Admission,
// forwarding and fairness are package relay's; this package has the sockets,
// the goroutines and the limits on both.
//
// # Goroutines
//
// Dial starts none of its own. A Server has, for each connection, one that reads
// and one that writes, which end together; Server.Run has one for the timers and
// one for each socket of the UDP port, and waits for all of them. ServeHTTP
// returns as soon as there is a connection.
package relayhttp
