// Package stun encodes and decodes the one exchange of STUN (RFC 8489) that an
// overlay node needs: a Binding request, and the response that says from which
// address the request came.
//
// It also holds the responder (Respond) that coordinators and relays put behind
// a UDP port. The responder is stateless and can not amplify: a request is
// answered only when the answer is no longer than the request, so AppendRequest
// pads its requests, and a bare 20-byte request of another program gets no
// answer.
//
// Nothing in a STUN message is authenticated here. What a response claims is a
// hint about an address and must never make that address trusted.
//
// The package is pure: functions on bytes, no state, no clock, no randomness of
// its own.
package stun
