// Package control is the client's side of the control protocol: when to
// connect, what to say, which of what the coordinator says to believe, and what
// to keep for the time when there is no coordinator.
//
// A Machine decides and a shell carries out: it dials when it is given a Dial,
// hands in every frame that arrives, and takes outputs (NextOutput) and events
// (NextEvent) after every input until there are none.
//
// Invariants:
//
//   - No peer, rule or certificate of the device itself is in a View that did
//     not pass the machine's Authority. That holds for full maps, deltas and the
//     map on disk alike. What does not pass is absent, and a health fact says
//     whom it concerns and why.
//   - A delta changes the one map it was made for, or nothing: otherwise the
//     machine asks for a full map once, and closes the connection where that
//     does not help.
//   - When the coordinator says that the device is no member any more, the View
//     is empty before the call returns.
//   - A Persist event comes before the NetMap event that it belongs to.
//   - Certificates that end while there is no coordinator leave the View when
//     they end; nothing lengthens their life.
//
// The package is pure. A Machine is not safe for concurrent use; a View is
// immutable and may be shared.
package control
