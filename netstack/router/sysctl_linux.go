package router

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const (
	forwarding4   = "net/ipv4/ip_forward"
	forwarding6   = "net/ipv6/conf/all/forwarding"
	acceptRA      = "net/ipv6/conf/*/accept_ra"
	markIsChecked = "net/ipv4/conf/all/src_valid_mark"
)

// sysctls are switches of the kernel, and which of them were turned.
type sysctls struct {
	turned []string // forwarding switches that were off
	marked bool
}

func readSysctl(name string) (string, error) {
	raw, err := os.ReadFile(filepath.Join("/proc/sys", name))
	return strings.TrimSpace(string(raw)), err
}

func writeSysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
}

// forward has the kernel forward in the families of the prefixes.
func (s *sysctls) forward(prefixes []netip.Prefix) error {
	var v4, v6 bool
	for _, p := range prefixes {
		v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
	}
	var errs []error
	if v4 {
		errs = append(errs, s.turnOn(forwarding4))
	}
	if v6 {
		// A host that forwards takes no router advertisements, which may be
		// where its own address comes from, unless it is told to.
		s.keepAdvertisements()
		errs = append(errs, s.turnOn(forwarding6))
	}
	return errors.Join(errs...)
}

func (s *sysctls) turnOn(name string) error {
	value, err := readSysctl(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForwarding, err)
	}
	if value != "0" {
		return nil
	}
	if err := writeSysctl(name, "1"); err != nil {
		return fmt.Errorf("%w, so no route is served: run `sysctl -w %s=1` on the machine (or start the container with --sysctl %[2]s=1): %[3]w",
			ErrForwarding, strings.ReplaceAll(name, "/", "."), err)
	}
	s.turned = append(s.turned, name)
	return nil
}

func (s *sysctls) keepAdvertisements() {
	names, _ := filepath.Glob(filepath.Join("/proc/sys", acceptRA))
	for _, path := range names {
		name := strings.TrimPrefix(path, "/proc/sys/")
		if value, err := readSysctl(name); err == nil && value == "1" {
			_ = writeSysctl(name, "2")
		}
	}
}

// restoreForwarding turns off what forward turned on: without the guard the
// machine would forward for anybody.
func (s *sysctls) restoreForwarding() {
	for _, name := range s.turned {
		_ = writeSysctl(name, "0")
	}
	s.turned = nil
}

func (s *sysctls) validMark() {
	if value, err := readSysctl(markIsChecked); err == nil && value == "0" && writeSysctl(markIsChecked, "1") == nil {
		s.marked = true
	}
}

func (s *sysctls) restoreMark() {
	if s.marked {
		_ = writeSysctl(markIsChecked, "0")
		s.marked = false
	}
}
