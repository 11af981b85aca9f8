// Package ident holds the vocabulary of identity: the typed ids, keys, labels
// and names that every other package speaks in, and the only knowledge of how
// they are written as text.
//
// The package is pure. Public values (NodeKey, MachineKey, SignerKey, ids,
// labels) are comparable and may be map keys. Private keys are deliberately
// neither comparable nor printable: they show as "[redacted]" in every format,
// refuse to be marshalled, and give up their bytes only through a method whose
// name says so.
package ident
