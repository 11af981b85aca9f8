// Package acltest supports tests: slow and obvious references that the clever
// code must equal, generators of random policies, rules and packets, and real
// signed networks. Only tests import it.
package acltest
