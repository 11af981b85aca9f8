// Package admin is the administrator's side of a coordinator: JSON over HTTP on
// a Unix socket in the data directory, which only the coordinator's own user
// may open. Whoever can open it may do everything; the audit log names the user
// id that the kernel vouches for.
//
// Handler serves it over a Backend, Client speaks it, and the types of this
// package are the bodies. Times are RFC 3339; ids and keys are text; what is
// absent is left out. An error is {"error": {"code", "message", "problems"}},
// with codes that do not change.
//
// The package is a shell. It starts no goroutine of its own.
package admin
