// Command warren-relay relays packets between the nodes of one network that find
// no direct path. Any number of them may stand anywhere; the coordinator tells
// nodes which there are.
//
// It exits with 0 where it did what was asked, 1 where that failed, and 2 where
// the command line was wrong.
package main
