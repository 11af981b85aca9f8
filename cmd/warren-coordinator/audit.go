package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/cmd/internal/commandline"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/store"
)

func (m *Main) audit() *cobra.Command {
	c := commandline.Group(&cobra.Command{
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
	// Kept is the index of the head that is kept beside the database.
	Kept uint64 `json:"kept"`
}

func (m *Main) auditVerify() *cobra.Command {
	var known string
	c := &cobra.Command{
		Use: "verify", Short: "Check the chain of hashes from the first entry to the last",
		Long: `Check the chain of hashes from the first entry to the last, and print its head.
The coordinator keeps a signed head beside the database, which finds entries
that were cut off the end there. Keep the printed head somewhere else, and give
it as --head the next time: that finds it also where both were put back.`,
	}
	c.Flags().StringVar(&known, "head", "", "a head that was printed before, as INDEX:HASH")
	c.Args = commandline.Arguments(0)
	c.RunE = func(c *cobra.Command, _ []string) error {
		before, err := parseHead(known)
		if err != nil {
			return commandline.Wrong(c, err)
		}
		db, err := store.OpenReadOnly(c.Context(), m.data)
		if err != nil {
			return err
		}
		defer db.Close()
		// First the kept head, then the chain, which may grow meanwhile.
		kept, err := m.keptHead(c.Context(), db)
		if err != nil {
			return err
		}
		head, err := db.VerifyAudit(c.Context())
		if err != nil {
			return err
		}
		for _, known := range []audit.Head{kept, before} {
			if err := db.Covers(c.Context(), head, known); err != nil {
				return err
			}
		}
		out := auditHead{Entries: head.Index, Head: head.String(), Kept: kept.Index}
		return m.print(out, func() {
			fmt.Fprintf(m.Stdout, "the audit chain holds: %d entries\nhead %s\n", out.Entries, out.Head)
			if out.Kept == 0 {
				fmt.Fprintf(m.Stdout, "there is no %s to show whether its end was cut off\n", store.AuditHeadPath(m.data))
			} else {
				fmt.Fprintf(m.Stdout, "its end was not cut off before entry %d\n", out.Kept)
			}
		})
	}
	return m.printable(c)
}

func parseHead(text string) (audit.Head, error) {
	if text == "" {
		return audit.Head{}, nil
	}
	head, err := audit.ParseHead(text)
	if err != nil {
		return head, errors.New("--head wants INDEX:HASH, as `audit verify` prints it")
	}
	return head, nil
}

// keptHead returns the head that the coordinator keeps beside the database,
// the zero one where there is none.
func (m *Main) keptHead(ctx context.Context, db *store.DB) (audit.Head, error) {
	sealed, err := store.AuditHead(m.data)
	if err != nil || sealed == nil {
		return audit.Head{}, err
	}
	raw, err := db.Genesis(ctx)
	if err != nil {
		return audit.Head{}, err
	}
	genesis, err := authority.DecodeGenesis(raw, sha256.Sum256(raw))
	if err != nil {
		return audit.Head{}, err
	}
	var signers []ident.SignerKey
	for _, s := range genesis.Signers {
		signers = append(signers, s.Key)
	}
	kept, err := audit.OpenSealed(sealed, genesis.Fingerprint(), signers)
	if err != nil {
		return audit.Head{}, fmt.Errorf("%s was tampered with or damaged: %w", store.AuditHeadPath(m.data), err)
	}
	return kept, nil
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
	c.Args = commandline.Arguments(0)
	c.RunE = func(c *cobra.Command, _ []string) error {
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
	}
	return m.printable(c)
}
