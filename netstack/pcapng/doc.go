// Package pcapng writes captures in the pcapng format
// (draft-ietf-opsawg-pcapng): one section, one interface of raw IP packets, and
// packets with a direction and a comment. Wireshark, tshark and tcpdump read
// them.
//
// The package is pure: its functions append blocks to a slice.
package pcapng
