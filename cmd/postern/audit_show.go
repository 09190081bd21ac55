package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keys"
)

func newAuditShow(c *common) *cobra.Command {
	var since string
	var limit int
	var f audit.Filter
	cmd := &cobra.Command{
		Use: "show [FILE]", Short: "Print entries, all or chosen ones",
		Long: `Print entries of the operators' record in the store, or of an agent's record (FILE, or -
for standard input): all of them, or those that every flag given chooses.

  postern audit show --since 24h --key openai
  postern audit show --limit 20 -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if since != "" {
				t, err := parseSince(since, time.Now())
				if err != nil {
					return usageError{err}
				}
				f.Since = t
			}
			if limit < 0 {
				return usageError{fmt.Errorf("--limit %d: how many entries, 0 meaning all", limit)}
			}
			entries, err := c.entries(cmd, args, f, limit)
			if err != nil {
				return err
			}
			return c.print(cmd, entries, func(w io.Writer) { printEntries(w, entries) })
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "entries not older than this: a duration (2h) or a time (2006-01-02T15:04:05Z)")
	cmd.Flags().StringVar(&f.Key, "key", "", "entries about this key")
	cmd.Flags().StringVar(&f.Actor, "actor", "", "entries of this actor")
	cmd.Flags().IntVar(&limit, "limit", 0, "the newest so many of them; 0: all")
	cmd.Flags().StringVar(&f.Event, "event", "", "entries of this event")
	c.outputFlag(cmd)
	return cmd
}

// entries are the chosen ones of the record that the arguments name.
func (c *common) entries(cmd *cobra.Command, args []string, f audit.Filter, limit int) ([]audit.Entry, error) {
	entries := []audit.Entry{}
	if len(args) == 0 {
		_, trail, closer, err := c.trail()
		if err != nil {
			return nil, err
		}
		defer closer()
		found, err := trail.Entries(cmd.Context(), keys.TrailFilter{Since: f.Since, Key: f.Key, Actor: f.Actor, Event: f.Event, Limit: limit})
		return append(entries, found...), err
	}
	r, _, err := openRecord(cmd, args[0])
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for e, err := range audit.Show(r, f) {
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
		if limit > 0 && len(entries) > 2*limit { // a long record does not have to fit into memory
			entries = append([]audit.Entry{}, entries[len(entries)-limit:]...)
		}
	}
	if limit > 0 && len(entries) > limit {
		entries = entries[len(entries)-limit:]
	}
	return entries, nil
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
