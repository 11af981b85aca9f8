// Package zone loads time zones from a copy of the IANA time zone database
// that is part of the program.
//
// Package time looks at $ZONEINFO and at the system's database first, which
// differ from device to device and may be changed there; two devices with the
// same rules would hold them at different times. Here the answer depends on the
// program alone. Programs of different versions may still differ where a
// country changed its clocks in between.
//
// zoneinfo.zip is lib/time/zoneinfo.zip of a Go release, which is made from the
// public domain database of https://www.iana.org/time-zones; its present
// version is 2025c. It is replaced as a whole, by the file of a newer release.
//
// The package is pure and starts no goroutine.
package zone
