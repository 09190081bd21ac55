package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// scheduled is what `keys schedule` prints.
type scheduled struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	RotateEvery string `json:"rotate_every"` // "" where it rotates no more by itself
}

func newKeysSchedule(c *common) *cobra.Command {
	var every string
	var off bool
	cmd := &cobra.Command{
		Use:   "schedule NAME",
		Short: "Make a key rotate every so often",
		Long: `Make a key rotate every so often: 'postern server' begins a managed rotation when it
is due, one replica at a time, and catches up once on what was missed. It needs an
issuer for the key's provider in the server's configuration.

  postern keys schedule openai --every 30d
  postern keys schedule openai --off`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := parsePeriod(every, off)
			if err != nil {
				return usageError{err}
			}
			s, err := c.keys(cmd.Context())
			if err != nil {
				return err
			}
			defer s.close()
			if err := s.Schedule(cmd.Context(), args[0], d); err != nil {
				return err
			}
			s.catchUp(cmd, args[0])
			out := scheduled{ID: s.Scope.ID(args[0]), Name: args[0]}
			if d > 0 {
				out.RotateEvery = d.String()
			}
			return c.print(cmd, out, func(w io.Writer) {
				if d == 0 {
					fmt.Fprintf(w, "%s: does not rotate by itself any more in %s\n", args[0], s.scope())
					return
				}
				fmt.Fprintf(w, "%s: rotates every %s in %s; `postern server` does it when it is due\n", args[0], period(d), s.scope())
			})
		},
	}
	cmd.Flags().StringVar(&every, "every", "", "time between two rotations, as in 720h or 30d")
	cmd.Flags().BoolVar(&off, "off", false, "no more rotations by itself")
	c.outputFlag(cmd)
	return cmd
}

const day = 24 * time.Hour

// parsePeriod reads --every, in which days may be written as 30d; 0 is --off.
func parsePeriod(every string, off bool) (time.Duration, error) {
	switch {
	case off && every != "":
		return 0, errors.New("--off ends the schedule that --every would set; leave one out")
	case off:
		return 0, nil
	case every == "":
		return 0, errors.New("keys schedule wants --every TIME, as in --every 720h, or --off")
	}
	bad := fmt.Errorf("--every %s: write a length of time above zero, as in 720h or 30d", every)
	if days, ok := strings.CutSuffix(every, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 1 || n > 3650 {
			return 0, bad
		}
		return time.Duration(n) * day, nil
	}
	d, err := time.ParseDuration(every)
	if err != nil || d <= 0 {
		return 0, bad
	}
	return d, nil
}

// period is a length of time as people say it.
func period(d time.Duration) string {
	switch {
	case d == day:
		return "day"
	case d > 0 && d%day == 0:
		return fmt.Sprintf("%d days", d/day)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
