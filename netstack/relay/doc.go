// Package relay carries packets between two nodes that have no direct path:
// the frames, the client's side (Session), and the heart of the server
// (Server). Sockets are elsewhere; one transport message (a binary WebSocket
// message) holds one or more whole frames.
//
// # Admission
//
//	server  Challenge{version, ephemeral X25519 public key, nonce}
//	client  Hello{node key, proof, token}
//	server  Welcome, or Reject{reason} and the end
//
// The proof is an HMAC under a key derived from the X25519 product of the
// client's node key and the server's ephemeral key, over the relay's name, the
// binding of the channel, the challenge and the token. So a node's id is never
// what it says but what it can prove; an answer is worth nothing on another
// connection, on another relay, or later. Both keys of the product are fresh or
// certified, and the derivation has a context of its own, so a relay can not
// use a client as an oracle for other protocols of the same node key.
//
// The token says which network the key belongs to. It is opaque here: the
// server's owner supplies an Admitter that checks it.
//
// A new connection for a key replaces the old one only after it was admitted.
//
// # Forwarding
//
// SendPacket{destination, payload} becomes RecvPacket{source, payload} at the
// destination's connection, within one network only. Payloads are sealed
// between the nodes; a relay sees keys, sizes and times. Every destination has
// a bounded queue with a part for each sender, served in turn: who floods,
// fills its own part.
//
// # Form
//
// The package is pure: time and randomness are arguments. Session and Server
// are not safe for concurrent use; their owner serialises the calls.
package relay
