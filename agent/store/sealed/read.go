package sealed

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Get implements store.Store. Values are decrypted for this call and not kept.
func (s *Store) Get(ctx context.Context, path string, number int) (*store.Secret, error) {
	if err := alive(ctx, path); err != nil {
		return nil, err
	}
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if number < 0 {
		return nil, fmt.Errorf("%s: version %d: %w", path, number, store.ErrInvalid)
	}
	doc, k, err := s.load()
	if err != nil {
		return nil, err
	}
	v, err := doc.readable(path, number)
	if err != nil {
		return nil, err
	}
	sec := &store.Secret{Version: v.public(), Fields: make(map[string]*secret.Value, len(v.Fields))}
	for name, box := range v.Fields {
		if sec.Fields[name], err = openValue(k.values, bind(path, v.Number, v.Created, name), box); err != nil {
			sec.Destroy()
			return nil, s.explain(err)
		}
	}
	return sec, nil
}

// readable finds a version whose data is there; number 0 is the newest.
func (d *document) readable(path string, number int) (*version, error) {
	e := d.Paths[path]
	if e == nil || e.Current == 0 {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	if number == 0 {
		number = e.Current
	}
	v := e.find(number)
	switch {
	case v == nil && number > e.Current:
		return nil, fmt.Errorf("%s: version %d (the newest is %d): %w", path, number, e.Current, store.ErrNotFound)
	case v == nil:
		return nil, fmt.Errorf("%s: version %d is no longer kept: %w", path, number, store.ErrDeleted)
	case v.Destroyed:
		return nil, fmt.Errorf("%s: version %d was destroyed: %w", path, number, store.ErrDeleted)
	}
	return v, nil
}

// Metadata implements store.Store.
func (s *Store) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	if err := alive(ctx, path); err != nil {
		return nil, err
	}
	if err := checkPath(path); err != nil {
		return nil, err
	}
	doc, _, err := s.load()
	if err != nil {
		return nil, err
	}
	e := doc.Paths[path]
	if e == nil {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	m := &store.Metadata{Current: e.Current, MaxVersions: e.MaxVersions, Custom: maps.Clone(e.Custom)}
	for _, v := range e.Versions {
		m.Versions = append(m.Versions, v.public())
	}
	return m, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, folder string) ([]string, error) {
	if err := alive(ctx, "listing "+folder); err != nil {
		return nil, err
	}
	prefix, err := checkFolder(folder)
	if err != nil {
		return nil, err
	}
	doc, _, err := s.load()
	if err != nil {
		return nil, err
	}
	names := map[string]struct{}{}
	for path := range doc.Paths {
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		if name, _, deeper := strings.Cut(rest, "/"); deeper {
			rest = name + "/"
		}
		names[rest] = struct{}{}
	}
	return slices.Sorted(maps.Keys(names)), nil
}
