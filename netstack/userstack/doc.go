// Package userstack is a TCP/IP stack in user space behind tun.Device, for
// nodes that run without a TUN device and without root.
package userstack
