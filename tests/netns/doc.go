// Package netns tests Warren's programs on a real kernel (ring 3): TUN devices,
// sockets and routes in network namespaces, the coordinator and the daemons as
// they are shipped. It has tests only; the hosts are those of package lab.
package netns
