package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// write stores the value in hand as version To.
func (u *run) write(ctx context.Context, s *situation, e *entry) error {
	n := e.To.Number
	v, err := u.store(ctx, s, n, map[string]*secret.Value{Field: u.value})
	switch {
	case errors.Is(err, store.ErrConflict):
		u.beaten = true
		if !u.began {
			u.warn("version %d was written by somebody else meanwhile; the value given was not stored", n)
			u.value = nil // it is not that version's
		}
		return errAgain
	case err == nil:
	case softly(err): // it can never succeed as it stands
		u.failed = fmt.Errorf("version %d of %s could not be written: %w", n, u.name, err)
		u.warn("%s", u.record(ctx, audit.Event{Event: EventGenerate, Key: u.name, Version: n, Outcome: OutcomeFailed, Reason: err.Error()}))
		return u.close(ctx, s, e, closing(rotation.PhaseAbandoned, "version %d could not be written: %v", n, err))
	default: // nobody knows whether it was written
		return fmt.Errorf("version %d of %s: %w; `postern keys resume %s` finds out and goes on", n, u.name, err, u.name)
	}
	u.wrote = idOf(v)
	u.generated(ctx, v, nil)
	return nil
}

func (u *run) generated(ctx context.Context, v store.Version, detail map[string]string) {
	if v.RequestID != "" {
		if detail == nil {
			detail = map[string]string{}
		}
		detail["vault_request_id"] = v.RequestID
	}
	u.warn("%s", u.record(ctx, audit.Event{Event: EventGenerate, Key: u.name, Version: v.Number, Outcome: OutcomeOK, Detail: detail}))
}

// store writes fields as version n, and keeps the others.
func (u *run) store(ctx context.Context, s *situation, n int, fields map[string]*secret.Value) (store.Version, error) {
	if err := u.claimDigest(ctx, u.name, n, fields[Field]); err != nil {
		if errors.Is(err, store.ErrConflict) { // of the claims: it says nothing about the version
			err = fmt.Errorf("%w: %s", store.ErrUnavailable, err.Error())
		}
		return store.Version{}, err
	}
	path := u.Scope.Path(u.name)
	v, err := u.Store.Patch(ctx, path, fields, n-1)
	if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrDeleted) {
		return v, err
	}
	// Nothing is left to patch: the newest version was deleted. The other fields are taken from the one in use.
	all := maps.Clone(fields)
	if !s.r.From.Zero() {
		sec, err := u.Store.Get(ctx, path, s.r.From.Number)
		switch {
		case err == nil:
			defer sec.Destroy()
			for f, old := range sec.Fields {
				if fields[f] == nil {
					all[f] = old
				}
			}
		case softly(err):
			u.warn("version %d has no fields but those that were given: version %d may not be read", n, s.r.From.Number)
		default:
			return store.Version{}, err
		}
	}
	v, err = u.Store.Put(ctx, path, all, n-1)
	if errors.Is(err, store.ErrForbidden) {
		err = fmt.Errorf("%w (the newest version of %s was deleted, so there is nothing to replace: `postern keys add %s` stores the next one, with the right to create)", err, u.name, u.name)
	}
	return v, err
}

// written notes that To is there.
func (u *run) written(ctx context.Context, s *situation, e *entry) error {
	v, ok := s.stored(e.To.Number)
	if !ok { // it was given up, and removed
		return fmt.Errorf("version %d of %s is not there any more: %w", e.To.Number, u.name, store.ErrNotFound)
	}
	if e.Closed {
		e.Closed = false
		e.Reason = "its version was written just after it had been given up"
	}
	e.move(idOf(v))
	e.Phase = rotation.PhaseValidate
	e.clear(e.To)
	e.hold(u.holder, u.now())
	return u.save(ctx, e)
}

// detailOf says what an event about a rotation wants to be known beside the new version.
func detailOf(r *rotation.Record) map[string]string {
	d := map[string]string{"from": strconv.Itoa(r.From.Number)}
	if r.Managed {
		d["managed"] = "true"
	}
	return d
}
