// Package admission decides who may use a relay that stands apart from the
// network's coordinator. It knows the network's genesis record, so it can verify
// the tokens that the coordinator signs without asking anybody.
//
// # What holds
//
//   - A token admits the node key that it names, which the relay challenges, to
//     the relays that it names, in one network, until its end, ten minutes at
//     most after it was signed. A connection ends with it unless the node brings
//     the next one.
//   - A key that the coordinator has revoked is admitted by nothing, but for a
//     token that was signed after that, where it was only suspended. The relay asks
//     every second (Watch), and ends the connections of what is new.
//   - While the coordinator has not answered for Silence, connections that are
//     there stay: nobody can have been told that they should not. A key that this
//     relay has admitted by a token that held may come back for Grace after that,
//     with the same token; nobody else.
//   - A relay that is not told where the coordinator is learns of revocations by
//     the end of tokens only. Keys may come back there for Grace as well.
//   - What was admitted is remembered in memory: a relay that starts anew admits by
//     tokens that hold, and by nothing else.
//
// SECURITY.md says what this gives against whom.
//
// # Goroutines
//
// The package starts none; Watch runs in the caller's. An Admission is safe for
// concurrent use, never waits for the network, and implements relay.Admitter.
package admission
