package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/store"
)

// printable gives a command that prints data its --json flag.
func (m *Main) printable(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&m.json, "json", false, "print JSON")
	return c
}

// client speaks to the running coordinator.
func (m *Main) client() *admin.Client {
	return admin.NewClient(filepath.Join(m.data, store.SocketFile))
}

// print prints v as JSON where that was asked for, else what text says.
func (m *Main) print(v any, text func()) error {
	if !m.json {
		text()
		return nil
	}
	e := json.NewEncoder(m.Stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table prints rows under a head, in aligned columns.
func (m *Main) table(head string, rows [][]string) {
	w := tabwriter.NewWriter(m.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(strings.Fields(head), "\t"))
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
}

// when prints a time, "" where there is none.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// whose prints who owns a key or device.
func whose(user string, tags []string) string {
	if user != "" {
		return user
	}
	return strings.Join(tags, ",")
}

// warnings prints what is allowed and probably not meant.
func (m *Main) warnings(list []admin.Problem) {
	for _, w := range list {
		fmt.Fprintln(m.Stderr, "warning:", w)
	}
}
