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

// errSources says that the guard stands but for its check of sources.
var errSources = errors.New("neighbours can send packets in the name of peers: the kernel has no nft_fib")

// configureTable puts the guard for the settings in place of the one before, in
// one transaction: there is no moment without one. The error wraps errSources
// where the guard stands without the check that needs the kernel's routes.
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
	err = r.replaceTable(&guard{settings: s, foreign: foreign, routes: true})
	if err != nil && r.replaceTable(&guard{settings: s, foreign: foreign}) == nil {
		return fmt.Errorf("%w: %w", errSources, err)
	}
	return err
}

func (r *kernelRouter) replaceTable(g *guard) error {
	if r.table {
		r.nftables.DelTable(r.newTable())
	}
	g.conn, g.table, g.name = r.nftables, r.nftables.AddTable(r.newTable()), r.name
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
