package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent"
)

func newCheck(c *common) *cobra.Command {
	var probe bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, the store and the keys without starting",
		Long: `Do everything that the agent does at start but serve: read the configuration, open
the store and log in, read each key, look at the files and addresses it would use.
With --probe each key is also tried at its provider.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.load()
			if err != nil {
				return err
			}
			report, err := agent.Check(cmd.Context(), agent.Options{Config: cfg, Version: version, Log: io.Discard, Audit: io.Discard}, probe)
			if err != nil {
				return err
			}
			if err := c.print(cmd, report, func(w io.Writer) { printReport(w, report, probe) }); err != nil {
				return err
			}
			if !report.OK {
				return exitError(exitFailed)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&probe, "probe", false, "try each key at its provider")
	c.outputFlag(cmd)
	return cmd
}

func printReport(w io.Writer, r agent.Report, probe bool) {
	for _, s := range r.Steps {
		mark := "ok  "
		if s.Problem != "" {
			mark = "FAIL"
		}
		fmt.Fprintf(w, "%s  %s", mark, s.What)
		if s.Problem != "" {
			fmt.Fprintf(w, ": %s", s.Problem)
		}
		fmt.Fprintln(w)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note ", n)
	}
	head := []string{"KEY", "REQUIRED", "VERSION", "AGE", "STATE"}
	if probe {
		head = append(head, "PROBE", "STATUS", "TOOK", "MEANS")
	}
	rows := [][]string{head}
	var absent []string
	for _, k := range r.Keys {
		if !k.Required && k.Missing {
			absent = append(absent, k.Name)
			continue
		}
		required := "yes"
		if !k.Required {
			required = "no"
		}
		row := []string{k.Name, required, number(k.Version), age(k.Created), k.State}
		if probe {
			took := "-"
			if k.Probe != "" {
				took = k.Latency.Round(time.Millisecond).String()
			}
			row = append(row, orDash(k.Probe), number(k.Status), took, orDash(k.Meaning))
		}
		rows = append(rows, row)
	}
	if len(rows) > 1 {
		fmt.Fprintln(w)
		table(w, rows)
	}
	if len(absent) > 0 {
		fmt.Fprintf(w, "\nno key is stored, and none is required: %s\n", strings.Join(absent, ", "))
	}
}
