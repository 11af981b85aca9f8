// Package wg adapts golang.zx2c4.com/wireguard: the WireGuard device that seals
// and opens the tunnel's packets, with a bind and a TUN wrapper of our own. It
// is the only package that knows that implementation.
//
// # One endpoint for each peer
//
// WireGuard moves a peer's endpoint to wherever the last authentic packet came
// from. A packet that was captured and sent again from elsewhere can so move a
// tunnel. Here the endpoint object that the device is given stands for the
// peer, never for an address, so whatever the device does with it, nothing
// moves: where packets go is Peer.SetPath, and nothing else.
//
// The bind finds the peer of an incoming packet by the receiver index that it
// saw this device hand out (types 2, 3 and 4), or by opening the static key of
// a handshake initiation (type 1). Packets of nobody are dropped and counted
// before they reach the device.
//
// # Packets that come again
//
// The device drops transport messages whose counter came before, and counts nothing.
// The bind therefore keeps a window of its own for each session, over what it hands to
// the device, which only packets that were opened move on; see Counters.
//
// # Handshakes that get lost
//
// The device sends a message of a handshake once. If it is lost, the device makes
// another after five seconds; so it does where two devices begin at the same time,
// each of which gives up its own handshake for the other's. Peer therefore sends a
// message that nothing came for again, and by a new path at once, and of two
// beginners one waits. What the device is given, and makes, is the protocol's.
//
// # Goroutines
//
// New starts the device's goroutines (three for each CPU, one that reads the
// TUN device, one for its events) and one for each socket and for relayed
// packets; a peer has two more, and a further socket (Socket) one for each family.
// Close ends them all and returns when they have
// ended. ServeUAPI serves one connection of wg(8) at a time, in the caller's
// goroutine.
//
// # Removed peers and simulated time
//
// A removed peer of the device has finalizers that read channels. Where the
// channels were made inside a testing/synctest bubble, the finalizer goroutine
// crashes the process. Tests in a bubble therefore keep every peer reachable
// until the process ends, which Config.Retain makes possible.
package wg
