// Package registry decides who is a member of a network: users, join keys,
// devices and their addresses and names, revocations, and the policy's text.
//
// Decide is a pure function of a State and a Command: it returns Changes and
// what happened, or refuses, and changes nothing. The order of every change is
// decide, commit the Changes and their audit entry in one transaction, then
// State.Apply. So memory never holds what the disk does not, and a crash
// between any two steps leaves one whole change or none.
//
// A device is known by the machine key of its channel and by nothing that it
// says. A machine key or node key that was revoked is never admitted again.
//
// The package is pure. A State is not safe for concurrent use; the records
// that it hands out are never written to and may be kept.
package registry
