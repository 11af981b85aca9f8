package zone

import (
	_ "embed" // the database is a part of the program
	"errors"
	"fmt"
	"time"
)

// ErrUnknown is wrapped by the error of Load for a name that is none.
var ErrUnknown = errors.New("zone: unknown time zone")

// database is a zip archive whose files are stored uncompressed, as package
// time wants it too.
//
//go:embed zoneinfo.zip
var database string

// Load returns the zone of that name of the database, in its exact spelling;
// "" and "UTC" stand for UTC. "Local" is no name of the database. The error
// wraps ErrUnknown.
func Load(name string) (*time.Location, error) {
	if name == "" || name == "UTC" {
		return time.UTC, nil
	}
	data, ok := find(name)
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	location, err := time.LoadLocationFromTZData(name, data)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrUnknown, name, err)
	}
	return location, nil
}

// The layout of a zip archive (APPNOTE.TXT 6.3.10): the end of the central
// directory (4.3.16), the headers in it (4.3.12), and those before each file
// (4.3.7).
const (
	endSize     = 22
	headerSize  = 46
	localSize   = 30
	headerMagic = 0x02014b50
)

// find returns the content of a file of the database. It looks at some six
// hundred headers, which takes a few microseconds, and unlike package
// archive/zip makes nothing of those that it passes by.
func find(name string) ([]byte, bool) {
	end := len(database) - endSize
	count, at := uint16At(end+10), uint32At(end+16)
	for range count {
		if uint32At(at) != headerMagic {
			panic("BUG: zone: the database is damaged")
		}
		size, nameLength := uint32At(at+24), uint16At(at+28)
		skip := nameLength + uint16At(at+30) + uint16At(at+32)
		if database[at+headerSize:at+headerSize+nameLength] == name {
			local := uint32At(at + 42)
			from := local + localSize + uint16At(local+26) + uint16At(local+28)
			return []byte(database[from : from+size]), true
		}
		at += headerSize + skip
	}
	return nil, false
}

// uint16At and uint32At read a little-endian number.
func uint16At(at int) int { return int(database[at]) | int(database[at+1])<<8 }

func uint32At(at int) int { return uint16At(at) | uint16At(at+2)<<16 }
