package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/postern-proxy/postern/agent/secret"
)

// GetText reads the newest version of an entry that is no secret. The copies
// are the caller's. Nothing there, or deleted, is ErrNotFound.
func GetText(ctx context.Context, s Store, path string) (map[string][]byte, Version, error) {
	sec, err := s.Get(ctx, path, 0)
	if errors.Is(err, ErrDeleted) {
		return nil, Version{}, absent{err}
	}
	if err != nil {
		return nil, Version{}, err
	}
	defer sec.Destroy()
	fields := make(map[string][]byte, len(sec.Fields))
	for name, v := range sec.Fields {
		v.Use(func(b []byte) { fields[name] = append([]byte{}, b...) })
	}
	return fields, sec.Version, nil
}

// absent is an ErrDeleted for callers to whom that is the same as ErrNotFound.
type absent struct{ error }

func (a absent) Is(target error) bool { return target == ErrNotFound }

// PutText writes an entry that is no secret, as Put does. The fields are left as they are.
func PutText(ctx context.Context, s Store, path string, fields map[string][]byte, cas int) (Version, error) {
	values := make(map[string]*secret.Value, len(fields))
	defer func() {
		for _, v := range values {
			v.Destroy()
		}
	}()
	for name, b := range fields {
		v, err := secret.New(append([]byte{}, b...))
		if err != nil {
			reason := ErrUnavailable // no memory
			if len(b) > secret.MaxLen {
				reason = ErrInvalid
			}
			return Version{}, fmt.Errorf("%s: field %q: %w (%w)", path, name, reason, err)
		}
		values[name] = v
	}
	return s.Put(ctx, path, values, cas)
}
