// Package wire is the control protocol between a node and its coordinator: its
// messages as Go values, their encoding, the versions that there are, and what
// a delta does to a map. It is the only part of the coordinator that clients
// import.
//
// Messages travel as protobuf (package wirepb) inside the frames of a Noise
// channel (package channel). Decode functions refuse what is malformed or over
// a limit; they say nothing about whether a certificate or a rule is genuine,
// which package authority decides.
//
// The order on a connection: the node sends Hello, the coordinator Welcome;
// where the machine key is not registered, Register and Registered; then one
// MapRequest, which the coordinator answers with a Map and, from then on,
// Deltas. Pings, Updates and Errors come at any time after Welcome.
//
// A node key is taken from who proves on this very channel to hold its private
// half (Proof): at registration, and where a MapRequest brings another key.
//
// The package is pure. Its values are not safe for concurrent use.
//
//go:generate go run -C ../../tests/tools ./protogen ../../coordinator/wire/wirepb control.proto
package wire
