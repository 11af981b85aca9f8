package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/store"
)

func (m *Main) audit() *cobra.Command {
	c := group(&cobra.Command{
		Use: "audit", Short: "Verify and list the record of what was done",
		Long: `Verify and list the record of what was done. It is read from the data directory
itself, whether or not the coordinator runs.`,
	})
	c.AddCommand(m.auditVerify(), m.auditList())
	return c
}

// auditHead is what verify prints.
type auditHead struct {
	Entries uint64 `json:"entries"`
	Head    string `json:"head"`
}

func (m *Main) auditVerify() *cobra.Command {
	var known string
	c := &cobra.Command{
		Use: "verify", Short: "Check the chain of hashes from the first entry to the last",
		Long: `Check the chain of hashes from the first entry to the last, and print its head.
Keep the head somewhere else, and give it as --head the next time: that finds
entries that were cut off the end.`,
	}
	c.Flags().StringVar(&known, "head", "", "a head that was printed before, as INDEX:HASH")
	c.Args, c.RunE = run(0, func(c *cobra.Command, _ []string) error {
		before, err := parseHead(known)
		if err != nil {
			return &usageError{c, err}
		}
		db, err := store.OpenReadOnly(c.Context(), m.data)
		if err != nil {
			return err
		}
		defer db.Close()
		head, err := db.VerifyAudit(c.Context())
		if err != nil {
			return err
		}
		var at audit.Hash
		err = db.Audit(c.Context(), before.Index, func(r *audit.Record) error {
			if r.Index == before.Index {
				at = r.Hash
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := head.Covers(before, func(uint64) (audit.Hash, bool) { return at, true }); err != nil {
			return err
		}
		text := fmt.Sprintf("%d:%s", head.Index, hex.EncodeToString(head.Hash[:]))
		return m.print(auditHead{head.Index, text}, func() {
			fmt.Fprintf(m.Stdout, "the audit chain holds: %d entries\nhead %s\n", head.Index, text)
		})
	})
	return m.printable(c)
}

func parseHead(text string) (audit.Head, error) {
	var head audit.Head
	if text == "" {
		return head, nil
	}
	index, hash, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(index, 10, 64)
	raw, hexErr := hex.DecodeString(hash)
	if err != nil || hexErr != nil || len(raw) != len(head.Hash) {
		return head, errors.New("--head wants INDEX:HASH, as `audit verify` prints it")
	}
	head.Index = n
	copy(head.Hash[:], raw)
	return head, nil
}

// auditEntry is an entry as list prints it.
type auditEntry struct {
	Index   uint64            `json:"index"`
	Time    time.Time         `json:"time"`
	Actor   string            `json:"actor"`
	Action  string            `json:"action"`
	Target  string            `json:"target,omitempty"`
	Details map[string]string `json:"details,omitempty"`
}

func (m *Main) auditList() *cobra.Command {
	var from uint64
	c := &cobra.Command{Use: "list", Short: "List what was done, the oldest first"}
	c.Flags().Uint64Var(&from, "from", 1, "begin with the entry of this index")
	c.Args, c.RunE = run(0, func(c *cobra.Command, _ []string) error {
		db, err := store.OpenReadOnly(c.Context(), m.data)
		if err != nil {
			return err
		}
		defer db.Close()
		all := []auditEntry{}
		var rows [][]string
		err = db.Audit(c.Context(), from, func(r *audit.Record) error {
			e, err := audit.Decode(r.Entry)
			if err != nil {
				return fmt.Errorf("entry %d: %w; `audit verify` says where the chain breaks", r.Index, err)
			}
			out := auditEntry{Index: r.Index, Time: e.Time, Actor: e.Actor, Action: e.Action, Target: e.Target, Details: map[string]string{}}
			var details []string
			for _, d := range e.Details {
				out.Details[d.Key] = d.Value
				details = append(details, fmt.Sprintf("%s=%q", d.Key, d.Value))
			}
			all = append(all, out)
			rows = append(rows, []string{
				strconv.FormatUint(r.Index, 10), when(e.Time), strconv.Quote(e.Actor), e.Action, e.Target, strings.Join(details, " "),
			})
			return nil
		})
		if err != nil {
			return err
		}
		return m.print(all, func() { m.table("INDEX TIME ACTOR ACTION TARGET DETAILS", rows) })
	})
	return m.printable(c)
}
