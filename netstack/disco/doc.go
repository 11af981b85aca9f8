// Package disco holds the sealed messages by which two nodes find and prove
// paths to each other: Ping, Pong, CallMe and Mapping.
//
// # Keys
//
// The keys of a pair come from the X25519 product of the two node keys by
// HKDF-SHA256 (RFC 5869) under a context of its own, one key for each
// direction. Both nodes can make them from what a device certificate vouches
// for, with nobody's help: a node that restarts while the coordinator is down
// still probes, and a coordinator that lies about endpoints can not answer a
// probe. The alternative, a probe key for each process that the coordinator
// hands on, would make every path depend on its word. What is given up is
// secrecy of old probes after a node key was stolen; they say only which
// addresses the two nodes had.
//
// # On the wire
//
//	magic 4 | tag 8 | nonce 24 | XChaCha20-Poly1305 box
//
// The first byte is above 191, so a packet is never taken for STUN (first byte
// at most 3) or WireGuard (type 1 to 4 and three zero bytes). The tag comes
// from the same derivation as the key and lets the receiver find the pair in a
// map; to others it is a constant pseudonym of the pair and direction. Magic
// and tag are authenticated with the box.
//
// A Ping is at least as long as the Pong that answers it: whoever replays pings
// with a forged source gains nothing (no amplification). Padding is zeros inside
// the box, so that nobody on the way can shorten a ping and have it prove more
// than it did.
//
// # Replay
//
// A sealed message can be captured and sent again. Nothing here remembers what
// was seen; the receiver must treat a Pong as proof only where its TxID is
// outstanding for the address that it came from, and a Ping as no proof at all.
// Session and Seq of a Ping allow the receiver to answer each ping once.
//
// The package is pure. Randomness is an argument. A Sealer and an Opener are
// immutable and safe for concurrent use.
package disco
