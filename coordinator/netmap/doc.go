// Package netmap says what each device of a network is told: its certificate
// and rules, the peers that some rule links it with, and nothing of any other.
//
// A Network follows a registry.State: after each State.Apply it is handed the
// same changes and answers with the views that are no longer what they were.
// It signs certificates, when what they say has changed or half of their life
// is over, and rules, per device and epoch. A certificate is told to nobody
// before it was recorded.
//
// What the coordinator knows and cannot vouch for (endpoints, who is connected)
// is presence: it is kept in memory only, and told only to devices that may see
// the one that it is about.
//
// The package is pure. A Network is not safe for concurrent use.
package netmap
