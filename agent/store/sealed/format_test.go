package sealed

import (
	"bytes"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

var update = flag.Bool("update", false, "write golden files of a format that has none yet")

// goldenKey seals the golden files. It has been public since the day it was made.
const (
	goldenKey        = "cG9zdGVybiBnb2xkZW4gZmlsZTogbm8gc2VjcmV0Li4="
	goldenPassphrase = "a golden passphrase that is no secret"
)

// golden copies a golden file, and its key with the mode that it needs, to where it can be opened.
func golden(t testing.TB, name string) Options {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	o := options(t.TempDir(), func(o *Options) { o.Create = false })
	if strings.Contains(name, "passphrase") {
		o.KeyFile, o.Passphrase = "", value(t, goldenPassphrase)
	} else {
		overwrite(t, o.KeyFile, []byte(goldenKey))
	}
	overwrite(t, o.File, data)
	return o
}

// Files of every format ever released open forever, and hold what they held.
func TestGolden(t *testing.T) {
	for _, name := range []string{"v1-keyfile.sealed", "v1-passphrase.sealed"} {
		t.Run(name, func(t *testing.T) {
			if *update {
				writeGolden(t, name)
			}
			o := golden(t, name)
			s := openWith(t, o)
			holds(t, s, "provider-keys/prod/px_acme/openai", "not-a-key-version-three")
			if got, err := read(t, s, "provider-keys/prod/px_acme/openai", 1); err != nil || got != "not-a-key-version-one" {
				t.Errorf("version 1: %q, %v", got, err)
			}
			_, err := read(t, s, "provider-keys/prod/px_acme/openai", 2)
			is(t, err, store.ErrDeleted)
			sec, err := s.Get(t.Context(), "provider-keys/prod/px_acme/openai", 3)
			if err != nil {
				t.Fatal(err)
			}
			defer sec.Destroy()
			if !sec.Fields["organization"].Equal(value(t, "org \"ünï\" \u2028 <&>")) || !sec.Fields["empty"].Equal(value(t, "")) {
				t.Error("the other fields of version 3 differ")
			}
			m, err := s.Metadata(t.Context(), "provider-keys/prod/px_acme/openai")
			if err != nil {
				t.Fatal(err)
			}
			want := &store.Metadata{
				Current: 3, MaxVersions: 100, Custom: map[string]string{"label": "grüße <a&b>", "provider": "openai"},
				Versions: []store.Version{
					{Number: 1, Created: noon}, {Number: 2, Created: noon.Add(time.Second), Destroyed: true},
					{Number: 3, Created: noon.Add(3*time.Second + 500*time.Millisecond)},
				},
			}
			if !reflect.DeepEqual(m, want) {
				t.Errorf("metadata is %+v, want %+v", m, want)
			}
			holds(t, s, "halts/prod/px_acme/openai-2", `{"reason":"test"}`)
			// It goes on where it ended.
			if v := put(t, s, "provider-keys/prod/px_acme/openai", "version four"); v.Number != 4 {
				t.Errorf("the next version is %d", v.Number)
			}
			holds(t, openWith(t, o), "provider-keys/prod/px_acme/openai", "version four")
		})
	}
}

// writeGolden makes a golden file; one that exists stays for good.
func writeGolden(t *testing.T, name string) {
	path := filepath.Join("testdata", name)
	if _, err := os.Stat(path); err == nil {
		return
	}
	at := noon
	o := options(t.TempDir(), func(o *Options) { o.Now = func() time.Time { return at } })
	if strings.Contains(name, "passphrase") {
		o.KeyFile, o.Passphrase = "", value(t, goldenPassphrase)
	} else {
		overwrite(t, o.KeyFile, []byte(goldenKey))
	}
	s := openWith(t, o)
	const key = "provider-keys/prod/px_acme/openai"
	put(t, s, key, "not-a-key-version-one")
	at = noon.Add(time.Second)
	put(t, s, key, "not-a-key-version-two")
	at = noon.Add(2 * time.Second)
	put(t, s, "halts/prod/px_acme/openai-2", `{"reason":"test"}`)
	at = noon.Add(3*time.Second + 500*time.Millisecond)
	_, err := s.Put(t.Context(), key, map[string]*secret.Value{
		"api_key": value(t, "not-a-key-version-three"), "organization": value(t, "org \"ünï\" \u2028 <&>"), "empty": value(t, ""),
	}, 2)
	for _, err := range []error{
		err, s.Destroy(t.Context(), key, 2),
		s.SetMetadata(t.Context(), key, map[string]string{"provider": "openai", "label": "grüße <a&b>"}, 100),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(o.File)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, path, data)
}

// The file can be read by people: names, numbers, times and labels, and no value.
func TestStructureIsReadable(t *testing.T) {
	data, err := os.ReadFile("testdata/v1-keyfile.sealed")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\n  \"format\": \"postern-sealed-v1\",\n  \"key\": {\n    \"kind\": \"key_file\",", "\n    \"provider-keys/prod/px_acme/openai\": {",
		"\n        \"provider\": \"openai\"\n", `"label": "grüße <a&b>"`, `"created": "2026-03-01T12:00:03.5Z"`, `"destroyed": true`, `"generation": 6`,
	} {
		if !bytes.Contains(data, []byte(want)) {
			t.Errorf("%q is not in the file", want)
		}
	}
	if bytes.Contains(data, []byte("not-a-key")) {
		t.Error("a value is in the file")
	}
}

// What a file can ask for before it is trusted is bounded.
func TestHeaderBounds(t *testing.T) {
	wrapped := base64.StdEncoding.EncodeToString(make([]byte, overhead+keySize))
	salt := base64.StdEncoding.EncodeToString(make([]byte, saltSize))
	head := func(key string) []byte {
		return []byte(`{"format": "postern-sealed-v1", "key": {` + key + `}, "paths": {}}`)
	}
	form := func(time, memory, threads int, salt string) []byte {
		return head(fmt.Sprintf(`"kind": "passphrase", "id": "0123456789abcdef", "wrapped": %q, "argon2id": {"time": %d, "memory_kib": %d, "threads": %d, "salt": %q}`,
			wrapped, time, memory, threads, salt))
	}
	for _, ok := range [][]byte{
		form(argonTime, argonMemory, argonThreads, salt), form(maxTime, maxMemory, maxThreads, salt), form(1, 8, 1, salt),
		head(`"kind": "key_file", "id": "0123456789abcdef", "wrapped": "` + wrapped + `"`),
	} {
		if _, err := readHeader(ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, bad := range [][]byte{
		form(3, 100<<20, 4, salt), form(3, maxMemory+1, 4, salt), form(maxTime+1, 64, 4, salt), form(1<<30, 64, 4, salt), form(0, 64, 4, salt),
		form(3, 64, 0, salt), form(3, 64, maxThreads+1, salt), form(3, 7, 1, salt), form(3, 64, 4, ""), form(3, 64, 4, strings.Repeat(salt[:20], 6)),
		form(-1, 64, 4, salt), form(3, 1<<40, 4, salt),
		head(`"kind": "key_file", "id": "0123456789abcdef", "wrapped": ""`),
		head(`"kind": "key_file", "id": "", "wrapped": "` + wrapped + `"`),
		head(`"kind": "passphrase", "id": "0123456789abcdef", "wrapped": "` + wrapped + `"`),
		head(`"kind": "none", "id": "0123456789abcdef", "wrapped": "` + wrapped + `"`),
		head(`"kind": "key_file", "id": "0123456789abcdef", "wrapped": "` + wrapped + `", "extra": 1`),
		head(`"kind": "key_file", "id": "0123456789abcdef", "argon2id": {"time": 1, "memory_kib": 8, "threads": 1, "salt": "` + salt + `"}, "wrapped": "` + wrapped + `"`),
		[]byte(`{"key": {}, "format": "postern-sealed-v1"}`), []byte(`{"format": 1}`), []byte(`{"format": "postern-sealed-v1", "keys": {}}`),
		[]byte(`[]`), []byte(`null`), []byte(`{`), []byte(`{"format"`), []byte(`{"format": "postern-sealed-v1"}`),
		[]byte(`{"format": "postern-sealed-v1", "key": ` + strings.Repeat("[", maxHeader)),
		[]byte(strings.Repeat(" ", maxHeader) + `{"format": "postern-sealed-v1"`),
	} {
		if _, err := readHeader(bad); err == nil {
			t.Errorf("%.300s: accepted", bad)
		}
	}
	_, err := readHeader([]byte(`{"format": "postern-sealed-v2", "key": "of another shape"}`))
	if !errors.As(err, new(newerError)) {
		t.Errorf("a newer format: %v", err)
	}
}

func TestNewerFormatSaysUpgrade(t *testing.T) {
	o := golden(t, "v1-keyfile.sealed")
	data, err := os.ReadFile(o.File)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, o.File, bytes.Replace(data, []byte("sealed-v1"), []byte("sealed-v2"), 1))
	_, err = Open(o)
	is(t, err, store.ErrUnavailable, ErrDamaged)
	if !strings.Contains(err.Error(), "upgrade postern") {
		t.Error(err)
	}
}

func TestTooLargeFileIsRefused(t *testing.T) {
	o := golden(t, "v1-keyfile.sealed")
	if err := os.Truncate(o.File, maxFile+1); err != nil {
		t.Fatal(err)
	}
	_, err := Open(o)
	is(t, err, store.ErrUnavailable, ErrDamaged)
}

// A body that the mac vouches for and the rules do not is refused all the same.
func TestBodyRules(t *testing.T) {
	for name, edit := range map[string]func(*document){
		"generation 0":            func(d *document) { d.Generation = 0 },
		"a path with a dot":       func(d *document) { d.Paths["a/../b"] = d.Paths["a"] },
		"a null path":             func(d *document) { d.Paths["a"] = nil },
		"versions out of order":   func(d *document) { v := d.Paths["a"].Versions; v[0], v[1] = v[1], v[0] },
		"a version twice":         func(d *document) { d.Paths["a"].Versions[0].Number = 2 },
		"a version 0":             func(d *document) { d.Paths["a"].Versions[0].Number = 0 },
		"current without version": func(d *document) { d.Paths["a"].Current = 3 },
		"negative current":        func(d *document) { d.Paths["a"] = &entry{Current: -1} },
		"negative max":            func(d *document) { d.Paths["a"].MaxVersions = -1 },
		"destroyed with data":     func(d *document) { d.Paths["a"].Versions[0].Destroyed = true },
		"no time":                 func(d *document) { d.Paths["a"].Versions[0].Created = time.Time{} },
		"local time":              func(d *document) { d.Paths["a"].Versions[0].Created = noon.In(time.FixedZone("", 3600)) },
		"a nameless field":        func(d *document) { d.Paths["a"].Versions[0].Fields[""] = []byte{1} },
		"a nameless label":        func(d *document) { d.Paths["a"].Custom = map[string]string{"": "x"} },
	} {
		d := &document{Format: formatV1, Generation: 1, Written: noon, Paths: map[string]*entry{"a": {Current: 2, Versions: []version{
			{Number: 1, Created: noon, Fields: map[string][]byte{"k": {1}}}, {Number: 2, Created: noon},
		}}}}
		body, err := encodeBody(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeBody(body); err != nil {
			t.Fatalf("the unedited document: %v", err)
		}
		edit(d)
		if body, err = encodeBody(d); err != nil {
			t.Fatal(err)
		}
		if _, err := decodeBody(body); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, body := range []string{"", "{", "null", `{"unknown": 1`, `{} {`, "[]"} {
		if _, err := decodeBody([]byte(body)); err == nil {
			t.Errorf("body %q: accepted", body)
		}
	}
}

// FuzzDecode gives the reader files that nobody with the key has written. It
// must not fail by itself, must refuse all but the golden files, and what it
// reads as a body it must write as the same body.
func FuzzDecode(f *testing.F) {
	wrapping, err := secret.New(must(base64.StdEncoding.DecodeString(goldenKey)))
	if err != nil {
		f.Fatal(err)
	}
	var good []byte
	for _, name := range []string{"v1-passphrase.sealed", "v1-keyfile.sealed"} {
		if good, err = os.ReadFile(filepath.Join("testdata", name)); err != nil {
			f.Fatal(err)
		}
		f.Add(good)
		f.Add(good[:len(good)/2])
		f.Add(good[:len(good)-tailSize])
		f.Add(bytes.Replace(good, []byte(`"created"`), []byte(`"number"`), 1))
	}
	f.Add([]byte("{\"format\": \"postern-sealed-v1\", \"key\": {}, \"paths\": null" + tailStart + strings.Repeat("A", 43) + "=" + tailEnd))
	f.Fuzz(func(t *testing.T, data []byte) {
		unlocked := func(h header) (*keys, error) {
			if h.Key.Kind != kindKeyFile {
				return nil, errOtherKey
			}
			return h.Key.unwrap(wrapping)
		}
		if _, err := parse(data, unlocked); err == nil && !bytes.Equal(data, good) {
			t.Error("accepted a file that postern did not write")
		}
		if h, body, mac, err := split(data); err == nil {
			if h.Format != formatV1 || len(mac) != macSize || !bytes.Equal(join(body, mac), data) {
				t.Error("split and join differ")
			}
		}
		d, err := decodeBody(data)
		if err != nil {
			return
		}
		body, err := encodeBody(d)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := decodeBody(body)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if twice, err := encodeBody(again); err != nil || !bytes.Equal(twice, body) {
			t.Error("reading and writing changed the document")
		}
	})
}
