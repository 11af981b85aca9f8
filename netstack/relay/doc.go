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
// A new connection for a key replaces the old one only after it was admitted. A
// connection ends when its admission does, unless the client brings a newer
// token or the Admitter extends it.
//
// # Forwarding
//
// SendPacket{destination, payload} becomes RecvPacket{source, payload} at the
// destination's connection, within one network only. Payloads are sealed
// between the nodes; a relay sees keys, sizes and times. Every destination has
// a bounded queue with a part for each sender, served in turn: who floods,
// fills its own part.
//
// # Datagrams
//
// Beside the connection, which passes wherever HTTP does, packets may go as
// datagrams: a header of eight bytes and the payload, which the relay forwards by
// rewriting the header. The server offers them to whom it has admitted:
//
//	server  Datagrams{number, tag}                       by the connection
//	client  Open{tag, number, sequence, padding, MAC}    from the address
//	server  Cookie{tag, number, sequence, cookie, MAC}   to that address
//	client  Bind{tag, number, sequence, cookie, MAC}
//	server  Bound{tag, number, sequence, MAC}
//
// The MACs have a key that both ends derive from the product of the admission,
// so that datagrams belong to who proved the node key, and nobody who reads along
// can bind an address. A packet is taken only from the address that is bound, and
// that moves only by another exchange, with a fresh cookie and a higher sequence
// number. The client repeats the exchange every 15 s, and every second while it
// sends; where no answer comes for 3 s, it says so by the connection, and packets
// go there both ways, until an exchange succeeds again.
//
// Numbers stand for the members of one server. A client asks for that of a peer
// (Resolve), and the peer is told that of the client; a number of another network
// is nobody's. What does not fit into a datagram of an Ethernet, or is for a
// member without datagrams, goes by the connection.
//
// Whoever is not admitted gets no answer but a notice of eight bytes that an
// address is not known, which is never longer than what it answers, and which
// clients only take as a reason to repeat the exchange.
//
// DESIGN.md has the alternatives and the figures.
//
// # Form
//
// The package is pure: time and randomness are arguments. Session and Server
// are not safe for concurrent use; their owner serialises the calls.
package relay
