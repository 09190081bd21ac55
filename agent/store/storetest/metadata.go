package storetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/store"
)

var metadataTests = []test{
	{"tells the versions ascending", func(t *suite) {
		var made []store.Version
		for n := range 3 {
			made = append(made, t.put(one, fields{"k": fmt.Sprint(n)}, n))
		}
		m := t.metadata(one)
		if m.Current != 3 || !slices.Equal(numbers(m), []int{1, 2, 3}) {
			t.Fatalf("metadata of three versions: %+v", m)
		}
		for i, v := range m.Versions {
			if !v.Created.Equal(made[i].Created) || v.Created.Location() != time.UTC || !v.Readable() {
				t.Errorf("version %d: %+v, Put said %+v", i+1, v, made[i])
			}
		}
		if m.MaxVersions != 0 || len(m.Custom) != 0 {
			t.Errorf("metadata that nobody set: %+v", m)
		}
	}},
	{"tells ten versions and more in numeric order", func(t *suite) {
		t.ok(t.s.SetMetadata(t.Context(), one, nil, 20))
		var want []int
		for n := range 12 {
			t.put(one, fields{"k": fmt.Sprint(n)}, n)
			want = append(want, n+1)
		}
		if m := t.metadata(one); m.Current != 12 || !slices.Equal(numbers(m), want) {
			t.Errorf("current %d, versions %v", m.Current, numbers(m))
		}
	}},
	{"tells deleted versions", func(t *suite) {
		t.unreadable(func(path string) {
			m := t.metadata(path)
			if m.Current != 2 || len(m.Versions) != 2 {
				t.Fatalf("%s: %+v", path, m)
			}
			if !m.Versions[0].Readable() || m.Versions[1].Readable() {
				t.Errorf("%s: %+v", path, m.Versions)
			}
			if v := m.Versions[1]; v.Destroyed == !v.Deleted.IsZero() {
				t.Errorf("%s: want either destroyed or a time of deletion: %+v", path, v)
			}
		})
	}},
	{"what was never written is ErrNotFound", func(t *suite) {
		t.put("folder/secret", fields{"k": "v"}, 0)
		for _, path := range []string{"never", "folder"} {
			_, err := t.s.Metadata(t.Context(), path)
			t.fails(err, store.ErrNotFound, path)
		}
	}},
	{"current is 0 before the first version", func(t *suite) {
		t.ok(t.s.SetMetadata(t.Context(), "labelled", map[string]string{"a": "b"}, 4))
		m := t.metadata("labelled")
		if m.Current != 0 || len(m.Versions) != 0 || m.MaxVersions != 4 || !maps.Equal(m.Custom, map[string]string{"a": "b"}) {
			t.Errorf("metadata without a version: %+v", m)
		}
	}},
	{"an answer is a copy", func(t *suite) {
		t.put(one, fields{"k": "v"}, 0)
		t.ok(t.s.SetMetadata(t.Context(), one, map[string]string{"a": "b"}, 0))
		m := t.metadata(one)
		m.Custom["a"], m.Versions[0].Number, m.Current = "changed", 99, 99
		if m := t.metadata(one); m.Custom["a"] != "b" || m.Versions[0].Number != 1 || m.Current != 1 {
			t.Errorf("changing an answer changed the store: %+v", m)
		}
	}},
}

// labels makes n pieces of custom metadata of the given length.
func labels(n, length int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprintf("label-%02d", i)] = strings.Repeat("x", length)
	}
	return m
}

var setMetadataTests = []test{
	{"replaces the custom metadata", func(t *suite) {
		t.put(one, fields{"k": "v"}, 0)
		for _, want := range []map[string]string{{"provider": "openai", "label": "grüße, 鍵"}, {"service": "checkout"}, {}, {"a": "b"}, nil} {
			t.ok(t.s.SetMetadata(t.Context(), one, want, 0))
			if m := t.metadata(one); !maps.Equal(m.Custom, want) {
				t.Errorf("custom metadata is %v, want %v", m.Custom, want)
			}
		}
		if m := t.metadata(one); m.Current != 1 {
			t.Errorf("SetMetadata changed the versions: %+v", m)
		}
		t.holds(one, 0, fields{"k": "v"})
	}},
	{"the map stays the caller's", func(t *suite) {
		mine := map[string]string{"a": "b"}
		t.ok(t.s.SetMetadata(t.Context(), one, mine, 0))
		mine["a"] = "changed"
		if m := t.metadata(one); m.Custom["a"] != "b" {
			t.Errorf("changing the caller's map changed the store: %v", m.Custom)
		}
	}},
	{"takes 64 strings of 512 bytes and no more", func(t *suite) {
		full := labels(64, 512)
		t.ok(t.s.SetMetadata(t.Context(), one, full, 0))
		for _, tooMuch := range []map[string]string{labels(65, 1), labels(1, 513), labels(65, 513)} {
			t.fails(t.s.SetMetadata(t.Context(), one, tooMuch, 3), store.ErrInvalid, one)
		}
		if m := t.metadata(one); !maps.Equal(m.Custom, full) || m.MaxVersions != 0 {
			t.Errorf("a refused SetMetadata changed something: %d labels, max %d", len(m.Custom), m.MaxVersions)
		}
	}},
	{"keeps as many versions as it is told", func(t *suite) {
		t.ok(t.s.SetMetadata(t.Context(), one, nil, 3))
		for n := range 5 {
			t.put(one, fields{"k": fmt.Sprintf("value %d", n+1)}, n)
		}
		t.keeps(one, 3, 4, 5)
		for _, n := range []int{1, 2} {
			_, err := t.s.Get(t.Context(), one, n)
			t.failsAny(err, one, store.ErrDeleted, store.ErrNotFound)
		}
		t.holds(one, 3, fields{"k": "value 3"})
		t.holds(one, 0, fields{"k": "value 5"})
		t.patch(one, fields{"k": "value 6"}, 5)
		t.keeps(one, 4, 5, 6)
	}},
	{"maxVersions 0 changes nothing, more keeps more, fewer keeps fewer", func(t *suite) {
		t.ok(t.s.SetMetadata(t.Context(), one, nil, 2))
		t.ok(t.s.SetMetadata(t.Context(), one, map[string]string{"a": "b"}, 0))
		if m := t.metadata(one); m.MaxVersions != 2 {
			t.Fatalf("max versions is %d, want 2", m.MaxVersions)
		}
		for n := range 3 {
			t.put(one, fields{"k": fmt.Sprint(n + 1)}, n)
		}
		t.keeps(one, 2, 3)
		t.ok(t.s.SetMetadata(t.Context(), one, nil, 4))
		for n := 3; n < 6; n++ {
			t.put(one, fields{"k": fmt.Sprint(n + 1)}, n)
		}
		t.keeps(one, 3, 4, 5, 6)
		t.ok(t.s.SetMetadata(t.Context(), one, nil, 1))
		t.put(one, fields{"k": "7"}, 6)
		t.keeps(one, 7)
		t.holds(one, 0, fields{"k": "7"})
	}},
}

// keeps checks which versions there are.
func (t *suite) keeps(path string, want ...int) {
	t.Helper()
	m := t.metadata(path)
	if !slices.Equal(numbers(m), want) || m.Current != want[len(want)-1] {
		t.Errorf("%s: versions %v, current %d, want %v", path, numbers(m), m.Current, want)
	}
}

// lists checks a folder's names.
func (t *suite) lists(folder string, want ...string) {
	t.Helper()
	got, err := t.s.List(t.Context(), folder)
	if err != nil {
		t.Errorf("List(%q): %v", folder, err)
	} else if !slices.Equal(got, want) {
		t.Errorf("List(%q) = %q, want %q", folder, got, want)
	}
}

var listTests = []test{
	{"returns the names directly below a folder, sorted, folders with a slash", func(t *suite) {
		for _, path := range []string{
			"provider-keys/prod/px_b/openai", "provider-keys/prod/px_a/openai", "provider-keys/prod/px_a/anthropic",
			"provider-keys/prod/px_a/nested/deep/er", "provider-keys/prod/px_a", "provider-keys/dev/px_a/openai", "top", "audit/prod/000000000002", "audit/prod/000000000001",
		} {
			t.put(path, fields{"k": path}, 0)
		}
		t.lists("", "audit/", "provider-keys/", "top")
		t.lists("provider-keys", "dev/", "prod/")
		t.lists("provider-keys/prod", "px_a", "px_a/", "px_b/")
		t.lists("provider-keys/prod/px_a", "anthropic", "nested/", "openai")
		t.lists("provider-keys/prod/px_a/nested", "deep/")
		t.lists("audit/prod", "000000000001", "000000000002")
	}},
	{"a slash after the folder changes nothing", func(t *suite) {
		t.put("a/b/c", fields{"k": "v"}, 0)
		t.lists("a/", "b/")
		t.lists("a/b/", "c")
	}},
	{"a folder that does not exist is empty", func(t *suite) {
		t.lists("")
		t.lists("never")
		t.put("a/b", fields{"k": "v"}, 0)
		t.lists("never/ever")
		t.lists("a/b")
		t.lists("a/b/c")
	}},
	{"names deleted paths and paths with metadata alone, not removed ones", func(t *suite) {
		t.unreadable(func(path string) {})
		t.ok(t.s.SetMetadata(t.Context(), "gone/labelled", map[string]string{"a": "b"}, 0))
		t.put("gone/removed", fields{"k": "v"}, 0)
		t.put("removed-folder/x", fields{"k": "v"}, 0)
		t.ok(t.s.Remove(t.Context(), "gone/removed"))
		t.ok(t.s.Remove(t.Context(), "removed-folder/x"))
		want := []string{"destroyed", "labelled"}
		if _, can := t.s.(SoftDeleter); can {
			want = []string{"deleted", "destroyed", "labelled"}
		}
		t.lists("gone", want...)
		t.lists("", "gone/")
	}},
}

// calls is one call of every method that takes a path and may fail.
func (t *suite) calls(ctx context.Context, path string) map[string]error {
	value := t.values(fields{"k": "value that must not be written"})
	errs := map[string]error{}
	_, errs["Get"] = t.s.Get(ctx, path, 0)
	_, errs["Put"] = t.s.Put(ctx, path, value, store.Any)
	_, errs["Patch"] = t.s.Patch(ctx, path, value, store.Any)
	_, errs["Metadata"] = t.s.Metadata(ctx, path)
	errs["SetMetadata"] = t.s.SetMetadata(ctx, path, map[string]string{"a": "b"}, 2)
	errs["Destroy"] = t.s.Destroy(ctx, path, 1)
	errs["Remove"] = t.s.Remove(ctx, path)
	return errs
}

var errorTests = []test{
	{"a malformed path is ErrInvalid", func(t *suite) {
		t.put("safe/a", fields{"k": "v"}, 0)
		for _, path := range []string{"", "/", "/a", "a/", "a//b", "..", "../a", "safe/../safe/a", "safe/./a", "a/..", ".", "a\x00b", "a\nb"} {
			for method, err := range t.calls(t.Context(), path) {
				if got := reasons(err); len(got) != 1 || got[0] != store.ErrInvalid {
					t.Errorf("%s(%q): %v, want exactly ErrInvalid", method, path, err)
				}
			}
		}
		for _, folder := range []string{"/", "/a", "a//", "../", "safe/.."} {
			_, err := t.s.List(t.Context(), folder)
			if got := reasons(err); len(got) != 1 || got[0] != store.ErrInvalid {
				t.Errorf("List(%q): %v, want exactly ErrInvalid", folder, err)
			}
		}
		t.lists("", "safe/")
		t.holds("safe/a", 0, fields{"k": "v"})
	}},
	{"a negative version or check-and-set value is ErrInvalid", func(t *suite) {
		t.put(one, fields{"k": "value one"}, 0)
		_, err := t.s.Get(t.Context(), one, -1)
		t.fails(err, store.ErrInvalid, one)
		_, err = t.s.Put(t.Context(), one, t.values(fields{"k": "value that lost"}), -2)
		t.fails(err, store.ErrInvalid, one)
		_, err = t.s.Patch(t.Context(), one, t.values(fields{"k": "value that lost"}), -2)
		t.fails(err, store.ErrInvalid, one)
		t.holds(one, 0, fields{"k": "value one"})
	}},
	{"a cancelled context is its own reason and nothing is done", func(t *suite) {
		t.put(one, fields{"k": "v"}, 0)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		errs := t.calls(ctx, one)
		_, errs["List"] = t.s.List(ctx, "folder")
		for method, err := range errs {
			if got := reasons(err); len(got) != 1 || got[0] != context.Canceled {
				t.Errorf("%s: %v, want exactly context.Canceled", method, err)
			}
		}
		t.keeps(one, 1)
		t.holds(one, 0, fields{"k": "v"})
	}},
}

var nowTests = []test{
	{"never goes back", func(t *suite) {
		last := t.s.Now()
		for n := range 20 {
			t.put(one, fields{"k": "v"}, n)
			for range 10 {
				now := t.s.Now()
				if now.Before(last) {
					t.Fatalf("Now went from %v back to %v", last, now)
				}
				last = now
			}
		}
	}},
	{"is the clock that dates versions", func(t *suite) {
		t.put("warm", fields{"k": "v"}, 0)
		const grain = 2 * time.Second // an answer's Date header has whole seconds
		before := t.s.Now()
		v := t.put(one, fields{"k": "v"}, 0)
		after := t.s.Now()
		if v.Created.Before(before.Add(-grain)) || v.Created.After(after.Add(grain)) {
			t.Errorf("a version of %v was written between %v and %v", v.Created, before, after)
		}
	}},
}
