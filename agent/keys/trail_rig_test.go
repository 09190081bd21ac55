package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
)

// shelf is a store in memory for records that are too long for a file: as Vault,
// it knows who wrote, and a writer that may only create gets 403 for a place that is taken.
type shelf struct {
	*shelfData
	as string // the writer's entity
}

type shelfData struct {
	mu     sync.Mutex
	places map[string][]shelved
	now    func() time.Time
	reads  int
	writes int
	before func(method, path string) error // nil: nothing happens on the way
}

// shelved is one version; nil text is one that was destroyed.
type shelved struct {
	fields  map[string]string
	created time.Time
	by      string
}

func newShelf() *shelf {
	return &shelf{&shelfData{places: map[string][]shelved{}, now: time.Now}, ""}
}

func (s *shelf) by(entity string) *shelf { return &shelf{s.shelfData, entity} }

func (s *shelf) on(method, path string) error {
	if s.before == nil {
		return nil
	}
	return s.before(method, path)
}

func (s *shelf) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	if err := errors.Join(ctx.Err(), s.on("get", path)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	all := s.places[path]
	if version == 0 {
		version = len(all)
	}
	if version < 1 || version > len(all) {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	v := all[version-1]
	if v.fields == nil {
		return nil, fmt.Errorf("%s: %w", path, store.ErrDeleted)
	}
	sec := &store.Secret{Version: store.Version{Number: version, Created: v.created}, Fields: map[string]*secret.Value{}}
	for name, text := range v.fields {
		sec.Fields[name], _ = secret.New([]byte(text))
	}
	return sec, nil
}

func (s *shelf) Put(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (store.Version, error) {
	if err := errors.Join(ctx.Err(), s.on("put", path)); err != nil {
		return store.Version{}, err
	}
	texts := map[string]string{}
	for name, v := range fields {
		v.Use(func(b []byte) { texts[name] = string(b) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if n := len(s.places[path]); cas >= 0 && n != cas {
		if s.as != "" {
			return store.Version{}, fmt.Errorf("%s: %w", path, store.ErrForbidden)
		}
		return store.Version{}, fmt.Errorf("%s: %w", path, store.ErrConflict)
	}
	s.places[path] = append(s.places[path], shelved{texts, s.now(), s.as})
	return store.Version{Number: len(s.places[path]), Created: s.now()}, nil
}

func (s *shelf) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	if err := errors.Join(ctx.Err(), s.on("metadata", path)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all, ok := s.places[path]
	if !ok {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	m := &store.Metadata{Current: len(all)}
	for i, v := range all {
		m.Versions = append(m.Versions, store.Version{Number: i + 1, Created: v.created, CreatedBy: v.by, Destroyed: v.fields == nil})
	}
	return m, nil
}

func (s *shelf) List(ctx context.Context, folder string) ([]string, error) {
	if err := errors.Join(ctx.Err(), s.on("list", folder)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, path := range slices.Sorted(maps.Keys(s.places)) {
		if name, ok := strings.CutPrefix(path, folder); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

func (s *shelf) Destroy(_ context.Context, path string, versions ...int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range versions {
		s.places[path][n-1].fields = nil
	}
	return nil
}

func (s *shelf) Remove(_ context.Context, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.places, path)
	return nil
}

func (s *shelf) Now() time.Time { return s.now() }

func (s *shelf) Patch(context.Context, string, map[string]*secret.Value, int) (store.Version, error) {
	panic("a record is never patched")
}

func (s *shelf) SetMetadata(context.Context, string, map[string]string, int) error {
	panic("a record has no custom metadata")
}

// fill puts a record of n entries on the shelf without asking a Trail.
func (s *shelf) fill(n int) {
	var head audit.Head
	for range n {
		c, e := audit.Chain{Boot: "filled", Head: head}.Next(audit.Event{Event: "key.add", Environment: "prod"}, s.now())
		head = c.Head
		s.put(e.Seq, string(e.AppendJSON(nil)))
	}
}

// put lays anything at a place.
func (s *shelf) put(seq uint64, line string) {
	path := fmt.Sprintf("audit/prod/%012d", seq)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places[path] = append(s.places[path], shelved{map[string]string{"entry": line}, s.now(), s.as})
}

// counted returns what f reads.
func (s *shelf) counted(f func()) int {
	before := s.reads
	f()
	return s.reads - before
}

// happened is an event of an operator's.
func happened(what string) audit.Event {
	return audit.Event{Event: what, Actor: "ann", Source: "cli@host", ProxyID: "px_acme", Key: "openai", Outcome: "ok"}
}

// must appends what must be recorded.
func must(t testing.TB, tr *Trail, e audit.Event) audit.Head {
	t.Helper()
	h, err := tr.Append(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// verified returns what Verify finds, as kind@seq.
func verified(t testing.TB, tr *Trail, anchors ...audit.Head) []string {
	t.Helper()
	r, err := tr.Verify(t.Context(), anchors...)
	if err != nil {
		t.Fatal(err)
	}
	return problems(r)
}

func problems(r audit.Report) []string {
	var all []string
	for _, p := range r.Problems {
		all = append(all, fmt.Sprintf("%s@%d", p.Kind, p.Seq))
	}
	return all
}

// unbroken fails unless the record is one whole chain of n entries.
func unbroken(t testing.TB, tr *Trail, n int, anchors ...audit.Head) audit.Report {
	t.Helper()
	r, err := tr.Verify(t.Context(), anchors...)
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || r.Entries != n || len(r.Chains) != min(n, 1) {
		t.Fatalf("the record is not one unbroken chain of %d entries: %d entries, %d chains, %v", n, r.Entries, len(r.Chains), r.Problems)
	}
	return r
}

// sealedFile opens Stores on one new sealed file, each as another process would.
func sealedFile(t testing.TB) (open func() *sealed.Store) {
	dir := t.TempDir()
	return func() *sealed.Store {
		st, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { st.Close() })
		return st
	}
}
