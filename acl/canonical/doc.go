// Package canonical reads and writes the one byte string that stands for a
// value: deterministically encoded CBOR (RFC 8949, section 4.2.1), cut down to
// what signed records need: unsigned integers, byte strings, text strings and
// arrays.
//
// What is signed must have one spelling, or two parties can read one signature
// differently. So lengths and integers are in their shortest form, nothing is
// of indefinite length, text is valid UTF-8, and a Reader refuses everything
// else. A record is an array of a fixed number of fields, the first of which is
// its version.
//
// The package is pure and allocates only what it returns.
package canonical
