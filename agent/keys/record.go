package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// entry is a rotation record and the version of it that was read, which is what
// the next write must find (0: there is none yet).
type entry struct {
	rotation.Record
	cas int
}

// readRecord returns an empty entry where there is none.
func (m *Manager) readRecord(ctx context.Context, name string) (*entry, error) {
	path := m.Scope.record(name)
	for range maxSteps {
		fields, v, err := store.GetText(ctx, m.Store, path)
		if errors.Is(err, store.ErrNotFound) {
			if cas, gone, err := m.noRecord(ctx, path); gone || err != nil {
				return &entry{cas: cas}, err
			}
			continue // somebody wrote one just now
		}
		if err != nil {
			return nil, err
		}
		r, err := rotation.DecodeRecord(fields)
		if err != nil {
			return nil, fmt.Errorf("%s: the rotation record cannot be read: %w", path, err)
		}
		return &entry{*r, v.Number}, nil
	}
	return nil, fmt.Errorf("%s: the rotation record comes and goes: %w", path, store.ErrConflict)
}

// noRecord finds what check-and-set wants where no record can be read: 0, or the
// number of one that was deleted by hand. Not gone: there is one after all, and
// whoever wrote over it would not know what it says.
func (m *Manager) noRecord(ctx context.Context, path string) (cas int, gone bool, err error) {
	md, err := m.Store.Metadata(ctx, path)
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrForbidden): // whoever may not look finds out when writing
		return 0, true, nil
	case err != nil:
		return 0, false, err
	}
	readable := slices.ContainsFunc(md.Versions, func(v store.Version) bool { return v.Number == md.Current && v.Readable() })
	return md.Current, !readable, nil
}

// writeRecord writes e over the version it was read from. store.ErrConflict
// means that somebody else was first.
func (m *Manager) writeRecord(ctx context.Context, name string, e *entry) error {
	fields, err := e.Encode()
	if err != nil {
		return err
	}
	v, err := store.PutText(ctx, m.Store, m.Scope.record(name), fields, e.cas)
	if err != nil {
		return err
	}
	e.cas = v.Number
	return nil
}

// hold tells others to leave the new version to somebody for a while.
func (e *entry) hold(holder string, now time.Time) { e.Holder, e.HeldUntil = holder, now.Add(holdTime) }

func (e *entry) release() { e.Holder, e.HeldUntil = "", time.Time{} }

// move gives the new version another id. What the record says of it goes along.
func (e *entry) move(to rotation.ID) {
	for i := range e.Versions {
		if e.Versions[i].ID.Equal(e.To) {
			e.Versions[i].ID = to
		}
	}
	e.To = to
}

// First and longest waits after what failed.
const failFirst, failMost = 30 * time.Second, time.Hour

// fail notes an attempt at a version that failed, and when to try again.
func (e *entry) fail(id rotation.ID, trouble string, now time.Time) {
	failed(e.Version(id), trouble, now, failFirst)
}

// failed is fail with another first wait. Each one is twice as long as the one before, up to failMost.
func failed(v *rotation.VersionRecord, trouble string, now time.Time, first time.Duration) {
	v.Next = now.Add(min(first<<min(max(v.Attempts, 0), 16), failMost))
	v.Attempts++
	v.Trouble = trouble
}

// clear forgets the attempts at a version that failed.
func (e *entry) clear(id rotation.ID) {
	for i := range e.Versions {
		if v := &e.Versions[i]; v.ID.Equal(id) {
			v.Attempts, v.Next, v.Trouble = 0, time.Time{}, ""
		}
	}
	e.prune()
}

// prune drops versions of which nothing is said.
func (e *entry) prune() {
	e.Versions = slices.DeleteFunc(e.Versions, func(v rotation.VersionRecord) bool {
		return v == rotation.VersionRecord{ID: v.ID}
	})
}

// inherit is what the record of the next rotation must go on saying: what agents
// must not use, what the provider calls what it gave, and what is still to be ended.
func (s situation) inherit() []rotation.VersionRecord {
	var kept []rotation.VersionRecord
	for _, v := range s.r.Versions {
		if s.open() && v.ID.Equal(s.r.From) && !barred(v.State) {
			v.State = rotation.Retired // an end that others did not come to yet
		}
		stored, there := s.stored(v.Number)
		there = there && idOf(stored).Equal(v.ID)
		if v.ProviderID != "" && !v.Revoked || there && (barred(v.State) || v.State == rotation.Retired && !v.Destroyed && !stored.Destroyed) {
			kept = append(kept, v)
		}
	}
	return kept
}
