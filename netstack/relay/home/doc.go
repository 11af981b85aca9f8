// Package home decides at which relays a node listens, and through which relay
// it sends to each peer.
//
// # Where a node listens
//
// A node keeps one connection for good: to its home, the relay with the least
// round trip, which the coordinator tells its peers. While packets of its own
// go over relays, and while the home is away, it also listens at its standby:
// the first relay in the order of the configuration that it reaches and that is
// not its home. The order is the same on all nodes, so that two that lost sight
// of each other's homes, the coordinator's help included, meet there.
//
// A home changes at once where it is lost, and otherwise only for a relay that
// was better by a margin for a while. Relays are measured by STUN where that answers,
// and by connecting to them now and again elsewhere; one that failed is connected to
// again every two minutes, and counts as before once it works.
//
// # Through which relay a node sends
//
// Whoever is admitted at a relay can be sent to there. A node begins with the
// peer's home, and connects on demand where that is not its own. While it sends,
// it asks the peer for a sign of life over that very relay (a disco.Ping, which
// is answered by the way it came), so that a relay that drops packets counts for
// no more than one that is dead. Where the answers stay out, where the relay
// says that the peer is not there, or where the connection ends, the next relay
// is tried: where the peer answered lately, then its home, then the others in
// the order of the configuration.
//
// A relay can tell these questions from the tunnel's packets, and may carry the one
// and drop the others. So a peer is asked inside the tunnel, too, as often. A relay
// over which it is silent there, and not beside it, is barred for that peer:
// neither answers beside the tunnel nor the coordinator bring its route back, but
// only an answer inside it, or five minutes and more. See DESIGN.md.
//
// What a relay says of a peer is a hint. It can make a node try another relay,
// never believe that one works: only a fresh answer of the peer's does.
//
// # Shape
//
// The package is pure, and the Machine has the shape of all machines here:
// inputs (HandleX, SetX), NextTimeout and HandleTimeout, and outputs to drain
// after every call (NextOutput). A Machine is not safe for concurrent use.
package home
