package osconf

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// kernelNotices gives a notice for every message about links, addresses and
// routes (rtnetlink(7)) until ctx ends. What the messages say is not read: the
// state is looked up afterwards, so a lost message costs nothing.
func kernelNotices(ctx context.Context, notice chan<- struct{}) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("osconf: opening a netlink socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	defer file.Close()
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return fmt.Errorf("osconf: subscribing to network changes: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { file.Close() })
	defer stop()
	buffer := make([]byte, 64<<10)
	for ctx.Err() == nil {
		// ENOBUFS means that messages were lost, which is a notice too.
		if _, err := file.Read(buffer); err != nil && !isOverflow(err) {
			return fmt.Errorf("osconf: waiting for network changes: %w", err)
		}
		select {
		case notice <- struct{}{}:
		default:
		}
	}
	return nil
}
func isOverflow(err error) bool { return errors.Is(err, unix.ENOBUFS) }
