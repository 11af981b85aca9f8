package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestLab checks the bench itself: hosts reach each other in both families,
// and BlockUDP blocks UDP and nothing else.
func TestLab(t *testing.T) {
	l := New(t)
	a, b := l.Host("a"), l.Host("b")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, at := range []string{b.V4.String(), b.V6.String()} {
		listener := b.Listen(t, net.JoinHostPort(at, "0"))
		go func() {
			if c, err := listener.Accept(); err == nil {
				io.WriteString(c, "hello")
				c.Close()
			}
		}()
		c, err := a.Dial(ctx, "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); string(got) != "hello" {
			t.Errorf("%s: %q, %v", at, got, err)
		}

		socket := b.ListenPacket(t, net.JoinHostPort(at, "0"))
		u, err := a.Dial(ctx, "udp", socket.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		receive := func() string {
			socket.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			buffer := make([]byte, 16)
			n, _, _ := socket.ReadFrom(buffer)
			return string(buffer[:n])
		}
		io.WriteString(u, "one")
		if got := receive(); got != "one" {
			t.Errorf("%s: %q arrived", at, got)
		}
		a.BlockUDP(b)
		io.WriteString(u, "two")
		if got := receive(); got != "" {
			t.Errorf("%s: %q arrived through the block", at, got)
		}
		a.UnblockUDP()
		io.WriteString(u, "three")
		if got := receive(); got != "three" {
			t.Errorf("%s: %q arrived after the block", at, got)
		}
	}
}

// TestRemoveStale: what a killed test binary left is deleted, and nothing else.
func TestRemoveStale(t *testing.T) {
	parent := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for name, stays := range map[string]bool{
		fmt.Sprintf("warren-lab-%d-1", dead.Process.Pid): false,
		fmt.Sprintf("warren-lab-%d-1", os.Getpid()):      true,
		"warren-lab-1": true, "warren-lab--1": true, "other": true,
	} {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		removeStale(parent)
		if _, err := os.Stat(dir); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
}
