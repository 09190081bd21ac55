package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// follow says how long a command stays with a rotation, and what it shows.
type follow struct{ watch, detach bool }

func (f *follow) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.watch, "watch", false, "on a terminal: a table of the agents, drawn anew, instead of a line for each change")
	cmd.Flags().BoolVar(&f.detach, "detach", false, "return once the migration has begun, and leave the rest to others")
}

func (f *follow) check() error {
	if f.watch && f.detach {
		return usageError{errors.New("--watch and --detach: one stays to see the end, the other does not; leave one out")}
	}
	return nil
}

// rotateFlags are those of `keys rotate`.
type rotateFlags struct {
	follow
	ramp, reason, file, providerID string
	grace                          time.Duration
	now, managed                   bool
}

func newKeysRotate(c *common) *cobra.Command {
	var f rotateFlags
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Replace a key without a failed request",
		Long: `Replace a key in four steps: generate (the new key is stored as the next version),
validate (the provider is asked whether it accepts it; a key that it refuses is never
used), migrate (agents move to it along the ramp and acknowledge), revoke (after grace
the old version is revoked at the provider where it has an API for that, and destroyed).
Old and new serve side by side until every live agent uses the new one.

The new key is read from standard input (on a terminal it is asked for, without echo)
or from --file, never from an argument; with --managed 'postern server' has the provider
make one. The command waits for the end and shows each change on standard error.
Interrupted at any point, the rotation goes on; 'postern keys resume NAME' waits again.

  postern keys rotate openai < new.txt
  postern keys rotate openai --ramp 1:30s,10:2m,50:5m --grace 10m --watch < new.txt
  postern keys rotate openai --now < new.txt        # no ramp, no grace

Exit codes: 0 rotated, 1 refused, rolled back or failed, 2 usage.`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.options(cmd)
			if err != nil {
				return err
			}
			return c.rotate(cmd, args[0], f, o)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.ramp, "ramp", "", "PERCENT:TIME,… that the new key takes for so long, then all, as in 1:30s,10:2m,50:5m; or none (default: rotation.ramp)")
	fl.DurationVar(&f.grace, "grace", 0, "how long the old key then stays usable (default: rotation.grace)")
	fl.BoolVar(&f.now, "now", false, "no ramp and no grace")
	fl.StringVar(&f.reason, "reason", "", "why; it is recorded")
	fl.BoolVar(&f.managed, "managed", false, "have the provider make the new key (done by postern server)")
	providerIDFlag(cmd, &f.providerID)
	keyFileFlag(cmd, &f.file)
	f.follow.flags(cmd)
	c.outputFlag(cmd)
	return cmd
}

// options are what the flags say of the rotation.
func (f *rotateFlags) options(cmd *cobra.Command) (keys.RotateOptions, error) {
	o := keys.RotateOptions{Reason: f.reason, Managed: f.managed, ProviderID: f.providerID}
	ramp, grace := cmd.Flags().Changed("ramp"), cmd.Flags().Changed("grace")
	switch {
	case f.now && (ramp || grace):
		return o, usageError{errors.New("--now means no ramp and no grace; leave --ramp and --grace out, or --now")}
	case f.managed && f.file != "":
		return o, usageError{errors.New("--managed has the provider make the new key; leave --file out, or --managed")}
	case f.managed && f.providerID != "":
		return o, usageError{errors.New("--managed has the provider make the new key, and tell its id; leave --provider-id out, or --managed")}
	case f.grace < 0:
		return o, usageError{fmt.Errorf("--grace %v: a length of time, as in 10m", f.grace)}
	}
	if f.now {
		o.Ramp, o.Grace = &rotation.Ramp{}, new(time.Duration)
	}
	if ramp {
		r, err := parseRamp(f.ramp)
		if err != nil {
			return o, usageError{err}
		}
		o.Ramp = &r
	}
	if grace {
		o.Grace = &f.grace
	}
	if err := aReason(f.reason, false); err != nil {
		return o, err
	}
	if err := notAKey(map[string]string{"--provider-id": f.providerID}); err != nil {
		return o, err
	}
	return o, f.check()
}

// maxRamp is how many steps a ramp may have, as in the configuration.
const maxRamp = 20

// parseRamp reads PERCENT:TIME,… or none.
func parseRamp(s string) (rotation.Ramp, error) {
	ramp := rotation.Ramp{}
	if s == "none" {
		return ramp, nil
	}
	const say = "write PERCENT:TIME, as in --ramp 1:30s,10:2m,50:5m, or none"
	for step := range strings.SplitSeq(s, ",") {
		percent, length, ok := strings.Cut(strings.TrimSpace(step), ":")
		weight, err := strconv.Atoi(percent)
		if !ok || err != nil {
			return nil, fmt.Errorf("--ramp: step %d is not in form; %s", len(ramp)+1, say)
		}
		d, err := time.ParseDuration(length)
		switch {
		case err != nil || d <= 0:
			return nil, fmt.Errorf("--ramp: step %d has no length of time; %s", len(ramp)+1, say)
		case weight < 1 || weight > 99:
			return nil, fmt.Errorf("--ramp: step %d: %d is not between 1 and 99 percent", len(ramp)+1, weight)
		case len(ramp) > 0 && weight <= ramp[len(ramp)-1].Weight:
			return nil, fmt.Errorf("--ramp: step %d: the percentages must rise", len(ramp)+1)
		case len(ramp) == maxRamp:
			return nil, fmt.Errorf("--ramp: more than %d steps", maxRamp)
		}
		ramp = append(ramp, rotation.RampStep{Weight: weight, For: d})
	}
	return ramp, nil
}

func (c *common) rotate(cmd *cobra.Command, name string, f rotateFlags, o keys.RotateOptions) error {
	s, err := c.keys(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.mayRotate(cmd, name); err != nil {
		return err
	}
	var value *secret.Value
	if !f.managed {
		if value, err = forKey(name, "postern keys rotate "+name, f.file).read(cmd); err != nil {
			return err
		}
		defer value.Destroy()
	}
	return c.carry(cmd, s, name, f.follow, func(ctx context.Context) (keys.Rotation, error) {
		defer secret.Sweep(nil)
		defer value.Destroy() // it is stored by then, or never will be: waiting for the end takes none
		return s.Rotate(ctx, name, value, o)
	})
}

// mayRotate finishes what is overdue and says, before anybody is asked for a key,
// why it could not be used. What it does not see Rotate does.
func (s *keyStore) mayRotate(cmd *cobra.Command, name string) error {
	i, err := s.catchUp(cmd, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("there is no key %s in %s; `postern keys add %s` stores the first version", name, s.scope(), name)
	case i.Rotation != nil && i.Rotation.Phase != rotation.PhaseRevoke:
		return &keys.OpenError{Name: name, Actor: i.Rotation.Actor, Since: i.Rotation.RequestedAt, Phase: i.Rotation.Phase}
	}
	return nil
}

func newKeysResume(c *common) *cobra.Command {
	var f follow
	var file string
	cmd := &cobra.Command{
		Use:   "resume NAME",
		Short: "Go on with a rotation that was interrupted",
		Long: `Go on with a rotation wherever it stands, and wait for its end. The key is needed
only where it was interrupted before the new version was stored; without it such a
rotation is rolled back, and nothing has changed. Where the version was stored but not
validated, the agents or the server ask the provider. The key may be given on standard
input or with --file; it is read only where it is of use.`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return c.resume(cmd, args[0], f, file)
		},
	}
	keyFileFlag(cmd, &file)
	f.flags(cmd)
	c.outputFlag(cmd)
	return cmd
}

func (c *common) resume(cmd *cobra.Command, name string, f follow, file string) error {
	s, err := c.keys(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	before, err := s.Status(cmd.Context(), name)
	if err != nil {
		return err
	}
	var value *secret.Value
	if takesKey(before) {
		in := keyInput{prompt: "Key for " + name + ", or Enter to go on without it", subject: name, file: file}
		value, err = in.readOptional(cmd)
		if err != nil && !errors.Is(err, errNoKey) {
			return err
		}
		defer value.Destroy()
	}
	return c.carry(cmd, s, name, f, func(ctx context.Context) (keys.Rotation, error) {
		defer secret.Sweep(nil)
		defer value.Destroy()
		return s.Resume(ctx, name, value)
	})
}

// takesKey reports whether the new key is of use: before it is stored, and until it is validated.
func takesKey(r keys.Rotation) bool {
	return !r.Closed && !r.Managed && (r.Phase == rotation.PhaseGenerate || r.Phase == rotation.PhaseValidate)
}

// carry begins or goes on with a rotation, stays with it as f says, and prints how it ended.
func (c *common) carry(cmd *cobra.Command, s *keyStore, name string, f follow, begin func(context.Context) (keys.Rotation, error)) error {
	ctx := cmd.Context()
	w := newFollower(cmd.ErrOrStderr(), f.watch)
	r, err := begin(ctx)
	if err == nil && !f.detach {
		w.show(r)
		r, err = s.await(ctx, r, w)
	}
	w.end(r)
	ended := r.Closed && !errors.Is(err, keys.ErrOpen) // with an error that says why, or none
	switch {
	case err != nil && ctx.Err() != nil:
		return s.interrupted(ctx, name)
	case err != nil && !ended:
		return err
	}
	words, failed := outcome(r, f.detach)
	if err != nil {
		failed = err
	}
	if failed != nil && c.output != "json" {
		return failed
	}
	if err := c.print(cmd, r, func(out io.Writer) { fmt.Fprint(out, words, s.whatOfTheOld(ctx, r), "\n") }); err != nil {
		return err
	}
	return failed
}

// whatOfTheOld says what became of the version that a rotation replaced.
func (s *keyStore) whatOfTheOld(ctx context.Context, r keys.Rotation) string {
	if r.Phase != rotation.PhaseDone || r.From == 0 {
		return ""
	}
	i, err := s.Show(ctx, r.Name)
	if err != nil {
		return ""
	}
	for _, v := range i.Versions {
		if v.Number == r.From && v.Readable {
			return fmt.Sprintf("; version %d is in the store still (%s)", v.Number, v.State)
		}
	}
	return fmt.Sprintf("; version %d is destroyed", r.From)
}

// lookAgain is how often a rotation is looked at that others carry on.
const lookAgain = 2 * time.Second

// await stays with a rotation until it is closed, or what is left is not the
// caller's to do. What the server does in a managed rotation is waited for.
func (s *keyStore) await(ctx context.Context, r keys.Rotation, w *follower) (keys.Rotation, error) {
	for !r.Closed {
		var err error
		if r, err = s.Wait(ctx, r.Name, w.show); err != nil || r.Closed || !r.Managed {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(lookAgain):
		}
	}
	return r, nil
}

// interrupted says how a rotation stands that the command was called away from.
func (s *keyStore) interrupted(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	r, err := s.Status(ctx, name)
	switch {
	case err != nil:
		return fmt.Errorf("interrupted; how the rotation stands could not be read. `postern keys show %s` tells, `postern keys resume %s` goes on with it", name, name)
	case r.Phase == rotation.PhaseNone:
		return fmt.Errorf("interrupted; no rotation of %s had begun", name)
	case r.Closed:
		return fmt.Errorf("interrupted; %s", summary(r))
	case takesKey(r):
		return fmt.Errorf("interrupted; the rotation of %s stands at %s. `postern keys resume %s` goes on with it, and asks for the key", name, r.Phase, name)
	}
	return fmt.Errorf("interrupted; the rotation goes on without this command: %s. `postern keys resume %s` waits for its end", progress(r), name)
}
