package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent"
)

// print writes v as JSON with -o json, else what text prints. What has a key's
// form is not printed: somebody may have given one as a label or a path.
func (c *common) print(cmd *cobra.Command, v any, text func(w io.Writer)) error {
	var b strings.Builder
	if c.output == "json" {
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return err
		}
	} else {
		text(&b)
	}
	_, err := io.WriteString(cmd.OutOrStdout(), shown(b.String()))
	return err
}

// shown is a text as it may be printed: without what has a key's form, and
// without what makes a terminal do anything. Much of what is printed was written
// by others: labels, reasons, actors, agents' names. In JSON the replacement means
// what it replaces.
func shown(text string) string {
	var b strings.Builder
	for _, r := range agent.Masked(text) {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// table writes rows in columns; the first row is the head.
func table(w io.Writer, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			r[i] = strings.Map(func(c rune) rune { // which would end the cell, or the line
				if strings.ContainsRune("\t\n\v\f", c) {
					return ' '
				}
				return c
			}, cell)
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	tw.Flush()
}

// age is a duration as people say it.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// count is n things.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// number is n, or a dash where there is none.
func number(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
