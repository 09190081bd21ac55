package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// kvSource is a key in postern's own layout.
type kvSource struct {
	store        store.Store
	path         string
	environment  string
	record, halt string // paths; a halt's is completed by the version's number
}

func newKVSource(o Options) *kvSource {
	name := path.Base(o.Source.Path)
	scope := o.Environment + "/" + o.ProxyID + "/" + name
	return &kvSource{store: o.Store, path: o.Source.Path, environment: o.Environment, record: "rotations/" + scope, halt: "halts/" + scope + "-"}
}

// look gives what the record says even where the rest fails: a revocation
// counts, whatever is wrong with the key's own path.
func (s *kvSource) look(ctx context.Context, vetoable []rotation.ID) (sight, error) {
	var seen sight
	err := s.versions(ctx, &seen)
	if kind := kindOf(err); kind == kindUnavailable || kind == kindUnauthenticated {
		return sight{}, err // the record will not be had either
	}
	record, failed := s.readRecord(ctx, &seen)
	seen.record = record
	if err = cmp.Or(err, failed); err != nil {
		return seen, err
	}
	for _, id := range vetoable {
		h, err := s.readHalt(ctx, id, &seen)
		if err != nil {
			return seen, err
		}
		if h != nil {
			seen.halts = append(seen.halts, *h)
		}
	}
	return seen, nil
}

// versions reads what the key's metadata lists.
func (s *kvSource) versions(ctx context.Context, seen *sight) error {
	md, err := s.store.Metadata(ctx, s.path)
	switch {
	case absent(err):
		return nil
	case err != nil:
		return err
	}
	if env := md.Custom["environment"]; env != "" && env != s.environment {
		return errEnvironment{s.path, env, s.environment}
	}
	for _, v := range md.Versions {
		seen.versions = append(seen.versions, rotation.Stored{ID: rotation.ID{Number: v.Number, Created: v.Created}, Readable: v.Readable()})
	}
	return nil
}

// plain reads an entry that is no secret. A nil map means that there is none,
// or that it may not be read or is too long to be, which is noted.
func (s *kvSource) plain(ctx context.Context, path string, seen *sight) (map[string][]byte, error) {
	fields, _, err := store.GetText(ctx, s.store, path)
	switch {
	case absent(err):
		return nil, nil
	case errors.Is(err, store.ErrForbidden), errors.Is(err, store.ErrTooLarge):
		seen.note(path, err)
		return nil, nil
	case err != nil:
		return nil, err
	}
	return fields, nil
}

// readRecord returns nil where there is no record that can be followed.
func (s *kvSource) readRecord(ctx context.Context, seen *sight) (*rotation.Record, error) {
	fields, err := s.plain(ctx, s.record, seen)
	if fields == nil {
		return nil, err
	}
	r, err := rotation.DecodeRecord(fields)
	if err != nil {
		seen.note(s.record, fmt.Errorf("%s: the rotation record is not followed: %w", s.record, err))
		return nil, nil
	}
	return r, nil
}

// readHalt returns nil where there is no halt of exactly this version.
func (s *kvSource) readHalt(ctx context.Context, id rotation.ID, seen *sight) (*rotation.Halt, error) {
	at := s.halt + strconv.Itoa(id.Number)
	fields, err := s.plain(ctx, at, seen)
	if fields == nil {
		return nil, err
	}
	h, err := rotation.DecodeHalt(fields)
	if err != nil {
		seen.note(at, fmt.Errorf("%s: the halt is not followed: %w", at, err))
		return nil, nil
	}
	if !h.To.Equal(id) { // of a version before the path was deleted and written anew
		return nil, nil
	}
	return h, nil
}

func (s *kvSource) fetch(ctx context.Context, id rotation.ID) (*store.Secret, error) {
	var seen sight
	switch h, err := s.readHalt(ctx, id, &seen); {
	case err != nil:
		return nil, err
	case h != nil:
		return nil, errHalted{*h}
	}
	return s.read(ctx, id)
}

// read is fetch whatever halts say.
func (s *kvSource) read(ctx context.Context, id rotation.ID) (*store.Secret, error) {
	sec, err := s.store.Get(ctx, s.path, id.Number)
	if err != nil {
		return nil, err
	}
	if got := (rotation.ID{Number: sec.Version.Number, Created: sec.Version.Created}); !got.Equal(id) {
		sec.Destroy()
		return nil, fmt.Errorf("%s: version %d was written anew meanwhile: %w", s.path, id.Number, store.ErrUnavailable)
	}
	return sec, nil
}

func (s *kvSource) veto(ctx context.Context, h rotation.Halt) (written bool, err error) {
	fields, err := h.Encode()
	if err != nil {
		return false, err
	}
	at := s.halt + strconv.Itoa(h.To.Number)
	if _, err = store.PutText(ctx, s.store, at, fields, 0); !errors.Is(err, store.ErrConflict) {
		return err == nil, err
	}
	// Somebody was first: with the same halt, unless it is left over from before numbering began anew.
	there, err := s.readHalt(ctx, h.To, &sight{})
	if err == nil && there == nil {
		err = fmt.Errorf("%s: holds a halt of another version, or one that was deleted, or may not be read; remove it with its metadata: %w", at, store.ErrInvalid)
	}
	return false, err
}

func (s *kvSource) close() {}
