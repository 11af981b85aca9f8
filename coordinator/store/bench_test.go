package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/registry"
)

// BenchmarkVerifyAudit verifies a chain of 100,000 entries (L10).
func BenchmarkVerifyAudit(b *testing.B) {
	const entries = 100_000
	book := newBook(b)
	tx, err := book.db.sql.Begin()
	if err != nil {
		b.Fatal(err)
	}
	head := book.head
	for i := range entries {
		var r audit.Record
		r, head = head.Append(&audit.Entry{
			Time: begin, Actor: "admin uid 0", Action: "device.register", Target: fmt.Sprint("n", i),
			Details: []audit.Detail{{Key: "name", Value: "laptop"}, {Key: "machine", Value: ident.MachineKey{1}.String()}, {Key: "nodekey", Value: ident.NodeKey{2}.String()}},
		})
		if _, err := tx.Exec("INSERT INTO audit VALUES (?, ?, ?)", r.Index, r.Entry, r.Hash[:]); err != nil {
			b.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if got, err := book.db.VerifyAudit(context.Background()); err != nil || got != head {
			b.Fatal(got, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/entries, "µs/entry")
}

// BenchmarkRegister commits registrations, each on the disk when it returns.
func BenchmarkRegister(b *testing.B) {
	book := newBook(b)
	book.people()
	book.now = begin.Add(time.Hour)
	n := uint16(0)
	for b.Loop() {
		if n++; n == 60000 {
			b.Skip("enough")
		}
		book.mustRun(register(n, "many"))
		if n%3 == 0 {
			book.mustRun(registry.Logout{Node: ident.NodeID(n)})
		}
	}
}
