package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/audit"
)

func newAudit(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Verify and read the audit record",
		Long: `Verify and read an audit record: JSON lines in which each entry carries the hash of
the one before. Without FILE it is the configuration's audit.file; - is standard input.`,
	}
	cmd.AddCommand(newAuditVerify(c), newAuditShow(c))
	return cmd
}

// openRecord opens the record that the arguments name.
func (c *common) openRecord(cmd *cobra.Command, args []string) (io.ReadCloser, string, error) {
	name := ""
	if len(args) > 0 {
		name = args[0]
	} else {
		cfg, err := c.load()
		if err != nil {
			return nil, "", err
		}
		if name = cfg.Audit.File; name == "-" {
			return nil, "", usageError{errors.New("the configuration's audit.file is standard output; name the FILE that it was collected in, or - for standard input")}
		}
	}
	if name == "-" {
		return io.NopCloser(cmd.InOrStdin()), "standard input", nil
	}
	f, err := os.Open(name)
	return f, name, err
}

func newAuditVerify(c *common) *cobra.Command {
	var heads []string
	cmd := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Find edited, deleted, reordered or cut-off entries",
		Long: `Find edits, deletions and reordering in an audit record. A chain that was cut off at
its end, or rewritten from the start, looks whole by itself: give an anchor, --head
SEQ:HASH, that was noted earlier (postern status shows it, and so does the label of the
metric postern_audit_anchor_info).`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var anchors []audit.Head
			for _, h := range heads {
				head, err := audit.ParseHead(h)
				if err != nil {
					return usageError{fmt.Errorf("--head %s: %w", h, err)}
				}
				anchors = append(anchors, head)
			}
			f, name, err := c.openRecord(cmd, args)
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := audit.Verify(f, anchors...)
			if err != nil {
				return err
			}
			if err := c.print(cmd, r, func(w io.Writer) { printVerified(w, name, r) }); err != nil {
				return err
			}
			if !r.OK() {
				return exitError(exitFailed)
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&heads, "head", nil, "an anchor SEQ:HASH that the record must contain (may be repeated)")
	c.outputFlag(cmd)
	return cmd
}

func printVerified(w io.Writer, name string, r audit.Report) {
	for _, p := range r.Problems {
		at := ""
		if p.Line > 0 {
			at = fmt.Sprintf("line %d: ", p.Line)
		}
		fmt.Fprintf(w, "%s%s: %s\n", at, p.Kind, p.Text)
	}
	if r.More > 0 {
		fmt.Fprintf(w, "and %s more\n", count(r.More, "problem", "problems"))
	}
	verdict := "intact"
	switch {
	case !r.OK():
		verdict = "NOT intact"
	case r.Entries == 0:
		verdict = "empty"
	}
	fmt.Fprintf(w, "%s: %s, %s in %s\n", name, verdict, count(r.Entries, "entry", "entries"), count(len(r.Chains), "chain", "chains"))
	for _, ch := range r.Chains {
		fmt.Fprintf(w, "  entries %d to %d, %s to %s, head %s\n", ch.First.Seq, ch.Head.Seq,
			ch.Since.Format(time.RFC3339), ch.Until.Format(time.RFC3339), ch.Head)
	}
}

func newAuditShow(c *common) *cobra.Command {
	var since string
	var f audit.Filter
	cmd := &cobra.Command{
		Use: "show [FILE]", Short: "Print entries, all or chosen ones",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if since != "" {
				t, err := parseSince(since, time.Now())
				if err != nil {
					return usageError{err}
				}
				f.Since = t
			}
			r, _, err := c.openRecord(cmd, args)
			if err != nil {
				return err
			}
			defer r.Close()
			entries := []audit.Entry{}
			for e, err := range audit.Show(r, f) {
				if err != nil {
					return err
				}
				entries = append(entries, e)
			}
			return c.print(cmd, entries, func(w io.Writer) { printEntries(w, entries) })
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "entries not older than this: a duration (2h) or a time (2006-01-02T15:04:05Z)")
	cmd.Flags().StringVar(&f.Key, "key", "", "entries about this key")
	cmd.Flags().StringVar(&f.Actor, "actor", "", "entries of this actor")
	cmd.Flags().StringVar(&f.Event, "event", "", "entries of this event")
	c.outputFlag(cmd)
	return cmd
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("--since %s: write a duration such as 2h, or a time such as 2006-01-02T15:04:05Z", s)
}

func printEntries(w io.Writer, entries []audit.Entry) {
	rows := [][]string{{"SEQ", "TIME", "EVENT", "KEY", "VERSION", "OUTCOME", "ACTOR", "REASON"}}
	for _, e := range entries {
		rows = append(rows, []string{fmt.Sprint(e.Seq), e.Time.Format(time.RFC3339), e.Event.Event, orDash(e.Key), number(e.Version), orDash(e.Outcome), orDash(e.Actor), orDash(e.Reason)})
	}
	table(w, rows)
}
