package router

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// tablePrefix begins the names of our tables; the interface's name follows.
const tablePrefix = "warren-"

func (r *kernelRouter) newTable() *nftables.Table {
	return &nftables.Table{Name: tablePrefix + r.name, Family: nftables.TableFamilyINet}
}

// configureTable puts the guard for the settings in place of the one before, in
// one transaction: there is no moment without one.
func (r *kernelRouter) configureTable(s *Settings) error {
	if len(s.Own) == 0 {
		if !r.table {
			return nil
		}
		return r.removeTable()
	}
	foreign, err := r.foreign(s.Overlay)
	if err != nil {
		return err
	}
	if r.table {
		r.nftables.DelTable(r.newTable())
	}
	g := guard{conn: r.nftables, table: r.nftables.AddTable(r.newTable()), name: r.name, settings: s, foreign: foreign}
	g.build()
	if err := r.nftables.Flush(); err != nil {
		return fmt.Errorf("router: setting up nftables: %w", err)
	}
	r.table = true
	return nil
}

func (r *kernelRouter) removeTable() error {
	r.nftables.DelTable(r.newTable())
	if err := r.nftables.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("router: removing the table of nftables: %w", err)
	}
	r.table = false
	return nil
}

// removeStale removes the tables that ended processes left behind: that of our
// own interface's name, and those whose interface is gone.
func (r *kernelRouter) removeStale() error {
	tables, err := r.nftables.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("router: listing the tables of nftables: %w", err)
	}
	var errs []error
	for _, t := range tables {
		name, ours := strings.CutPrefix(t.Name, tablePrefix)
		if !ours {
			continue
		}
		if _, err := net.InterfaceByName(name); err == nil && name != r.name {
			continue
		}
		r.nftables.DelTable(t)
		errs = append(errs, r.nftables.Flush())
	}
	return errors.Join(errs...)
}
