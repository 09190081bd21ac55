package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/config"
)

func newAudit(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Verify and read the audit records",
		Long: `Verify and read audit records, in which each entry carries the hash of the one before.
There are two: what operators did to keys stands in the store, and what an agent did and
refused in its audit.file (JSON lines). Without FILE it is the store's of the
configuration's environment; FILE is an agent's, and - is standard input.`,
	}
	cmd.AddCommand(newAuditVerify(c), newAuditShow(c))
	return cmd
}

// trail opens the operators' record in the store that the flags select.
func (c *common) trail() (*config.Config, *keys.Trail, func(), error) {
	cfg, st, closer, err := c.openStore()
	if err != nil {
		return nil, nil, nil, err
	}
	return cfg, keys.NewTrail(st, cfg.Environment, agent.Boot()), closer, nil
}

// openRecord opens an agent's record.
func openRecord(cmd *cobra.Command, name string) (io.ReadCloser, string, error) {
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
		Short: "Find edited, deleted, reordered, forged or cut-off entries",
		Long: `Find edits, deletions, reordering and forged actors. Without FILE both records are
verified: the operators' in the store, and the agent's if the configuration's audit.file
is a file on this machine.

A chain that was cut off at its end, or rewritten from the start, looks whole by itself:
give an anchor, --head SEQ:HASH, that was noted earlier (this command prints the head;
postern status shows the agent's, and so does the metric postern_audit_anchor_info). An
anchor may be of either record.`,
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
			if len(args) == 0 {
				return c.verifyBoth(cmd, anchors)
			}
			f, name, err := openRecord(cmd, args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := audit.Verify(f, anchors...)
			if err != nil {
				return err
			}
			if err := c.print(cmd, r, func(w io.Writer) { printVerified(w, name, "line", r) }); err != nil {
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

// verified is what was found in both records.
type verified struct {
	OK        bool          `json:"ok"`
	Operators audit.Report  `json:"operators"`
	Agent     *audit.Report `json:"agent,omitempty"` // nil: it is not on this machine, or none is configured
	// Unknown are anchors that neither record has.
	Unknown []string `json:"unknown_anchors,omitempty"`
}

func (c *common) verifyBoth(cmd *cobra.Command, anchors []audit.Head) error {
	cfg, trail, closer, err := c.trail()
	if err != nil {
		return err
	}
	defer closer()
	var v verified
	if v.Operators, err = trail.Verify(cmd.Context(), anchors...); err != nil {
		return err
	}
	if v.Agent, err = verifyFile(cfg.Audit.File, anchors); err != nil {
		return err
	}
	v.match(anchors)
	if v.Agent == nil && cfg.Audit.File != "-" {
		note(cmd, "there is no agent's record on this machine (audit.file, %s)", cfg.Audit.File)
	}
	if err := c.print(cmd, v, func(w io.Writer) {
		printVerified(w, operators(cfg), "entry", v.Operators)
		if v.Agent != nil {
			printVerified(w, cfg.Audit.File, "line", *v.Agent)
		}
		for _, a := range v.Unknown {
			fmt.Fprintf(w, "anchor %s: NOT found; the record it is of was cut off or rewritten\n", a)
		}
	}); err != nil {
		return err
	}
	if !v.OK {
		return exitError(exitFailed)
	}
	return nil
}

func operators(cfg *config.Config) string {
	return fmt.Sprintf("the operators' record of %s (%s)", cfg.Environment, place(cfg))
}

// verifyFile is nil where the agent's record is no file, or not there.
func verifyFile(name string, anchors []audit.Head) (*audit.Report, error) {
	if name == "-" {
		return nil, nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := audit.Verify(f, anchors...)
	return &r, err
}

// match settles the anchors: each must stand in one of the records, and is no
// problem of the other. What a report says of an anchor names its number alone,
// so that anchors of one number are counted together.
func (v *verified) match(anchors []audit.Head) {
	if v.Agent != nil {
		missing := map[uint64]int{}
		for _, a := range anchors {
			missing[a.Seq]--
		}
		for _, r := range []*audit.Report{&v.Operators, v.Agent} {
			r.Problems = slices.DeleteFunc(r.Problems, func(p audit.Problem) bool {
				if p.Kind == audit.Anchor {
					missing[p.Seq]++
				}
				return p.Kind == audit.Anchor
			})
		}
		for _, a := range anchors {
			if missing[a.Seq] > 0 {
				missing[a.Seq]--
				v.Unknown = append(v.Unknown, a.String())
			}
		}
	}
	v.OK = v.Operators.OK() && (v.Agent == nil || v.Agent.OK()) && len(v.Unknown) == 0
}

// printVerified prints what was found in one record; unit is what its problems are counted in.
func printVerified(w io.Writer, name, unit string, r audit.Report) {
	for _, p := range r.Problems {
		at := ""
		switch {
		case unit == "entry" && p.Seq > 0:
			at = fmt.Sprintf("entry %d: ", p.Seq)
		case p.Line > 0:
			at = fmt.Sprintf("%s %d: ", unit, p.Line)
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
