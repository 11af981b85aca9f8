// Command demo shows Warren's main job on one machine, without root and without
// any other service: a coordinator, the laptops of alice and bob, and a tagged
// database server, joined into one network with one policy.
//
// It asserts everything that it shows, ends by itself, leaves no process and no
// file behind, and exits with 1 if anything did not happen. `make demo` builds
// the programs and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "the directory with the programs")
	keep := flag.Bool("keep", false, "keep the data and the logs, and say where they are")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("the demonstration took more than three minutes"))
	err := run(ctx, *bin, *keep)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, keep bool) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "warren-demo-")
	if err != nil {
		return err
	}
	s := &stage{ctx: ctx, bin: bin, dir: dir}
	defer func() {
		err = errors.Join(err, s.close())
		if err != nil || keep {
			fmt.Println("\nData and logs are in", dir)
		} else {
			os.RemoveAll(dir)
		}
	}()
	return story(s)
}
