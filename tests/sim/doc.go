// Package sim runs whole data planes over a simulated internet in simulated
// time: ring 2 of the tests. Each test is one testing/synctest bubble; the
// engines in it are the real ones, with the real WireGuard.
package sim
