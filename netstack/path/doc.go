// Package path chooses the way to one peer: the relay at once, a direct path as
// soon as one is proved, the relay again as soon as it fails.
//
// # What makes a path primary
//
// The relay is primary whenever it is available and nothing better is proved. A
// direct address becomes primary only after the peer answered, from that very
// address, a challenge that was sent there (disco.Ping, disco.Pong). Nothing
// else moves the primary: not what the coordinator or the peer lists, not where
// a ping or a packet came from, replayed or real. Those are hints, and all that
// a hint can do is to make the Agent send a challenge of its own, within a
// budget.
//
// # Who does what
//
// An Agent is silent until its peer is used. Use (HandleOutboundUse, or data in
// HandleInbound) makes it active: it probes every candidate at growing
// intervals and asks the peer over the relay to do the same (disco.CallMe), for
// NATs on both sides. While it is active, it pings the primary every 3 seconds;
// 45 seconds after the last use it falls silent, and once the proof is too old
// to trust, goes back to the relay.
//
// # Ports that are guessed
//
// Where one side's NAT draws ports at random and the other's lets in only whom it
// sent to, both may guess by the birthday method: the one opens many sockets, the
// other tries ports. See DESIGN.md and BirthdayBudget.
//
// # What it carries
//
// How long packets may be is found out for each direct path with padded pings,
// and a path that works is left for a better one only when that is known. See
// DESIGN.md.
//
// # Shape
//
// The package is pure, and the Agent has the shape of all machines here: inputs
// (HandleX), NextTimeout and HandleTimeout, and outputs to drain after every
// call (NextTransmit, NextEvent). Time that goes backwards is clamped and
// counted. A call that comes late first does what was due before it, in order:
// decisions are those of punctual calls, while of the probes that were missed
// each candidate gets at most one. Every list has a cap.
//
// An Agent is not safe for concurrent use.
package path
