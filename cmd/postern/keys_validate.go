package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
)

func newKeysValidate(c *common) *cobra.Command {
	var all bool
	var versions []int
	cmd := &cobra.Command{
		Use:   "validate NAME...",
		Short: "Ask the providers whether keys work",
		Long: `Ask the provider about every stored version of a key, with one cheap request each:

  live     it answered the key, perhaps with 403 (restricted) or 429 (limited)
  dead     it refused the key: missing, malformed or revoked
  unknown  no answer, or one that says nothing about the key

Reading the versions needs the right to. Exit code 1 if any of them is dead.`,
		Args: anyNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && !all:
				return usageError{errors.New("keys validate wants the NAME of a key, or --all")}
			case len(args) > 0 && all:
				return usageError{errors.New("--all means every key; leave the names out, or --all")}
			case len(versions) > 0 && len(args) != 1:
				return usageError{errors.New("--version is one key's; name that key alone")}
			}
			if err := checkVersions(versions); err != nil {
				return err
			}
			return c.validate(cmd, args, versions)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every key of this environment and proxy id")
	versionsFlag(cmd, &versions, "only this version (may be repeated; default: all that can be read)")
	c.outputFlag(cmd)
	return cmd
}

func versionsFlag(cmd *cobra.Command, versions *[]int, usage string) {
	cmd.Flags().IntSliceVar(versions, "version", nil, usage)
}

func checkVersions(versions []int) error {
	for _, n := range versions {
		if n < 1 {
			return usageError{fmt.Errorf("--version %d: versions are numbered from 1", n)}
		}
	}
	return nil
}

// validate asks about the keys named, or all of them. One that cannot be looked at leaves the others.
func (c *common) validate(cmd *cobra.Command, names []string, versions []int) error {
	s, err := c.keys(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	if len(names) == 0 {
		if names, err = s.Names(cmd.Context()); err != nil {
			return err
		}
	}
	found, failed := []keys.Validation{}, false
	for _, name := range names {
		v, err := s.Validate(cmd.Context(), name, versions...)
		found = append(found, v...)
		if err != nil {
			failed = true
			fmt.Fprintln(cmd.ErrOrStderr(), "postern:", shown(err.Error()))
		}
		if cmd.Context().Err() != nil {
			break
		}
	}
	if err := c.print(cmd, found, func(w io.Writer) { s.printValidations(w, names, found) }); err != nil {
		return err
	}
	for _, v := range found {
		failed = failed || v.Verdict == rotation.VerdictDead.String()
	}
	if failed {
		return exitError(exitFailed)
	}
	return nil
}

func (s *keyStore) printValidations(w io.Writer, names []string, found []keys.Validation) {
	if len(names) == 0 {
		fmt.Fprintf(w, "no keys in %s; `postern keys add NAME` stores one\n", s.scope())
	}
	if len(found) == 0 {
		return
	}
	rows := [][]string{{"KEY", "VERSION", "VERDICT", "STATUS", "LATENCY", "MEANING"}}
	for _, v := range found {
		latency := "-"
		if v.LatencyMS > 0 || v.Status > 0 {
			latency = (time.Duration(v.LatencyMS) * time.Millisecond).String()
		}
		means := v.Meaning
		if v.Error != "" {
			means += " (" + v.Error + ")"
		}
		rows = append(rows, []string{v.Name, strconv.Itoa(v.Version), v.Verdict, number(v.Status), latency, orDash(means)})
	}
	table(w, rows)
}
