package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// need is a program that a step uses and the Debian package it comes in.
type need struct {
	program  string
	pkg      string
	required bool   // without it nothing can be built
	why      string // what is left out without it
}

var needs = []need{
	{"gcc", "gcc", true, "cgo: SQLite in the coordinator, the race detector"},
	{"git", "git", true, "the version in the programs, comparing generated code"},
	{"ip", "iproute2", false, "ring 3 (make netns) and make bench"},
	{"nft", "nftables", false, "the NATs of ring 3"},
	{"ping", "iputils-ping", false, "ring 3"},
	{"wg", "wireguard-tools", false, "the interoperation tests of ring 3"},
	{"miniupnpd", "miniupnpd-nftables", false, "the port mappings of ring 3"},
	{"iperf3", "iperf3", false, "make bench"},
	{"python3", "python3", false, "the captured policy cases"},
}

// headers is the C library's part that gcc needs; it has no program to look
// for.
const headers = "/usr/include/stdlib.h"

// install puts the missing Debian packages on the machine where it runs as
// root, and names them elsewhere. It fails only where a required one stays
// missing.
func install() error {
	missing, required := lacking()
	if len(missing) == 0 {
		fmt.Println("install: nothing missing")
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		fmt.Printf("install: missing, and not root on Debian: apt-get install %s\n", strings.Join(missing, " "))
		if required {
			return fmt.Errorf("install: nothing can be built without them: %w", errFailed)
		}
		return nil
	}
	fmt.Printf("install: apt-get install %s\n", strings.Join(missing, " "))
	if err := aptGet(append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...)...); err != nil {
		// The package lists of a new machine are empty or old.
		if err := aptGet("update", "-q"); err != nil {
			return err
		}
		if err := aptGet(append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...)...); err != nil {
			fmt.Println("install:", err)
		}
	}
	if still, required := lacking(); len(still) > 0 {
		fmt.Printf("install: still missing: %s\n", strings.Join(still, " "))
		if required {
			return fmt.Errorf("install: nothing can be built without them: %w", errFailed)
		}
	}
	return nil
}

// lacking lists the packages whose program is not there, and whether one of
// them is required. It prints what each missing one is for.
func lacking() (missing []string, required bool) {
	lack := func(n need) {
		fmt.Printf("install: no %s (%s)\n", n.program, n.why)
		missing = append(missing, n.pkg)
		required = required || n.required
	}
	for _, n := range needs {
		if _, err := exec.LookPath(n.program); err != nil && !inSystemDirectory(n.program) {
			lack(n)
		}
	}
	if _, err := os.Stat(headers); err != nil {
		lack(need{headers, "libc6-dev", true, "cgo"})
	}
	return slices.Compact(missing), required
}

// inSystemDirectory reports whether program is where root's PATH would find
// it: some of the needs are there and an ordinary user's PATH is not.
func inSystemDirectory(program string) bool {
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(dir + program); err == nil {
			return true
		}
	}
	return false
}

// aptGet runs apt-get without questions; it is quiet unless it fails.
func aptGet(args ...string) error {
	cmd := exec.Command("apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
