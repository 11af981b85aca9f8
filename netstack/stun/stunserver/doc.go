// Package stunserver answers STUN Binding requests on a UDP port, with the
// responder of package stun: it tells a node from which address it is seen.
//
// Server.Run starts one goroutine for each socket of the port and returns when
// they have ended.
package stunserver
