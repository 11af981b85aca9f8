// Package config holds the desired configuration of the data plane: the type
// that the client decides on and the engine carries out.
//
// Membership comes in as authority.Peer and authority.Rules, which nothing but
// package authority can make, so a configuration cannot name a peer that was
// not verified. The package is pure; a Config that was handed to the engine is
// not written to any more.
package config
