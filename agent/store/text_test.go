package store_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
)

func open(t *testing.T) *sealed.Store {
	t.Helper()
	dir := t.TempDir()
	s, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// kept remembers what a Store was given and gave.
type kept struct {
	store.Store
	values []*secret.Value
}

func (k *kept) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	sec, err := k.Store.Get(ctx, path, version)
	if err == nil {
		for _, v := range sec.Fields {
			k.values = append(k.values, v)
		}
	}
	return sec, err
}

func (k *kept) Put(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (store.Version, error) {
	for _, v := range fields {
		k.values = append(k.values, v)
	}
	return k.Store.Put(ctx, path, fields, cas)
}

func TestTextGoesThroughAStoreUnchanged(t *testing.T) {
	s := &kept{Store: open(t)}
	want := map[string]string{"entry": `{"a":"ä"}`, "empty": "", "at": "2026-01-02T15:04:05Z"}
	fields := map[string][]byte{}
	for name, text := range want {
		fields[name] = []byte(text)
	}
	v, err := store.PutText(t.Context(), s, "audit/prod/000000000001", fields, 0)
	if err != nil || v.Number != 1 {
		t.Fatalf("%+v, %v", v, err)
	}
	read := func() map[string]string {
		got, v, err := store.GetText(t.Context(), s, "audit/prod/000000000001")
		if err != nil || v.Number != 1 || v.Created.IsZero() {
			t.Fatalf("%+v, %v", v, err)
		}
		texts := map[string]string{}
		for name, b := range got {
			texts[name] = string(b)
			clear(b) // the copy is ours
		}
		return texts
	}
	if got := read(); !maps.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := read(); !maps.Equal(got, want) {
		t.Errorf("changing what was read changed the store: %q", got)
	}
	for name, text := range want {
		if string(fields[name]) != text {
			t.Errorf("field %s of the caller is now %q", name, fields[name])
		}
	}
	if len(s.values) != 9 {
		t.Fatalf("%d values", len(s.values))
	}
	for _, v := range s.values {
		if v.Use(func([]byte) {}) {
			t.Error("a value was left behind")
		}
	}
}

func TestTextThatIsNotThere(t *testing.T) {
	s := open(t)
	put := func(cas int) error {
		_, err := store.PutText(t.Context(), s, "halts/x", map[string][]byte{"a": []byte("b")}, cas)
		return err
	}
	get := func() error {
		_, _, err := store.GetText(t.Context(), s, "halts/x")
		return err
	}
	if err := get(); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	if err := put(0); err != nil {
		t.Fatal(err)
	}
	if err := put(0); !errors.Is(err, store.ErrConflict) {
		t.Errorf("somebody was first: %v", err)
	}
	if err := s.Destroy(t.Context(), "halts/x", 1); err != nil {
		t.Fatal(err)
	}
	err := get()
	if !errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDeleted) || !strings.Contains(err.Error(), "halts/x") {
		t.Errorf("deleted: %v, want ErrNotFound alone, and the path", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := store.GetText(ctx, s, "halts/x"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestTextTooLongIsTheCallersFault(t *testing.T) {
	s := open(t)
	_, err := store.PutText(t.Context(), s, "halts/x", map[string][]byte{"ok": []byte("b"), "long": make([]byte, secret.MaxLen+1)}, 0)
	if !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), "halts/x") || !strings.Contains(err.Error(), "long") {
		t.Errorf("%v, want ErrInvalid with path and field", err)
	}
}
