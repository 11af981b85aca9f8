// Package policy is the command `warren policy`: check, compile, test,
// explain, format and diff. It reads files and prints; what a policy means is
// decided in acl/compile and put into words in acl/compile/report. It needs no
// daemon and no coordinator, starts no goroutine and keeps no state.
package policy
