package storetest

import (
	"fmt"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

var getTests = []test{
	{"version 0 is the newest, a number is that version", func(t *suite) {
		t.put("a/b/c", fields{"api_key": "value one"}, store.Any)
		t.put("a/b/c", fields{"api_key": "value two", "organization": "org"}, store.Any)
		t.put("a/b/c", fields{"api_key": "value three"}, store.Any)
		t.holds("a/b/c", 0, fields{"api_key": "value three"})
		t.holds("a/b/c", 1, fields{"api_key": "value one"})
		t.holds("a/b/c", 2, fields{"api_key": "value two", "organization": "org"})
		t.holds("a/b/c", 3, fields{"api_key": "value three"})
	}},
	{"the version tells number and creation in UTC", func(t *suite) {
		put := t.put(one, fields{"k": "v"}, 0)
		_, got := t.get(one, 0)
		if got.Number != 1 || !got.Created.Equal(put.Created) || got.Created.IsZero() || !got.Readable() {
			t.Errorf("Get says %+v, Put said %+v", got, put)
		}
		if got.Created.Location() != time.UTC {
			t.Errorf("Created is in %v, want UTC", got.Created.Location())
		}
	}},
	{"what was never written is ErrNotFound", func(t *suite) {
		t.put("folder/secret", fields{"k": "v"}, 0)
		for _, path := range []string{"never", "folder", "folder/secret/below", "folder/secre"} {
			_, err := t.s.Get(t.Context(), path, 0)
			t.fails(err, store.ErrNotFound, path)
			_, err = t.s.Get(t.Context(), path, 1)
			t.fails(err, store.ErrNotFound, path)
		}
		_, err := t.s.Get(t.Context(), "folder/secret", 2)
		t.fails(err, store.ErrNotFound, "folder/secret")
	}},
	{"a path with metadata alone is ErrNotFound", func(t *suite) {
		t.ok(t.s.SetMetadata(t.Context(), "labelled", map[string]string{"a": "b"}, 0))
		_, err := t.s.Get(t.Context(), "labelled", 0)
		t.fails(err, store.ErrNotFound, "labelled")
	}},
	{"a deleted or destroyed version is ErrDeleted, the newest included", func(t *suite) {
		t.unreadable(func(path string) {
			for _, version := range []int{0, 2} {
				_, err := t.s.Get(t.Context(), path, version)
				t.fails(err, store.ErrDeleted, path)
			}
			t.holds(path, 1, fields{"old": "v1"})
		})
		t.put("old", fields{"k": "v1 to be gone"}, 0)
		t.put("old", fields{"k": "v2"}, 1)
		t.ok(t.s.Destroy(t.Context(), "old", 1))
		_, err := t.s.Get(t.Context(), "old", 1)
		t.fails(err, store.ErrDeleted, "old")
		t.holds("old", 0, fields{"k": "v2"})
	}},
	{"values belong to the caller", func(t *suite) {
		t.put(one, fields{"k": "value"}, 0)
		first, err := t.s.Get(t.Context(), one, 0)
		t.ok(err)
		second, err := t.s.Get(t.Context(), one, 0)
		t.ok(err)
		defer second.Destroy()
		first.Destroy()
		if got := text(second.Fields["k"]); got != "value" {
			t.Errorf("after destroying another answer: %q", got)
		}
		t.holds(one, 0, fields{"k": "value"})
	}},
	{"values are exact to the byte", func(t *suite) {
		all := fields{}
		for i, v := range []string{
			"", "x", "sk-proj-Abc_123-xyz", "with space ", "\ttab\nline\r\n", `quote " and \ backslash \n \u0041`,
			"<html>&amp;'</html>", "nul\x00 bell\a esc\x1b del\x7f", "line\u2028 paragraph\u2029 separators", "grüße 鍵 🔑 \U0010ffff \ufffd \ufeff",
			`{"a": 1}`, `"quoted"`, "[]", "123456789012345678901234567890", "1.10", "true", "null", "null\n", strings.Repeat("0123456789abcdef", 4<<10),
		} {
			all[fmt.Sprintf("field %d", i)] = v
		}
		all["ü.name/with-signs"] = "named"
		t.put("exact", all, 0)
		t.holds("exact", 0, all)
	}},
}

var putTests = []test{
	{"versions are numbered from 1 and created in order", func(t *suite) {
		var last time.Time
		for n := 1; n <= 3; n++ {
			v := t.put(one, fields{"k": fmt.Sprint(n)}, store.Any)
			if v.Number != n || v.Created.Before(last) || v.Created.Location() != time.UTC || !v.Readable() {
				t.Errorf("Put %d returned %+v after %v", n, v, last)
			}
			last = v.Created
		}
	}},
	{"a version holds exactly the fields given", func(t *suite) {
		t.put(one, fields{"one": "1", "two": "2"}, 0)
		t.put(one, fields{"three": "3"}, 1)
		t.holds(one, 0, fields{"three": "3"})
		t.holds(one, 1, fields{"one": "1", "two": "2"})
	}},
	{"cas must be the current version", func(t *suite) {
		t.put(one, fields{"k": "value one"}, 0)
		t.put(one, fields{"k": "value two"}, 1)
		for _, cas := range []int{0, 1, 3, 100} {
			_, err := t.s.Put(t.Context(), one, t.values(fields{"k": "value that lost"}), cas)
			t.fails(err, store.ErrConflict, one)
		}
		if m := t.metadata(one); m.Current != 2 {
			t.Errorf("a conflict wrote a version: current is %d", m.Current)
		}
		t.holds(one, 0, fields{"k": "value two"})
		if v := t.put(one, fields{"k": "value three"}, 2); v.Number != 3 {
			t.Errorf("Put with the right cas wrote version %d, want 3", v.Number)
		}
	}},
	{"cas 0 wants a path without versions", func(t *suite) {
		_, err := t.s.Put(t.Context(), "new", t.values(fields{"k": "value that lost"}), 1)
		t.fails(err, store.ErrConflict, "new")
		t.put("new", fields{"k": "v"}, 0)
		t.ok(t.s.SetMetadata(t.Context(), "labelled", map[string]string{"a": "b"}, 0))
		if v := t.put("labelled", fields{"k": "v"}, 0); v.Number != 1 {
			t.Errorf("the first version is number %d", v.Number)
		}
	}},
	{"a deleted version counts for cas", func(t *suite) {
		t.unreadable(func(path string) {
			_, err := t.s.Put(t.Context(), path, t.values(fields{"k": "value that lost"}), 0)
			t.fails(err, store.ErrConflict, path)
			if v := t.put(path, fields{"k": "next"}, 2); v.Number != 3 {
				t.Errorf("%s: the version after a deleted one is %d, want 3", path, v.Number)
			}
			t.holds(path, 0, fields{"k": "next"})
		})
	}},
	{"Any writes whatever the current version is", func(t *suite) {
		t.put(one, fields{"k": "1"}, store.Any)
		t.put(one, fields{"k": "2"}, store.Any)
		t.unreadable(func(path string) {
			t.put(path, fields{"k": "over"}, store.Any)
			t.holds(path, 0, fields{"k": "over"})
		})
	}},
	{"the values stay the caller's", func(t *suite) {
		v := t.values(fields{"k": "the value"})
		_, err := t.s.Put(t.Context(), one, v, 0)
		t.ok(err)
		if got := text(v["k"]); got != "the value" {
			t.Errorf("after Put the caller's value is %q", got)
		}
		v["k"].Destroy()
		delete(v, "k")
		t.holds(one, 0, fields{"k": "the value"})
	}},
	{"a value that is nil or destroyed is ErrInvalid and nothing is written", func(t *suite) {
		v := t.values(fields{"good": "kept", "bad": "gone by then"})
		v["bad"].Destroy()
		_, err := t.s.Put(t.Context(), one, v, 0)
		t.fails(err, store.ErrInvalid, one)
		v["bad"] = nil
		_, err = t.s.Put(t.Context(), one, v, 0)
		t.fails(err, store.ErrInvalid, one)
		_, err = t.s.Metadata(t.Context(), one)
		t.fails(err, store.ErrNotFound, one)
	}},
	{"what is not UTF-8 is refused or kept exactly, never changed", func(t *suite) {
		bytes := "\xff\xfe binary \x80"
		_, err := t.s.Put(t.Context(), one, t.values(fields{"k": bytes}), 0)
		if err != nil {
			t.fails(err, store.ErrInvalid, one)
			return
		}
		t.holds(one, 0, fields{"k": bytes})
	}},
	{"custom metadata stays", func(t *suite) {
		t.ok(t.s.SetMetadata(t.Context(), one, map[string]string{"a": "b"}, 5))
		t.put(one, fields{"k": "v"}, 0)
		if m := t.metadata(one); m.Custom["a"] != "b" || m.MaxVersions != 5 {
			t.Errorf("after Put the metadata is %+v", m)
		}
	}},
}

var patchTests = []test{
	{"replaces these fields and keeps all others", func(t *suite) {
		first := t.put(one, fields{"api_key": "old key", "organization": "org", "project": "prj"}, 0)
		v := t.patch(one, fields{"api_key": "new key", "added": "more"}, store.Any)
		if v.Number != 2 || v.Created.Before(first.Created) || !v.Readable() {
			t.Errorf("Patch returned %+v", v)
		}
		t.holds(one, 0, fields{"api_key": "new key", "organization": "org", "project": "prj", "added": "more"})
		t.holds(one, 1, fields{"api_key": "old key", "organization": "org", "project": "prj"})
		t.patch(one, fields{"project": "third"}, 2)
		t.holds(one, 0, fields{"api_key": "new key", "organization": "org", "project": "third", "added": "more"})
	}},
	{"kept values are exact to the byte", func(t *suite) {
		kept := "\x00\" \\ \u2028 🔑 " + strings.Repeat("x", 5000)
		t.put(one, fields{"kept": kept, "k": "1"}, 0)
		t.patch(one, fields{"k": "2"}, 1)
		t.patch(one, fields{"k": "3"}, 2)
		t.holds(one, 0, fields{"kept": kept, "k": "3"})
	}},
	{"cas must be the current version", func(t *suite) {
		t.put(one, fields{"k": "value one", "o": "other"}, 0)
		t.put(one, fields{"k": "value two", "o": "other"}, 1)
		for _, cas := range []int{0, 1, 3} {
			_, err := t.s.Patch(t.Context(), one, t.values(fields{"k": "value that lost"}), cas)
			t.fails(err, store.ErrConflict, one)
		}
		t.holds(one, 0, fields{"k": "value two", "o": "other"})
		t.patch(one, fields{"k": "value three"}, 2)
		t.holds(one, 0, fields{"k": "value three", "o": "other"})
	}},
	{"a path that does not exist is ErrNotFound", func(t *suite) {
		t.put("folder/secret", fields{"k": "v"}, 0)
		t.ok(t.s.SetMetadata(t.Context(), "labelled", map[string]string{"a": "b"}, 0))
		for _, path := range []string{"never", "folder", "labelled"} {
			_, err := t.s.Patch(t.Context(), path, t.values(fields{"k": "value that lost"}), store.Any)
			t.fails(err, store.ErrNotFound, path)
		}
		_, err := t.s.Metadata(t.Context(), "never")
		t.fails(err, store.ErrNotFound, "never")
	}},
	{"a deleted newest version is ErrNotFound", func(t *suite) {
		t.unreadable(func(path string) {
			for _, cas := range []int{store.Any, 2} {
				_, err := t.s.Patch(t.Context(), path, t.values(fields{"k": "value that lost"}), cas)
				t.fails(err, store.ErrNotFound, path)
			}
			if m := t.metadata(path); m.Current != 2 {
				t.Errorf("%s: a refused Patch wrote version %d", path, m.Current)
			}
		})
	}},
	{"the values stay the caller's, and a destroyed one is ErrInvalid", func(t *suite) {
		t.put(one, fields{"k": "1", "o": "other"}, 0)
		v := t.values(fields{"k": "the value"})
		_, err := t.s.Patch(t.Context(), one, v, 1)
		t.ok(err)
		if got := text(v["k"]); got != "the value" {
			t.Errorf("after Patch the caller's value is %q", got)
		}
		v["k"].Destroy()
		t.holds(one, 0, fields{"k": "the value", "o": "other"})
		for _, bad := range []map[string]*secret.Value{v, {"k": nil}} {
			_, err = t.s.Patch(t.Context(), one, bad, 2)
			t.fails(err, store.ErrInvalid, one)
		}
		t.holds(one, 0, fields{"k": "the value", "o": "other"})
	}},
}

var removeTests = []test{
	{"deletes a path with all its versions and metadata", func(t *suite) {
		t.put("a", fields{"k": "1"}, 0)
		t.put("a", fields{"k": "2"}, 1)
		t.put("a/below", fields{"k": "below"}, 0)
		t.put("ab", fields{"k": "beside"}, 0)
		t.ok(t.s.SetMetadata(t.Context(), "a", map[string]string{"x": "y"}, 7))
		t.ok(t.s.Remove(t.Context(), "a"))
		for version := range 3 {
			_, err := t.s.Get(t.Context(), "a", version)
			t.fails(err, store.ErrNotFound, "a")
		}
		_, err := t.s.Metadata(t.Context(), "a")
		t.fails(err, store.ErrNotFound, "a")
		_, err = t.s.Patch(t.Context(), "a", t.values(fields{"k": "value that lost"}), store.Any)
		t.fails(err, store.ErrNotFound, "a")
		t.lists("", "a/", "ab")
		t.holds("a/below", 0, fields{"k": "below"})
		t.holds("ab", 0, fields{"k": "beside"})
	}},
	{"removing what is not there is no error", func(t *suite) {
		t.ok(t.s.Remove(t.Context(), "never"))
		t.put(one, fields{"k": "1"}, 0)
		t.ok(t.s.Remove(t.Context(), one))
		t.ok(t.s.Remove(t.Context(), one))
	}},
	{"numbering restarts at 1 with a newer creation", func(t *suite) {
		var last time.Time
		for range 3 {
			t.ok(t.s.SetMetadata(t.Context(), one, map[string]string{"x": "y"}, 7))
			v := t.put(one, fields{"k": "first"}, 0)
			if v.Number != 1 || !v.Created.After(last) {
				t.Errorf("after Remove: version %d of %v, want 1, newer than %v", v.Number, v.Created, last)
			}
			v = t.put(one, fields{"k": "second"}, 1)
			last = v.Created
			t.ok(t.s.Remove(t.Context(), one))
		}
		t.put(one, fields{"k": "again"}, 0)
		if m := t.metadata(one); len(m.Custom) != 0 || m.MaxVersions != 0 || m.Current != 1 || len(m.Versions) != 1 {
			t.Errorf("metadata survived Remove: %+v", m)
		}
	}},
	{"works on deleted versions", func(t *suite) {
		t.unreadable(func(path string) {
			t.ok(t.s.Remove(t.Context(), path))
			_, err := t.s.Get(t.Context(), path, 1)
			t.fails(err, store.ErrNotFound, path)
			t.put(path, fields{"k": "fresh"}, 0)
			t.holds(path, 0, fields{"k": "fresh"})
		})
	}},
}

var destroyTests = []test{
	{"makes the data of versions unreadable for good", func(t *suite) {
		var made []store.Version
		for n := range 4 {
			made = append(made, t.put(one, fields{"k": fmt.Sprintf("value %d", n+1)}, n))
		}
		t.ok(t.s.Destroy(t.Context(), one, 1, 3))
		for _, n := range []int{1, 3} {
			_, err := t.s.Get(t.Context(), one, n)
			t.fails(err, store.ErrDeleted, one)
		}
		t.holds(one, 2, fields{"k": "value 2"})
		t.holds(one, 0, fields{"k": "value 4"})
		m := t.metadata(one)
		if m.Current != 4 || len(m.Versions) != 4 {
			t.Fatalf("metadata after Destroy: %+v", m)
		}
		for i, v := range m.Versions {
			if v.Destroyed != (i == 0 || i == 2) || v.Readable() == v.Destroyed || !v.Created.Equal(made[i].Created) {
				t.Errorf("version %d after Destroy: %+v", i+1, v)
			}
		}
	}},
	{"destroying what is destroyed is no error", func(t *suite) {
		t.put(one, fields{"k": "1"}, 0)
		t.ok(t.s.Destroy(t.Context(), one, 1))
		t.ok(t.s.Destroy(t.Context(), one, 1))
		t.ok(t.s.Destroy(t.Context(), one, 1, 1))
	}},
	{"versions that never were are passed over", func(t *suite) {
		t.put(one, fields{"k": "1"}, 0)
		t.ok(t.s.Destroy(t.Context(), one, 9))
		t.ok(t.s.Destroy(t.Context(), "never", 1))
		t.holds(one, 0, fields{"k": "1"})
		_, err := t.s.Metadata(t.Context(), "never")
		t.fails(err, store.ErrNotFound, "never")
	}},
	{"naming no version destroys nothing", func(t *suite) {
		t.put(one, fields{"k": "1"}, 0)
		if err := t.s.Destroy(t.Context(), one); err != nil {
			t.fails(err, store.ErrInvalid, one)
		}
		t.holds(one, 0, fields{"k": "1"})
	}},
	{"a soft-deleted version can be destroyed", func(t *suite) {
		t.unreadable(func(path string) {
			t.ok(t.s.Destroy(t.Context(), path, 2))
			if m := t.metadata(path); !m.Versions[1].Destroyed {
				t.Errorf("%s: version 2 is %+v", path, m.Versions[1])
			}
		})
	}},
}
