package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/keys"
)

func newKeysList(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the keys of this environment and proxy id",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.keys(cmd.Context())
			if err != nil {
				return err
			}
			defer s.close()
			infos, err := s.List(cmd.Context())
			if err != nil {
				return err
			}
			for n, i := range infos {
				infos[n] = s.catchUpFrom(cmd, i)
			}
			return c.print(cmd, infos, func(w io.Writer) { s.printKeys(w, infos) })
		},
	}
	c.outputFlag(cmd)
	return cmd
}

func newKeysShow(c *common) *cobra.Command {
	var leaked bool
	var file string
	cmd := &cobra.Command{
		Use: "show [NAME]", Short: "Show a key's versions, never its value",
		Long: `Show a key's versions, its rotation, and what the agents said of it; never its value.
With --leaked: say which key a value on standard input is, and change nothing.

  postern keys show openai
  postern keys show --leaked < found.txt`,
		Args: atMostOneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case leaked && len(args) > 0:
				return usageError{errors.New("--leaked finds out which key it is; leave the NAME out")}
			case !leaked && len(args) == 0:
				return usageError{errors.New("keys show wants the NAME of a key, as in openai, or --leaked")}
			case !leaked && file != "":
				return usageError{errors.New("--file holds the value that --leaked looks for; a NAME needs no value")}
			}
			s, err := c.keys(cmd.Context())
			if err != nil {
				return err
			}
			defer s.close()
			if leaked {
				return c.showLeaked(cmd, s, file)
			}
			i, err := s.Show(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			i = s.catchUpFrom(cmd, i)
			return c.print(cmd, i, func(w io.Writer) { s.printKey(w, i) })
		},
	}
	cmd.Flags().BoolVar(&leaked, "leaked", false, "say which key the value on standard input is")
	cmd.Flags().StringVar(&file, "file", "", "read the leaked value from this file instead of standard input")
	c.outputFlag(cmd)
	return cmd
}

func (c *common) showLeaked(cmd *cobra.Command, s *keyStore, file string) error {
	found, err := s.identify(cmd, "postern keys show --leaked", file)
	if err != nil {
		return err
	}
	return c.print(cmd, found, func(w io.Writer) {
		for _, f := range holders(found) {
			fmt.Fprintf(w, "this is %s\n", held(f))
		}
	})
}

func (s *keyStore) printKeys(w io.Writer, infos []keys.Info) {
	if len(infos) == 0 {
		fmt.Fprintf(w, "no keys in %s; `postern keys add NAME` stores one\n", s.scope())
		return
	}
	rows := [][]string{{"NAME", "PROVIDER", "VERSION", "AGE", "ROTATION", "NEXT DUE", "LABEL"}}
	var below []string
	for _, i := range infos {
		v, rotating, due := i.Current(), "-", "-"
		if r := i.Rotation; r != nil {
			rotating = fmt.Sprintf("%s, version %d at %d%%", r.Phase, r.To, r.Weight)
			if r.To == 0 {
				rotating = string(r.Phase)
			}
		}
		if !i.NextDue.IsZero() {
			due = minute(i.NextDue)
		}
		rows = append(rows, []string{i.Name, orDash(i.Provider), number(v.Number), age(v.Created), rotating, due, orDash(i.Label)})
		if i.Error != "" {
			below = append(below, i.Name+": "+i.Error)
		}
		for _, text := range i.Overdue {
			below = append(below, i.Name+": overdue: "+text)
		}
		for _, text := range i.Notes {
			below = append(below, i.Name+": "+text)
		}
	}
	table(w, rows)
	if len(below) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(below, "\n"))
	}
}

// minute is a time to the minute.
func minute(t time.Time) string { return t.UTC().Format("2006-01-02T15:04Z") }

func (s *keyStore) printKey(w io.Writer, i keys.Info) {
	fmt.Fprintf(w, "%s: provider %s, label %s", i.ID, orDash(i.Provider), orDash(i.Label))
	if i.Service != "" {
		fmt.Fprintf(w, ", service %s", i.Service)
	}
	fmt.Fprintf(w, "\nused by: %s\n", orDash(strings.Join(s.users(i.Name), ", ")))
	if every, err := time.ParseDuration(i.RotateEvery); err == nil {
		fmt.Fprintf(w, "rotates every %s, next at %s\n", period(every), minute(i.NextDue))
	}
	if r := i.Rotation; r != nil {
		s.printRotation(w, *r)
	}
	fmt.Fprintln(w)
	rows := [][]string{{"VERSION", "STATE", "SHARE", "AGE", "WRITTEN BY"}}
	var below []string
	for _, v := range i.Versions {
		share := "-"
		if v.Weight > 0 {
			share = strconv.Itoa(v.Weight) + "%"
		}
		rows = append(rows, []string{strconv.Itoa(v.Number), v.State, share, age(v.Created), orDash(v.CreatedBy)})
		if v.Reason != "" {
			why := strings.TrimPrefix(v.Reason, fmt.Sprintf("version %d was revoked: ", v.Number))
			below = append(below, fmt.Sprintf("version %d is %s: %s", v.Number, v.State, why))
		}
		if !v.Expires.IsZero() {
			below = append(below, fmt.Sprintf("version %d ends by itself at %s", v.Number, minute(v.Expires)))
		}
	}
	table(w, rows)
	for _, text := range i.Overdue {
		below = append(below, "overdue: "+text)
	}
	below = append(below, i.Notes...)
	if len(below) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(below, "\n"))
	}
}

// printRotation is the open rotation, and what the agents said of it.
func (s *keyStore) printRotation(w io.Writer, r keys.Rotation) {
	fmt.Fprintf(w, "rotation: %s\n", strings.TrimPrefix(progress(r), r.Name+": "))
	fmt.Fprintf(w, "  begun %s ago by %s", age(r.RequestedAt), orDash(r.Actor))
	if r.Reason != "" {
		fmt.Fprintf(w, ": %s", r.Reason)
	}
	fmt.Fprintln(w)
	for _, text := range r.Warnings {
		fmt.Fprintf(w, "  warning: %s\n", text)
	}
	if len(r.Agents) > 0 {
		fmt.Fprintln(w)
		printAgents(w, r)
	}
}
