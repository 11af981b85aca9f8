package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-overlay/warren/cmd/internal/commandline"
)

// TestHangup: SIGHUP does not end the coordinator, which says that there is nothing
// to read again.
func TestHangup(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	hangup := make(chan os.Signal)
	m := Main{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: w, Rand: rand.Reader, Hangup: hangup}
	ended := make(chan int, 1)
	go func() {
		status := m.Run(ctx, []string{"serve", "--data", data, "--listen", "127.0.0.1:0", "--stun-listen", "off", "--metrics-listen", off})
		w.Close()
		ended <- status
	}()
	said := make(chan string, 1)
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			if strings.Contains(s.Text(), "SIGHUP") {
				said <- s.Text()
			}
		}
	}()
	const patience = 30 * time.Second
	for range 2 {
		select {
		case hangup <- syscall.SIGHUP:
		case <-time.After(patience):
			t.Fatal("it does not take SIGHUP")
		}
		select {
		case line := <-said:
			if !strings.Contains(line, "level=INFO") || !strings.Contains(line, "there is nothing to read again") {
				t.Errorf("it says %s", line)
			}
		case <-time.After(patience):
			t.Fatal("it says nothing")
		}
	}
	if status := command(data, "", "status"); status.status != commandline.Done {
		t.Errorf("after SIGHUP: %+v", status)
	}
	cancel()
	if status := <-ended; status != commandline.Done {
		t.Errorf("it ended with %d", status)
	}
}
