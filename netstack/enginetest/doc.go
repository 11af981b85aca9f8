// Package enginetest makes networks of engines for tests: members with real
// certificates and rules, configurations that name them, and packets of their
// applications. Only tests import it.
package enginetest
