package sync

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// source is where a key's versions come from. Its methods may be called concurrently.
type source interface {
	// look reads what there is. vetoable are versions of which halts matter. What
	// the record says of revoked versions counts even beside an error.
	look(ctx context.Context, vetoable []rotation.ID) (sight, error)
	// fetch reads one version's value under the names it has in the store. A
	// halt against it is errHalted.
	fetch(ctx context.Context, id rotation.ID) (*store.Secret, error)
	// veto writes a halt for all agents, unless one stands already; errNoPlace where the source has none for it.
	veto(ctx context.Context, h rotation.Halt) (written bool, err error)
	// close wipes what was found and not fetched.
	close()
}

// sight is one complete look.
type sight struct {
	versions []rotation.Stored
	record   *rotation.Record
	halts    []rotation.Halt
	leases   []lease           // of all versions that have one
	notes    map[string]string // what could not be read and is done without, by kind
}

func (s *sight) note(kind string, err error) {
	if s.notes == nil {
		s.notes = map[string]string{}
	}
	s.notes[kind] = err.Error()
}

// lease is the time until which a version may be used.
type lease struct {
	id    rotation.ID
	until time.Time // local, monotonic
}

// errNoPlace: a key that somebody else laid out has no place for halts.
var errNoPlace = errors.New("a key at vault_path has no place for halts")

type errHalted struct{ halt rotation.Halt }

func (e errHalted) Error() string { return "halted: " + e.halt.Reason }

// errUnusable: the stored value can never be used as it stands.
type errUnusable struct{ error }

func (e errUnusable) Unwrap() error { return e.error }

// errEnvironment: the key belongs to another environment.
type errEnvironment struct{ path, theirs, ours string }

func (e errEnvironment) Error() string {
	return fmt.Sprintf("%s: its metadata names environment %q and this agent serves %q; store the key under its own environment", e.path, e.theirs, e.ours)
}

// The kinds of trouble, in Status, logs and metrics.
const (
	kindEnvironment     = "environment"
	kindNotFound        = "not_found"
	kindForbidden       = "forbidden"
	kindUnauthenticated = "unauthenticated"
	kindInvalid         = "invalid"
	kindUnavailable     = "unavailable"
	kindUnusable        = "unusable"
	kindHalted          = "halted"
)

// kindOf sorts an error; "" for nil.
func kindOf(err error) string {
	if err == nil {
		return ""
	}
	if _, ok := errors.AsType[errEnvironment](err); ok {
		return kindEnvironment
	}
	if _, ok := errors.AsType[errUnusable](err); ok {
		return kindUnusable
	}
	if _, ok := errors.AsType[errHalted](err); ok {
		return kindHalted
	}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDeleted):
		return kindNotFound
	case errors.Is(err, store.ErrForbidden):
		return kindForbidden
	case errors.Is(err, store.ErrUnauthenticated):
		return kindUnauthenticated
	case errors.Is(err, store.ErrInvalid):
		return kindInvalid
	default:
		return kindUnavailable
	}
}

// absent reports that there is nothing at a path.
func absent(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDeleted)
}

// checked gives a secret's key its own name and says whether it can be one.
// Where it fails the secret is destroyed.
func checked(sec *store.Secret, where, field string) (*store.Secret, error) {
	key := sec.Fields[field]
	if key == nil {
		sec.Destroy()
		return nil, errUnusable{fmt.Errorf("%s: has no field %q; store the key there or name its field", where, field)}
	}
	var err error
	key.Use(func(b []byte) { err = secret.CheckKey(b) })
	if err != nil {
		sec.Destroy()
		return nil, errUnusable{fmt.Errorf("%s: field %q: %w", where, field, err)}
	}
	if field != keyring.KeyField {
		sec.Fields[keyring.KeyField].Destroy()
		delete(sec.Fields, field)
		sec.Fields[keyring.KeyField] = key
	}
	return sec, nil
}
