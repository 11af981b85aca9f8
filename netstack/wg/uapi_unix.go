//go:build linux || darwin

package wg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/ipc"
)

// uapiTimeout bounds how long one listing may take, so that a client that says
// nothing does not keep others out.
const uapiTimeout = 5 * time.Second

// ServeUAPI answers wg(8) and everything else that speaks the cross-platform
// configuration protocol on the socket of the interface with the given name,
// until the context ends. It lists the device; it refuses to change it, because
// peers come from certificates only. The socket belongs to root and needs root.
//
// It returns nil when the context ends, or why the socket could not be opened.
func (d *Device) ServeUAPI(ctx context.Context, name string) error {
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return fmt.Errorf("wg: opening the control socket: %w", err)
	}
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("wg: opening the control socket: %w", err)
	}
	if unix, ok := listener.(*net.UnixListener); ok {
		unix.SetUnlinkOnClose(true)
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer func() {
		if stop() {
			listener.Close()
		}
	}()
	for {
		c, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wg: accepting on the control socket: %w", err)
		}
		d.answer(c)
	}
}

// answer handles the operations of one connection.
func (d *Device) answer(c net.Conn) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(uapiTimeout)); err != nil {
		return
	}
	in, out := bufio.NewReader(io.LimitReader(c, 1<<16)), bufio.NewWriter(c)
	for {
		op, err := in.ReadString('\n')
		if err != nil {
			return
		}
		var errno int64
		switch op {
		case "get=1\n":
			if next, err := in.ReadByte(); err != nil || next != '\n' {
				return
			}
			if err := d.device.IpcGetOperation(out); err != nil {
				errno = ipc.IpcErrorUnknown
				if coded := (interface{ ErrorCode() int64 })(nil); errors.As(err, &coded) {
					errno = coded.ErrorCode()
				}
			}
		case "set=1\n":
			errno = -int64(syscall.EPERM)
		default:
			return
		}
		fmt.Fprintf(out, "errno=%d\n\n", errno)
		if out.Flush() != nil || errno != 0 {
			return
		}
	}
}
