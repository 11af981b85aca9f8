package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/tests/lab"
)

// bareVariable in the environment turns this test binary into bare
// wireguard-go: the yardstick, as its own program would run it.
const bareVariable = "WARREN_BENCH_BARE"

func TestMain(m *testing.M) {
	if os.Getenv(bareVariable) != "" {
		if err := runBare(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(engineVariable) != "" {
		if err := runEngine(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	lab.RemovePrograms()
	os.Exit(code)
}

// runBare makes the device wg0 with the settings on in, up to an empty line,
// and runs it until in ends.
func runBare(in io.Reader, out io.Writer) error {
	dev, err := wgtun.CreateTUN("wg0", 1420)
	if err != nil {
		return err
	}
	d := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer d.Close()
	lines := bufio.NewScanner(in)
	var settings strings.Builder
	for lines.Scan() && lines.Text() != "" {
		fmt.Fprintln(&settings, lines.Text())
	}
	if err := d.IpcSet(settings.String()); err != nil {
		return err
	}
	if err := d.Up(); err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	_, err = io.Copy(io.Discard, in)
	return err
}

// tunnel is a path between two hosts through two processes that do the work.
type tunnel struct {
	name     string
	from, to *lab.Host
	address  netip.Addr // of to, inside
	pids     [2]int
}

// bareTunnel joins two hosts by bare wireguard-go.
func bareTunnel(b *testing.B, from, to *lab.Host) *tunnel {
	b.Helper()
	hosts := [2]*lab.Host{from, to}
	var keys [2]ident.NodePrivate
	for i := range keys {
		var err error
		if keys[i], err = ident.NewNodePrivate(bytes.NewReader(bytes.Repeat([]byte{byte(i + 1)}, ident.KeySize))); err != nil {
			b.Fatal(err)
		}
	}
	inside := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 88, 0, byte(i + 1)}) }
	t := &tunnel{name: "wireguard-go", from: from, to: to, address: inside(1)}
	for i, h := range hosts {
		public := keys[1-i].Public()
		t.pids[i] = startBare(b, h, fmt.Sprintf("private_key=%x\nlisten_port=51820\npublic_key=%x\nendpoint=%v:51820\nallowed_ip=%v/32\n\n",
			keys[i].SecretBytes(), public[:], hosts[1-i].V4, inside(1-i)))
		h.Do(func() error {
			link, err := netlink.LinkByName("wg0")
			if err != nil {
				return err
			}
			address := &netlink.Addr{IPNet: &net.IPNet{IP: inside(i).AsSlice(), Mask: net.CIDRMask(24, 32)}, Flags: unix.IFA_F_NODAD}
			if err := netlink.AddrAdd(link, address); err != nil {
				return err
			}
			return netlink.LinkSetUp(link)
		})
	}
	return t
}

func startBare(b *testing.B, h *lab.Host, settings string) (pid int) {
	b.Helper()
	program, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	in, out, pid := startChild(b, h, program, bareVariable)
	if _, err := io.WriteString(in, settings); err != nil {
		b.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		b.Fatalf("bare wireguard-go did not start: %q, %v", line, err)
	}
	return pid
}
