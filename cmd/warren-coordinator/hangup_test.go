package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"io"
	"os"
	"os/signal"
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

// starting is a log that has SIGHUP come when the coordinator says that it starts.
type starting struct {
	t    *testing.T
	told chan os.Signal // the signals that came
	said chan struct{}  // closed when SIGHUP is answered
}

func (s *starting) Write(b []byte) (int, error) {
	switch line := string(b); {
	case strings.Contains(line, "msg=metrics"):
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Signal(syscall.SIGHUP)
		}
		if err != nil {
			s.t.Error(err)
			break
		}
		select {
		case <-s.told:
		case <-time.After(30 * time.Second):
			s.t.Error("there is no signal")
		}
	case strings.Contains(line, "SIGHUP"):
		close(s.said)
	}
	return len(b), nil
}

// TestHangupWhileStarting: SIGHUP does not end a coordinator that does not serve yet,
// and is answered when it does.
func TestHangupWhileStarting(t *testing.T) {
	log := &starting{t, make(chan os.Signal, 1), make(chan struct{})}
	signal.Notify(log.told, syscall.SIGHUP) // and does not end the test
	defer signal.Stop(log.told)
	ctx, cancel := context.WithCancel(t.Context())
	m := Main{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: log, Rand: rand.Reader, Hangup: make(chan os.Signal, 1)}
	ended := make(chan int, 1)
	go func() {
		ended <- m.Run(ctx, []string{
			"serve", "--data", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0", "--stun-listen", "off", "--metrics-listen", "127.0.0.1:0",
		})
	}()
	select {
	case <-log.said:
	case <-time.After(30 * time.Second):
		t.Error("it does not answer SIGHUP")
	}
	cancel()
	if status := <-ended; status != commandline.Done {
		t.Errorf("it ended with %d", status)
	}
}
