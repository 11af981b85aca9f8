package main

import (
	"errors"
	"fmt"
	"os"
	"time"
)

var errUsage = errors.New("usage: steps install | test NAME ARG... | replay PACKAGE... | " +
	"fuzz DURATION PACKAGE... | generate | deps GOVULNCHECK | policy-cases WARREN CHECK | man PROGRAM DIR")

func main() {
	err := run(os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, err)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	step, args := args[0], args[1:]
	switch {
	case step == "install" && len(args) == 0:
		return install()
	case step == "test" && len(args) >= 1:
		return test(args[0], args[1:])
	case step == "replay" && len(args) >= 1:
		return replay(args)
	case step == "fuzz" && len(args) >= 2:
		each, err := time.ParseDuration(args[0])
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		return fuzz(each, args[1:])
	case step == "generate" && len(args) == 0:
		return generate()
	case step == "deps" && len(args) == 1:
		return deps(args[0])
	case step == "policy-cases" && len(args) == 2:
		return policyCases(args[0], args[1])
	case step == "man" && len(args) == 2:
		return man(args[0], args[1])
	}
	return errUsage
}
