package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Resume goes on with a rotation that was interrupted, wherever that was. Where
// the new version was never written it writes the value, and without one gives the
// rotation up. Elsewhere a value only lets the provider be asked about it by
// somebody who may not read. Errors are those of Rotate.
func (m *Manager) Resume(ctx context.Context, name string, value *secret.Value) (Rotation, error) {
	u := m.newRun(name, value)
	if err := CheckName(name); err != nil {
		return Rotation{}, err
	}
	if value != nil {
		if err := shaped(u.name, value); err != nil {
			return Rotation{}, err
		}
	}
	for {
		s, e, err := u.look(ctx)
		if err != nil {
			return Rotation{}, err
		}
		switch err := u.takeOver(ctx, s, e); {
		case errors.Is(err, errAgain):
			u.value = value
		case err != nil:
			now := u.now()
			return u.describe(s, decide(*s, now), now), err
		default:
			return u.carry(ctx)
		}
	}
}

// takeOver makes a rotation that somebody left ours.
func (u *run) takeOver(ctx context.Context, s *situation, e *entry) error {
	now := u.now()
	_, written := s.stored(e.To.Number)
	switch {
	case !s.open():
		if u.value != nil {
			return fmt.Errorf("no rotation of %s is under way that could take this value; `postern keys rotate %s` begins one", u.name, u.name)
		}
		return nil
	case u.value != nil && e.Managed:
		return fmt.Errorf("the rotation of %s is managed: its issuer makes the value", u.name)
	case e.Phase == rotation.PhaseRequested && !s.server && now.Sub(e.RequestedAt) > unclaimed:
		return u.giveUp(ctx, s, e, fmt.Sprintf("no server took it up in %v", now.Sub(e.RequestedAt).Round(time.Second)))
	case e.Managed || e.Phase != rotation.PhaseGenerate && e.Phase != rotation.PhaseValidate:
		return nil
	case e.Phase == rotation.PhaseGenerate && !written && u.value == nil:
		return u.giveUp(ctx, s, e, fmt.Sprintf("%s gave it up, because its value was never written", orSomebody(u.Actor.Name)))
	case e.Phase == rotation.PhaseGenerate && !written:
		if err := u.checkDigest(ctx, u.name, u.value); err != nil {
			return err
		}
		if err := u.intend(ctx, audit.Event{Event: EventGenerate, Key: u.name, Version: e.To.Number, Reason: "resumed", Detail: detailOf(&e.Record)}); err != nil {
			return err
		}
	case u.value != nil && !u.is(ctx, e.To.Number):
		u.warn("the value given is not that of version %d, and was not used", e.To.Number)
		u.value = nil
	}
	e.hold(u.holder, now)
	u.since = e.RequestedAt
	return u.save(ctx, e)
}

// giveUp ends a rotation of which nothing was written.
func (u *run) giveUp(ctx context.Context, s *situation, e *entry, reason string) error {
	if err := u.close(ctx, s, e, closing(rotation.PhaseAbandoned, "%s", reason)); err != nil {
		return err
	}
	u.failed = nil // it is what was asked for
	return nil
}

// is reports whether the value in hand is that of a version: by reading it, or
// else by what was claimed before it was written.
func (u *run) is(ctx context.Context, n int) bool {
	sec, err := u.Store.Get(ctx, u.Scope.Path(u.name), n)
	if err == nil {
		defer sec.Destroy()
		return sec.Fields[Field].Equal(u.value)
	}
	if !errors.Is(err, store.ErrForbidden) {
		return false
	}
	found, _, err := u.claims(ctx, u.value.Digest())
	return err == nil && slices.ContainsFunc(found, func(f Found) bool { return f.ID == u.Scope.ID(u.name) && f.Version == n })
}
