package keys

import (
	"context"
	"errors"
	"fmt"
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

// operator works on one scope of a sealed store, over which a test may put a shim.
type operator struct {
	*Manager
	t     *testing.T
	store *shim
	trail *ledger
}

// ledger is a record of operations in memory.
type ledger struct {
	mu     sync.Mutex
	events []audit.Event
	before func(audit.Event) error // nil: every entry can be written
}

func (s *ledger) Append(ctx context.Context, e audit.Event) (audit.Head, error) {
	if err := ctx.Err(); err != nil {
		return audit.Head{}, err
	}
	if s.before != nil {
		if err := s.before(e); err != nil {
			return audit.Head{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	return audit.Head{Seq: uint64(len(s.events))}, nil
}

// told returns what was recorded since the last call, as in "key.add intent openai 2".
func (s *ledger) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := []string{}
	for _, e := range s.events {
		lines = append(lines, fmt.Sprint(e.Event, " ", e.Outcome, " ", e.Key, " ", e.Version))
	}
	s.events = nil
	return lines
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	dir := t.TempDir()
	st, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	sh, tr := &shim{Store: st}, &ledger{}
	return &operator{&Manager{
		Store: sh, Scope: Scope{"prod", "px_acme"}, Audit: tr, Actor: Actor{Name: "ada", Entity: "e-ada", Source: "cli@host"},
	}, t, sh, tr}
}

// shim lets something happen on the way to the store. A put is called by the
// first element of its path unless that is where keys are kept.
type shim struct {
	store.Store
	before func(method string) error
	// wrote is asked after every write that succeeded; its error is the write's, which happened all the same.
	wrote func(method, path string) error
	// read is asked before every read.
	read func(method, path string) error
}

func (s *shim) on(method string) error {
	if s.before == nil {
		return nil
	}
	return s.before(method)
}

func (s *shim) done(method, path string, err error) error {
	if err == nil && s.wrote != nil {
		err = s.wrote(method, path)
	}
	return err
}

func (s *shim) look(method, path string) error {
	if s.read == nil {
		return nil
	}
	return s.read(method, path)
}

func (s *shim) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	if err := s.look("get", path); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, path, version)
}

func (s *shim) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	if err := s.look("metadata", path); err != nil {
		return nil, err
	}
	return s.Store.Metadata(ctx, path)
}

func (s *shim) List(ctx context.Context, folder string) ([]string, error) {
	if err := s.look("list", folder); err != nil {
		return nil, err
	}
	return s.Store.List(ctx, folder)
}

func (s *shim) Put(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	method, _, _ := strings.Cut(path, "/")
	if method == "provider-keys" {
		method = "put"
	}
	if err := s.on(method); err != nil {
		return store.Version{}, err
	}
	v, err := s.Store.Put(ctx, path, f, cas)
	return v, s.done(method, path, err)
}

func (s *shim) Destroy(ctx context.Context, path string, versions ...int) error {
	if err := s.on("destroy"); err != nil {
		return err
	}
	return s.done("destroy", path, s.Store.Destroy(ctx, path, versions...))
}

func (s *shim) Patch(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	if err := s.on("patch"); err != nil {
		return store.Version{}, err
	}
	v, err := s.Store.Patch(ctx, path, f, cas)
	return v, s.done("patch", path, err)
}

func (s *shim) SetMetadata(ctx context.Context, path string, custom map[string]string, most int) error {
	if err := s.on("metadata"); err != nil {
		return err
	}
	return s.done("metadata", path, s.Store.SetMetadata(ctx, path, custom, most))
}

func key(n int) string { return fmt.Sprintf("sk-test-%024d", n) }

func (o *operator) value(s string) *secret.Value {
	o.t.Helper()
	v, err := secret.New([]byte(s))
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(v.Destroy)
	return v
}

func (o *operator) add(name string, n int, meta Meta) Added {
	o.t.Helper()
	a, err := o.Add(o.t.Context(), name, o.value(key(n)), meta)
	if err != nil {
		o.t.Fatal(err)
	}
	return a
}

// holds asserts the fields of a key's newest version.
func (o *operator) holds(name string, want map[string]string) {
	o.t.Helper()
	sec, err := o.store.Get(o.t.Context(), o.Scope.Path(name), 0)
	if err != nil {
		o.t.Fatal(err)
	}
	defer sec.Destroy()
	if len(sec.Fields) != len(want) {
		o.t.Errorf("%s has %d fields, want %d", name, len(sec.Fields), len(want))
	}
	for f, w := range want {
		if !sec.Fields[f].Equal(o.value(w)) {
			o.t.Errorf("%s: field %s is not what was written", name, f)
		}
	}
}

func (o *operator) metadata(name string) *store.Metadata {
	o.t.Helper()
	md, err := o.store.Metadata(o.t.Context(), o.Scope.Path(name))
	if err != nil {
		o.t.Fatal(err)
	}
	return md
}

func TestAFirstVersionCreatesTheKey(t *testing.T) {
	o := newOperator(t)
	v := o.value(key(1))
	a, err := o.Add(t.Context(), "openai", v, Meta{Label: "prod-checkout-eu", Service: "checkout"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Name != "openai" || a.Version != 1 || !a.New || time.Since(a.Created) > time.Minute {
		t.Errorf("%+v", a)
	}
	if !v.Equal(o.value(key(1))) {
		t.Error("the value was taken from the caller")
	}
	o.holds("openai", map[string]string{"api_key": key(1)})
	sec, err := o.store.Get(t.Context(), "provider-keys/prod/px_acme/openai", 1)
	if err != nil {
		t.Errorf("the key is not where DESIGN has it: %v", err)
	}
	sec.Destroy()
	md := o.metadata("openai")
	if md.MaxVersions != 100 || len(md.Custom) != 4 || md.Custom["environment"] != "prod" || md.Custom["provider"] != "openai" ||
		md.Custom["label"] != "prod-checkout-eu" || md.Custom["service"] != "checkout" {
		t.Errorf("%+v", md)
	}
}

func TestTheDefaultsOfANewKey(t *testing.T) {
	o := newOperator(t)
	o.add("house_llm", 1, Meta{Provider: "openai"})
	if c := o.metadata("house_llm").Custom; len(c) != 3 || c["provider"] != "openai" || c["label"] != "prod-house_llm" {
		t.Errorf("%v", c)
	}
}

func TestANextVersionKeepsOtherFields(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	if _, err := o.store.Patch(t.Context(), o.Scope.Path("openai"), map[string]*secret.Value{"organization": o.value("org-123")}, store.Any); err != nil {
		t.Fatal(err)
	}
	if a := o.add("openai", 2, Meta{}); a.Version != 3 || a.New {
		t.Errorf("%+v", a)
	}
	o.holds("openai", map[string]string{"api_key": key(2), "organization": "org-123"})
}

// Metadata that somebody else wrote stays; only what was asked for changes, and
// where nothing does, nothing is written: rotating needs no right to write metadata.
func TestMetadataIsMerged(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{Label: "prod-checkout-first", Service: "checkout", Provider: "groq"})
	custom := o.metadata("openai").Custom
	custom["cost_center"] = "4711"
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("openai"), custom, 0); err != nil {
		t.Fatal(err)
	}
	o.add("openai", 2, Meta{Label: "prod-checkout-second"})
	if c := o.metadata("openai").Custom; len(c) != 5 || c["label"] != "prod-checkout-second" || c["service"] != "checkout" || c["cost_center"] != "4711" || c["provider"] != "groq" {
		t.Errorf("%v", c)
	}
	o.store.before = func(method string) error {
		if method == "metadata" {
			return fmt.Errorf("metadata: %w", store.ErrForbidden)
		}
		return nil
	}
	for n, meta := range []Meta{{Label: "prod-checkout-second"}, {}} {
		if a := o.add("openai", 3+n, meta); a.Version != 3+n {
			t.Errorf("%+v", a)
		}
	}
	if _, err := o.Add(t.Context(), "openai", o.value(key(5)), Meta{Label: "prod-checkout-third"}); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("a label that may not be written: %v", err)
	}
	if n := o.metadata("openai").Current; n != 4 {
		t.Errorf("version %d was written although its description was not", n)
	}
}

// A key that keeps ten versions would lose the one that serves; one that was
// told to keep more keeps them.
func TestHowManyVersionsAreKept(t *testing.T) {
	o := newOperator(t)
	for name, had := range map[string]int{"few": 10, "many": 120} {
		path := o.Scope.Path(name)
		custom := map[string]string{"environment": "prod", "provider": name, "label": "prod-" + name}
		if err := o.store.SetMetadata(t.Context(), path, custom, had); err != nil {
			t.Fatal(err)
		}
		for n := range had + 1 {
			meta := Meta{}
			if name == "many" {
				meta.Label = fmt.Sprint("prod-many-", n) // so that the description is written
			}
			o.add(name, n, meta)
		}
		md := o.metadata(name)
		if want := max(had, 100); md.MaxVersions != want || len(md.Versions) != min(want, had+1) {
			t.Errorf("%s: keeps %d, and has %d versions", name, md.MaxVersions, len(md.Versions))
		}
	}
}

func TestAfterTheNewestVersionIsGone(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	if err := o.store.Destroy(t.Context(), o.Scope.Path("openai"), 2); err != nil {
		t.Fatal(err)
	}
	if a := o.add("openai", 3, Meta{}); a.Version != 3 || a.New {
		t.Errorf("%+v", a)
	}
	o.holds("openai", map[string]string{"api_key": key(3)})
}

// An Add that was cut off after the description is made good by the next one.
func TestACreationThatWasCutOff(t *testing.T) {
	o := newOperator(t)
	o.store.before = func(method string) error {
		if method == "put" {
			return fmt.Errorf("cut off: %w", store.ErrUnavailable)
		}
		return nil
	}
	if _, err := o.Add(t.Context(), "openai", o.value(key(1)), Meta{}); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("%v", err)
	}
	o.store.before = nil
	if a := o.add("openai", 1, Meta{}); a.Version != 1 || !a.New {
		t.Errorf("%+v", a)
	}
}

// Of two operators who write at the same time one is told, and nothing is overwritten.
func TestTwoOperatorsAtOnce(t *testing.T) {
	o := newOperator(t)
	other := &Manager{Store: o.store.Store, Scope: o.Scope, Audit: o.trail}
	o.add("openai", 1, Meta{})
	for name, way := range map[string]string{"openai": "patch", "brand-new": "put"} {
		o.store.before = func(method string) error {
			if method == way {
				if _, err := other.Add(t.Context(), name, o.value(key(2)), Meta{}); err != nil {
					t.Error(err)
				}
			}
			return nil
		}
		_, err := o.Add(t.Context(), name, o.value(key(3)), Meta{})
		if !errors.Is(err, store.ErrConflict) || !strings.Contains(err.Error(), "`postern keys show "+name+"`") {
			t.Errorf("%s: %v", name, err)
		}
		o.holds(name, map[string]string{"api_key": key(2)})
	}
}

func TestManyOperatorsCreateOneKey(t *testing.T) {
	o := newOperator(t)
	var mu sync.Mutex
	var versions []int
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			a, err := o.Add(t.Context(), "openai", o.value(key(n)), Meta{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				versions = append(versions, a.Version)
			} else if !errors.Is(err, store.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(versions)
	for i, v := range versions {
		if v != i+1 {
			t.Fatalf("versions %v", versions)
		}
	}
	if n := o.metadata("openai").Current; n == 0 || n != len(versions) {
		t.Errorf("%d versions are stored, %d were acknowledged", n, len(versions))
	}
}

// A key of another environment stays what it is, description included.
func TestAKeyOfAnotherEnvironment(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("openai"), map[string]string{"environment": "staging"}, 0); err != nil {
		t.Fatal(err)
	}
	_, err := o.Add(t.Context(), "openai", o.value(key(2)), Meta{Label: "prod-mine"})
	if err == nil || !strings.Contains(err.Error(), `"staging"`) || !strings.Contains(err.Error(), `"prod"`) {
		t.Errorf("%v", err)
	}
	if md := o.metadata("openai"); md.Current != 1 || len(md.Custom) != 1 {
		t.Errorf("%+v", md)
	}
}

// What cannot be a key is refused before anything is written, and not repeated.
func TestWhatIsNoKey(t *testing.T) {
	o := newOperator(t)
	for _, bad := range []string{
		"short-key-value", "sk-with a space in the middle", "sk-line-break-at-the-end\n", "sk-carriage-return\r\nX-Injected: 1", "sk-nul-byte\x00-in-the-middle",
		"sk-ünïcode-in-the-middle", "${OPENAI_API_KEY_FROM_ENV}", "{{ .Values.openaiKey }}", secret.Placeholder, strings.Repeat("long", 5000),
	} {
		_, err := o.Add(t.Context(), "openai", o.value(bad), Meta{})
		if err == nil {
			t.Fatalf("%q was stored", bad)
		}
		if bad != secret.Placeholder && strings.Contains(err.Error(), bad[:10]) {
			t.Errorf("the error repeats the value: %v", err)
		}
		if !strings.HasPrefix(err.Error(), "the key of openai: ") {
			t.Errorf("%v", err)
		}
	}
	gone := o.value(key(1))
	gone.Destroy()
	for _, v := range []*secret.Value{gone, nil} {
		if _, err := o.Add(t.Context(), "openai", v, Meta{}); err == nil || !strings.HasPrefix(err.Error(), "the key of openai: ") {
			t.Errorf("no value: %v", err)
		}
	}
	if _, err := o.store.Metadata(t.Context(), o.Scope.Path("openai")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("something was written: %v", err)
	}
}
