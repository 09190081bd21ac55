// Package storetest is the conformance suite of store.Store: a test for every
// sentence of the interface. A store passes it or is not one.
package storetest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// SoftDeleter is implemented by a store, or by a test's wrapper around one, that
// can delete the newest version so that its metadata stays. postern itself never
// does that, people do (`vault kv delete`); where a store implements it, every
// test about unreadable versions runs with it too.
type SoftDeleter interface {
	SoftDelete(ctx context.Context, path string) error
}

// Run runs the suite. open is called once in each subtest; it returns an empty
// store with every right, to which nobody else writes, and leaves closing it to
// t.Cleanup. Its versions are kept to at least 3 a path by default.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	groups := []struct {
		name  string
		tests []test
	}{
		{"Get", getTests},
		{"Put", putTests},
		{"Patch", patchTests},
		{"Metadata", metadataTests},
		{"SetMetadata", setMetadataTests},
		{"List", listTests},
		{"Destroy", destroyTests},
		{"Remove", removeTests},
		{"Errors", errorTests},
		{"Now", nowTests},
		{"Concurrency", concurrencyTests},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for _, tt := range g.tests {
				t.Run(strings.ReplaceAll(tt.says, " ", "_"), func(t *testing.T) {
					tt.run(&suite{T: t, s: open(t)})
				})
			}
		})
	}
}

// test is one sentence and how it is tried.
type test struct {
	says string
	run  func(*suite)
}

// suite is one test's store, with what it has stored there.
type suite struct {
	*testing.T
	s      store.Store
	canary []string // every value ever passed to the store; none may appear in an error
}

type fields map[string]string

// one is the path of tests that need only one.
const one = "provider-keys/prod/px_acme/openai"

// values makes Values that live until the test ends.
func (t *suite) values(f fields) map[string]*secret.Value {
	t.Helper()
	m := make(map[string]*secret.Value, len(f))
	for name, text := range f {
		v, err := secret.New([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Destroy)
		m[name] = v
		if len(text) >= 8 {
			t.canary = append(t.canary, text)
		}
	}
	return m
}

// put writes a version that must be accepted.
func (t *suite) put(path string, f fields, cas int) store.Version {
	t.Helper()
	v, err := t.s.Put(t.Context(), path, t.values(f), cas)
	if err != nil {
		t.Fatalf("Put(%s, cas %d): %v", path, cas, err)
	}
	return v
}

// patch writes a version that must be accepted.
func (t *suite) patch(path string, f fields, cas int) store.Version {
	t.Helper()
	v, err := t.s.Patch(t.Context(), path, t.values(f), cas)
	if err != nil {
		t.Fatalf("Patch(%s, cas %d): %v", path, cas, err)
	}
	return v
}

// get reads a version that must be there.
func (t *suite) get(path string, version int) (fields, store.Version) {
	t.Helper()
	sec, err := t.s.Get(t.Context(), path, version)
	if err != nil {
		t.Fatalf("Get(%s, %d): %v", path, version, err)
	}
	defer sec.Destroy()
	if sec.Lease != nil {
		t.Errorf("Get(%s, %d) has a lease", path, version)
	}
	return plain(sec), sec.Version
}

// plain copies a secret's fields out of the arena.
func plain(sec *store.Secret) fields {
	f := make(fields, len(sec.Fields))
	for name, v := range sec.Fields {
		f[name] = text(v)
	}
	return f
}

func text(v *secret.Value) (s string) {
	if !v.Use(func(b []byte) { s = string(b) }) {
		return "(destroyed)"
	}
	return s
}

// holds checks what a version reads as.
func (t *suite) holds(path string, version int, want fields) {
	t.Helper()
	if got, _ := t.get(path, version); !maps.Equal(got, want) {
		t.Errorf("Get(%s, %d) = %.200q, want %.200q", path, version, got, want)
	}
}

// metadata reads metadata that must be there.
func (t *suite) metadata(path string) *store.Metadata {
	t.Helper()
	m, err := t.s.Metadata(t.Context(), path)
	if err != nil {
		t.Fatalf("Metadata(%s): %v", path, err)
	}
	return m
}

// numbers are the version numbers that metadata tells, in its order.
func numbers(m *store.Metadata) (n []int) {
	for _, v := range m.Versions {
		n = append(n, v.Number)
	}
	return n
}

// ok fails the test for any error.
func (t *suite) ok(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fails checks that err is for the one reason want, names the path, and holds no value.
func (t *suite) fails(err, want error, path string) {
	t.Helper()
	t.failsAny(err, path, want)
}

func (t *suite) failsAny(err error, path string, want ...error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want %v", path, want)
		return
	}
	got := reasons(err)
	if len(got) != 1 || !slices.Contains(want, got[0]) {
		t.Errorf("%s: %v wraps %v, want exactly one of %v", path, err, got, want)
	}
	if !strings.Contains(err.Error(), path) {
		t.Errorf("%v does not name the path %q", err, path)
	}
	for _, value := range t.canary {
		if strings.Contains(err.Error(), value) {
			t.Errorf("the error for %q holds a value", path)
		}
	}
}

// reasons lists which of the contract's reasons an error wraps.
func reasons(err error) (found []error) {
	for _, r := range []error{
		store.ErrNotFound, store.ErrDeleted, store.ErrConflict, store.ErrForbidden, store.ErrUnauthenticated,
		store.ErrUnavailable, store.ErrInvalid, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, r) {
			found = append(found, r)
		}
	}
	return found
}

// unreadable makes the newest version unreadable in every way that the store
// knows, each on a path of its own that already has one version, "old" = "v1".
func (t *suite) unreadable(each func(path string)) {
	t.Helper()
	const destroyed = "gone/destroyed"
	t.put(destroyed, fields{"old": "v1"}, 0)
	last := t.put(destroyed, fields{"new": "v2-to-be-gone"}, 1)
	t.ok(t.s.Destroy(t.Context(), destroyed, last.Number))
	each(destroyed)

	d, can := t.s.(SoftDeleter)
	if !can {
		return
	}
	const deleted = "gone/deleted"
	t.put(deleted, fields{"old": "v1"}, 0)
	t.put(deleted, fields{"new": "v2-to-be-gone"}, 1)
	t.ok(d.SoftDelete(t.Context(), deleted))
	each(deleted)
}
