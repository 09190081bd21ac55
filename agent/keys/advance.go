package keys

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// maxSteps bounds how many steps one call takes, conflicts included.
const maxSteps = 64

// holdTime is how long others leave a version to whoever makes it.
const holdTime = 2 * time.Minute

// errAgain says that somebody else wrote the record: look again.
var errAgain = errors.New("the rotation record changed meanwhile")

// run is one call that carries a rotation on. Whatever it remembers of itself
// only tells apart what it did from what others did: all else is read anew before each step.
type run struct {
	*Manager
	name   string
	value  *secret.Value // the caller's, or own; nil: not in hand
	own    *secret.Value
	holder string
	since  time.Time // of the rotation that is carried on; zero: whichever there is

	began, beaten bool
	wrote         rotation.ID
	probed        *provider.Result
	unread        bool
	denied        map[rotation.ID]string
	warned        []string
	failed        error // why the rotation ended here without the new version
}

func (m *Manager) newRun(name string, value *secret.Value) *run {
	who := orSomebody(m.Actor.Name)
	if m.Actor.Source != "" {
		who += " (" + m.Actor.Source + ")"
	}
	return &run{Manager: m, name: name, value: value, holder: who + " #" + rand.Text()[:8], denied: map[rotation.ID]string{}}
}

func (u *run) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); w != "" && !slices.Contains(u.warned, w) {
		u.warned = append(u.warned, w)
	}
}

// now is the time that all agents agree on.
func (m *Manager) now() time.Time { return m.Store.Now().Round(0).UTC() }

// Advance takes every step of a key's rotation that is due now and returns how
// far it is. It also goes on ending, at the provider and in the store, what
// earlier rotations and revocations left. Any number of callers may do so at once.
// With an error the Rotation says how far it was before.
func (m *Manager) Advance(ctx context.Context, name string) (Rotation, error) {
	if err := CheckName(name); err != nil {
		return Rotation{}, err
	}
	u := m.newRun(name, nil)
	rot, err := u.carry(ctx)
	if u.failed != nil && errors.Is(err, u.failed) { // that is an outcome: Phase and Reason say it
		err = nil
	}
	return rot, err
}

// carry takes steps until there is nothing to do now.
func (u *run) carry(ctx context.Context) (Rotation, error) {
	defer func() {
		if u.own != nil {
			u.own.Destroy()
			secret.Sweep(nil)
		}
	}()
	for range maxSteps {
		s, e, err := u.look(ctx)
		if err != nil {
			return Rotation{}, err
		}
		now := u.now()
		if !u.since.IsZero() && !u.since.Equal(e.RequestedAt) {
			return u.describe(s, step{}, now), openError(u.name, &e.Record)
		}
		next := decide(*s, now)
		if next.move == moveNone {
			return u.describe(s, next, now), u.failed
		}
		if err := u.take(ctx, s, e, next); err != nil && !errors.Is(err, errAgain) {
			return u.describe(s, next, now), err
		}
	}
	return Rotation{}, fmt.Errorf("%s: the rotation record changes all the time: %w", u.Scope.record(u.name), store.ErrConflict)
}

// look reads everything that decides about a key's rotation.
func (u *run) look(ctx context.Context) (*situation, *entry, error) {
	e, err := u.readRecord(ctx, u.name)
	if err != nil {
		return nil, nil, err
	}
	md, err := u.Store.Metadata(ctx, u.Scope.Path(u.name))
	if errors.Is(err, store.ErrNotFound) {
		md, err = &store.Metadata{}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	s := &situation{
		name: u.name, r: &e.Record, md: md, poll: u.poll(),
		server: u.Issuer != nil, prober: u.Probe != nil,
		value: u.value != nil, mine: e.Holder == u.holder, began: u.began, beaten: u.beaten, wrote: u.wrote,
		probed: u.probed, unread: u.unread, denied: u.denied,
	}
	s.issuer = u.issuerOf(s.provider()) != nil
	if !s.open() || e.To.Created.IsZero() || e.Phase == rotation.PhaseRevoke {
		return s, e, nil
	}
	if s.halt, err = u.readHalt(ctx, u.name, e.To); errors.Is(err, errNoHalt) {
		u.warn("%v", err)
	} else if err != nil {
		if !softly(err) {
			return nil, nil, err
		}
		s.blind = err.Error()
	}
	if s.agents, err = u.readAcks(ctx, u.name, e.To); err != nil {
		if !softly(err) {
			return nil, nil, err
		}
		s.blind = err.Error()
	}
	return s, e, nil
}

// softly reports whether an error says that this cannot be read as it stands:
// then others may, while trying again helps nobody here.
func softly(err error) bool {
	return !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnauthenticated) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// provider is that of the key.
func (s situation) provider() string { return providerOf(s.md, s.name) }

// errNoHalt: something stands in a halt's place that is none. Agents do without
// it, and nobody has the right to remove it.
var errNoHalt = errors.New("the halt cannot be read")

// readHalt returns the halt of exactly this version, nil if there is none.
func (m *Manager) readHalt(ctx context.Context, name string, id rotation.ID) (*rotation.Halt, error) {
	path := fmt.Sprintf("%s%s-%d", m.Scope.halts(), name, id.Number)
	fields, _, err := store.GetText(ctx, m.Store, path)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	var h *rotation.Halt
	if err == nil {
		h, err = rotation.DecodeHalt(fields)
	}
	if err != nil && (fields != nil || errors.Is(err, store.ErrTooLarge)) {
		return nil, fmt.Errorf("%s: %w: %w", path, errNoHalt, err)
	}
	if err != nil {
		return nil, err
	}
	if !h.To.Equal(id) { // of a version before the path was deleted and written anew
		return nil, nil
	}
	h.Reason = printable(h.Reason)
	return h, nil
}

// describe is the rotation for people.
func (u *run) describe(s *situation, next step, now time.Time) Rotation {
	r := s.r
	rot := Rotation{
		ID: u.Scope.ID(u.name), Name: u.name, Environment: u.Scope.Environment, ProxyID: u.Scope.ProxyID,
		Phase: r.Phase, Closed: r.Closed, Managed: r.Managed, From: r.From.Number, To: r.To.Number, Ramp: r.Ramp,
		RequestedAt: r.RequestedAt, StartedAt: r.StartedAt, Weight: weight(r, now), Actor: r.Actor, Reason: r.Reason,
		Agents: s.agents, Waiting: next.waiting, Next: next.next, Overdue: s.open() && next.late(now),
		Warnings: slices.Concat(u.warned, s.warnings()),
	}
	if r.Phase != rotation.PhaseNone {
		rot.Grace = r.Grace.String()
	}
	if s.open() && next.move != moveNone { // Status takes no step
		rot.Waiting, rot.Next = "the next step ("+string(next.move)+"), which `postern keys resume "+u.name+"` takes", now
	}
	return rot
}

// take takes one step.
func (u *run) take(ctx context.Context, s *situation, e *entry, next step) error {
	e.Versions = slices.Clone(e.Versions)
	switch next.move {
	case moveWrite:
		return u.write(ctx, s, e)
	case moveIssue:
		return u.issue(ctx, s, e)
	case moveWritten:
		return u.written(ctx, s, e)
	case moveProbe:
		return u.ask(ctx, s, e)
	case moveMigrate:
		return u.migrate(ctx, e)
	case moveProven:
		e.Validated = true
		e.clear(e.To)
		return u.save(ctx, e)
	case movePostpone:
		e.release()
		e.fail(e.To, refusal(u.probed.Meaning, u.probed.Status), u.now())
		return u.save(ctx, e)
	case moveRetire:
		e.Phase = rotation.PhaseRevoke
		e.clear(e.To)
		return u.save(ctx, e)
	case moveRevoke:
		return u.revokeAtProvider(ctx, s, e, next.version)
	case moveDestroy:
		return u.destroy(ctx, e, next.version)
	case moveClose:
		return u.close(ctx, s, e, next)
	}
	return fmt.Errorf("no such step: %q", next.move)
}

// save writes the record over what was read.
func (u *run) save(ctx context.Context, e *entry) error {
	err := u.writeRecord(ctx, u.name, e)
	if errors.Is(err, store.ErrConflict) {
		return errAgain
	}
	return err
}
