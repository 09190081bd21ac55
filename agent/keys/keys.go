// Package keys is the lifecycle of provider keys over a Store: the one
// implementation that the command line and the management API both call. It
// never returns a key's value.
package keys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Field is the secret's field that holds the key itself.
const Field = "api_key"

// Custom metadata fields of a provider key.
const (
	metaProvider    = "provider"
	metaLabel       = "label"
	metaEnvironment = "environment"
	metaService     = "service"
	metaEvery       = "rotate_every" // a duration, as in 720h0m0s
)

// nameShape is what providers[].key may be.
var nameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// CheckName says whether a key may have this name. What looks like a key by
// mistake is the caller's to hide.
func CheckName(name string) error {
	if !nameShape.MatchString(name) {
		return fmt.Errorf("key name %q: use 1 to 63 lower-case letters, digits, '_' and '-', beginning with a letter or digit", name)
	}
	return nil
}

// shaped says whether a value can be a key.
func shaped(name string, value *secret.Value) error {
	shape := errors.New("there is none, or it was destroyed")
	value.Use(func(b []byte) { shape = secret.CheckKey(b) })
	if shape != nil {
		return fmt.Errorf("the key of %s: %w", name, shape)
	}
	return nil
}

// Names are the keys of the scope, sorted; folders, and what is not ours, are left
// out. It takes the right to list them, and no other.
func (m *Manager) Names(ctx context.Context) ([]string, error) {
	all, err := m.Store.List(ctx, m.Scope.folder())
	return slices.DeleteFunc(all, func(n string) bool { return CheckName(n) != nil }), err
}

// absent says that there is no such key. It is a store.ErrNotFound.
type absent struct{ text string }

func (a absent) Error() string        { return a.text }
func (a absent) Is(target error) bool { return target == store.ErrNotFound }

// providerOf is the provider of a key.
func providerOf(md *store.Metadata, name string) string { return cmp.Or(md.Custom[metaProvider], name) }

// mustMetadata is an absent error where there is no key.
func (m *Manager) mustMetadata(ctx context.Context, name string) (*store.Metadata, error) {
	md, err := m.Store.Metadata(ctx, m.Scope.Path(name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, absent{fmt.Sprintf("there is no key %s in %s, %s; `postern keys list` shows what there is", name, m.Scope.Environment, m.Scope.ProxyID)}
	}
	return md, err
}
