package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stage is what the story plays on: programs that were started, and their
// directory.
type stage struct {
	ctx      context.Context
	bin, dir string
	started  []*program
}

type program struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{}
}

// start runs a program in the background until close.
func (s *stage) start(name, file string, args ...string) error {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close() // the program has its own descriptor
	cmd := exec.Command(filepath.Join(s.bin, file), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", file, err)
	}
	p := &program{name: name, cmd: cmd, exited: make(chan struct{})}
	s.started = append(s.started, p)
	go func() {
		cmd.Wait()
		close(p.exited)
	}()
	return nil
}

// close ends every program, the last one first. One that does not end by itself
// within ten seconds is killed, and that is an error.
func (s *stage) close() error {
	var errs []error
	for i := len(s.started) - 1; i >= 0; i-- {
		p := s.started[i]
		select {
		case <-p.exited:
			log, _ := os.ReadFile(filepath.Join(s.dir, p.name+".log"))
			errs = append(errs, fmt.Errorf("%s ended before its time; the end of its log:\n%s", p.name, last(log, 15)))
			continue
		default:
		}
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(10 * time.Second):
			p.cmd.Process.Kill()
			<-p.exited
			errs = append(errs, fmt.Errorf("%s did not end within ten seconds of SIGTERM", p.name))
		}
	}
	return errors.Join(errs...)
}

func last(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}

// output runs a program to its end and returns its standard output. The error
// holds what it printed on standard error.
func (s *stage) output(file string, args ...string) (string, error) {
	cmd := exec.CommandContext(s.ctx, filepath.Join(s.bin, file), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", file, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.String(), nil
}

// wait calls f until it returns nil, for ten seconds at most.
func (s *stage) wait(what string, f func() error) error {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-tick.C:
		}
	}
}

// freePorts returns n different TCP ports of the loopback address that nobody
// uses at present.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
