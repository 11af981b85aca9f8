// Package channel is the control channel between a node and its coordinator: a
// Noise IK handshake (25519, ChaChaPoly, BLAKE2s; noiseprotocol.org, revision
// 34) on a byte stream, and whole messages in records after it. The stream is a
// WebSocket (RFC 6455), so that the channel passes every proxy, or any net.Conn
// (Client and Server), which simulations use.
//
// The node is who holds the machine key of the handshake: Conn.Peer is the only
// identity there is. The coordinator is who holds the channel key that the
// network's genesis record names; the record is checked against the fingerprint
// that the join key carries (FetchGenesis). So plain HTTP is as safe as HTTPS.
// The handshake's prologue is the protocol's name and the fingerprint.
//
// # On the wire
//
//	handshake  u16 length, Noise message 1; u16 length, Noise message 2
//	record     u16 length, ciphertext of 17 to 65535 bytes
//	message    u32 length and its bytes, which begin a record and fill it, and
//	           fill as many records after it as it takes
//
// All numbers are big-endian. A record holds bytes of one message only, and at
// least one. Each direction rekeys (Noise, section 11.3) after every 65,536
// records, long before a nonce could run out.
//
// # Limits
//
// Before the handshake is done, a sender can make a receiver hold 128 bytes;
// after it, never more than the receive limit, and no more than it has really
// sent. A Server begins with UnregisteredLimit and raises it by SetReceiveLimit
// once it knows the node.
//
// The package is a shell. It starts no goroutine of its own: every wait is in
// the caller's, bounded by the context of a handshake and by deadlines after
// it.
package channel
