package keys

import (
	"context"
	"errors"
	"fmt"

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
	fields, v, err := store.GetText(ctx, m.Store, path)
	if errors.Is(err, store.ErrNotFound) {
		return m.emptyRecord(ctx, path)
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

// emptyRecord finds what check-and-set wants of a record that was deleted by hand.
func (m *Manager) emptyRecord(ctx context.Context, path string) (*entry, error) {
	md, err := m.Store.Metadata(ctx, path)
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrForbidden): // whoever may not look finds out when writing
		return &entry{}, nil
	case err != nil:
		return nil, err
	}
	return &entry{cas: md.Current}, nil
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
