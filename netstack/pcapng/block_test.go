package pcapng

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// block is what a reader sees of one.
type block struct {
	kind uint32
	body []byte
}

// read takes a file apart as the draft says, independently of how it is made.
func read(t *testing.T, file []byte) []block {
	t.Helper()
	var blocks []block
	for len(file) > 0 {
		if len(file) < 12 {
			t.Fatalf("%d bytes are left", len(file))
		}
		kind, length := binary.LittleEndian.Uint32(file), binary.LittleEndian.Uint32(file[4:])
		if length%4 != 0 || int(length) > len(file) || binary.LittleEndian.Uint32(file[length-4:]) != length {
			t.Fatalf("block %#x of %d bytes", kind, length)
		}
		blocks = append(blocks, block{kind, file[8 : length-4]})
		file = file[length:]
	}
	return blocks
}

// options reads the options of a block.
func options(t *testing.T, b []byte) map[uint16]string {
	t.Helper()
	found := map[uint16]string{}
	for {
		code, length := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if code == 0 {
			if length != 0 || len(b) != 4 {
				t.Fatalf("after the options: % x", b)
			}
			return found
		}
		found[code] = string(b[4 : 4+length])
		b = b[4+(length+3)/4*4:]
	}
}

// example is a file with two packets.
func example(at time.Time) []byte {
	file := AppendHeader(nil, "warren", "warren0")
	file = AppendPacket(file, &Packet{Time: at, Inbound: true, Data: echo, Comment: "allowed rule=r1"})
	file = AppendPacket(file, &Packet{Time: at.Add(time.Nanosecond), Data: echo[:27]})
	return AppendStatistics(file, at, 5, 3)
}

var echo = []byte{
	0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0xb6, 0xdc, 100, 64, 0, 1, 100, 64, 0, 2,
	8, 0, 0xf7, 0xfe, 0, 1, 0, 0,
}

func TestBlocks(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
	blocks := read(t, example(at))
	if len(blocks) != 5 {
		t.Fatalf("%d blocks", len(blocks))
	}
	section, iface, first, second, statistics := blocks[0], blocks[1], blocks[2], blocks[3], blocks[4]
	if section.kind != 0x0a0d0d0a || binary.LittleEndian.Uint32(section.body) != 0x1a2b3c4d || options(t, section.body[16:])[4] != "warren" {
		t.Errorf("section % x", section.body)
	}
	if o := options(t, iface.body[8:]); iface.kind != 1 || binary.LittleEndian.Uint16(iface.body) != 101 || o[2] != "warren0" || o[9] != "\x09" {
		t.Errorf("interface % x", iface.body)
	}
	for i, p := range []struct {
		block
		data      []byte
		direction byte
		comment   string
	}{{first, echo, 1, "allowed rule=r1"}, {second, echo[:27], 2, ""}} {
		nanoseconds := uint64(binary.LittleEndian.Uint32(p.body[4:]))<<32 | uint64(binary.LittleEndian.Uint32(p.body[8:]))
		if p.kind != 6 || time.Unix(0, int64(nanoseconds)).UTC() != at.Add(time.Duration(i)) {
			t.Errorf("packet %d: % x", i, p.body)
		}
		captured, original := binary.LittleEndian.Uint32(p.body[12:]), binary.LittleEndian.Uint32(p.body[16:])
		o := options(t, p.body[20+(captured+3)/4*4:])
		if captured != original || !bytes.Equal(p.body[20:20+captured], p.data) || o[2] != string([]byte{p.direction, 0, 0, 0}) || o[1] != p.comment {
			t.Errorf("packet %d: % x", i, p.body)
		}
	}
	o := options(t, statistics.body[12:])
	if statistics.kind != 5 || o[4] != "\x05\x00\x00\x00\x00\x00\x00\x00" || o[5] != "\x03\x00\x00\x00\x00\x00\x00\x00" {
		t.Errorf("statistics % x", statistics.body)
	}
}

func TestLongComment(t *testing.T) {
	file := AppendPacket(nil, &Packet{Comment: strings.Repeat("x", 1<<17)})
	if o := options(t, read(t, file)[0].body[20:]); len(o[1]) != maxComment {
		t.Errorf("a comment of %d bytes", len(o[1]))
	}
}

// TestTcpdumpReadsIt asks the program that everybody has, where it is there.
func TestTcpdumpReadsIt(t *testing.T) {
	path, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("tcpdump is not installed")
	}
	name := filepath.Join(t.TempDir(), "example.pcapng")
	if err := os.WriteFile(name, example(time.Now()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "-nr", name).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "100.64.0.1 > 100.64.0.2: ICMP echo request") {
		t.Errorf("%v: %s", err, out)
	}
}
