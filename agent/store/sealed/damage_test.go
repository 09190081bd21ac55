package sealed

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// contents reads every file of a directory but locks.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range names(t, dir) {
		if strings.HasSuffix(name, ".lock") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(b)
	}
	return all
}

func unchanged(t testing.TB, dir string, before map[string]string) {
	t.Helper()
	after := contents(t, dir)
	if len(after) != len(before) {
		t.Fatalf("files before: %d, after: %d", len(before), len(after))
	}
	for name, b := range before {
		if after[name] != b {
			t.Fatalf("%s was changed", name)
		}
	}
}

// sample is a store with something of everything, closed again.
func sample(t testing.TB, dir string) Options {
	t.Helper()
	o := options(dir, func(o *Options) { o.Now = func() time.Time { return noon } })
	s := openWith(t, o)
	put(t, s, "keys/one", "value one")
	put(t, s, "keys/one", "value two")
	put(t, s, "keys/two", "value one of two")
	put(t, s, "keys/two", "value to be destroyed")
	if err := s.Destroy(t.Context(), "keys/two", 2); err != nil {
		t.Fatal(err)
	}
	if err := s.SetMetadata(t.Context(), "keys/one", map[string]string{"provider": "openai"}, 100); err != nil {
		t.Fatal(err)
	}
	s.Close()
	o.Create = false
	return o
}

// overwrite puts bytes where the store is, in place, as an editor or a bad disk would.
func overwrite(t testing.TB, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// refuses checks that a file is a clear error for reading and writing, from the
// start and while open, and stays as it is.
func refuses(t testing.TB, o Options, running *Store, data []byte) {
	t.Helper()
	overwrite(t, o.File, data)
	before := contents(t, filepath.Dir(o.File))
	if s, err := Open(o); err == nil {
		s.Close()
		t.Fatalf("opened a damaged file")
	} else {
		if !errors.Is(err, ErrWrongKey) || !bytes.Contains(data, []byte(`"id": "0123456789abcdef"`)) {
			is(t, err, store.ErrUnavailable, ErrDamaged)
		}
		if !strings.Contains(err.Error(), o.File) || !strings.Contains(err.Error(), "; ") {
			t.Errorf("%v names no file or no advice", err)
		}
	}
	_, err := read(t, running, "keys/one", 0)
	is(t, err, store.ErrUnavailable, ErrDamaged)
	_, err = running.Put(t.Context(), "keys/one", fields(t, "a value that must not be written"), store.Any)
	is(t, err, store.ErrUnavailable, ErrDamaged)
	unchanged(t, filepath.Dir(o.File), before)
}

func TestEveryChangedByteIsRefused(t *testing.T) {
	o := sample(t, t.TempDir())
	good, err := os.ReadFile(o.File)
	if err != nil {
		t.Fatal(err)
	}
	running := openWith(t, o)
	step := 1
	if testing.Short() {
		step = 17
	}
	for i := 0; i < len(good); i += step {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		overwrite(t, o.File, bad)
		if s, err := Open(o); err == nil {
			s.Close()
			t.Fatalf("byte %d of %d changed from %q to %q: opened", i, len(good), good[i], bad[i])
		}
	}
	overwrite(t, o.File, good)
	holds(t, running, "keys/one", "value two")
}

func TestTornFilesAreRefused(t *testing.T) {
	o := sample(t, t.TempDir())
	good, err := os.ReadFile(o.File)
	if err != nil {
		t.Fatal(err)
	}
	running := openWith(t, o)
	for _, n := range []int{0, 1, 10, 100, len(good) / 2, len(good) - tailSize, len(good) - 1} {
		refuses(t, o, running, good[:n])
	}
	refuses(t, o, running, append(bytes.Clone(good), '\n'))
	refuses(t, o, running, append(bytes.Clone(good), good...))
	refuses(t, o, running, make([]byte, len(good)))
	refuses(t, o, running, append(bytes.Clone(good[:len(good)/2]), make([]byte, len(good)-len(good)/2)...))
	refuses(t, o, running, bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")))
	refuses(t, o, running, []byte("environment: dev\n"))
	overwrite(t, o.File, good)
	holds(t, running, "keys/one", "value two")
	put(t, running, "keys/one", "value three")
}

// Every edit that would mean something else, made by somebody without the key.
func TestEditsAreRefused(t *testing.T) {
	o := sample(t, t.TempDir())
	good, err := os.ReadFile(o.File)
	if err != nil {
		t.Fatal(err)
	}
	running := openWith(t, o)
	for name, edit := range edits {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			bad := rewrite(t, good, edit)
			if bytes.Equal(bad, good) {
				t.Fatal("the edit changes nothing")
			}
			refuses(t, o, running, bad)
		})
	}
	t.Run("the_rewriting_itself_changes_nothing", func(t *testing.T) {
		if !bytes.Equal(rewrite(t, good, func(*document) {}), good) {
			t.Fatal("these edits are refused for another reason")
		}
	})
}

var edits = map[string]func(*document){
	"a version dropped":    func(d *document) { e := d.Paths["keys/one"]; e.Versions = e.Versions[1:] },
	"the newest dropped":   func(d *document) { e := d.Paths["keys/one"]; e.Versions, e.Current = e.Versions[:1], 1 },
	"a path dropped":       func(d *document) { delete(d.Paths, "keys/two") },
	"a path renamed":       func(d *document) { d.Paths["keys/three"] = d.Paths["keys/two"]; delete(d.Paths, "keys/two") },
	"a path copied":        func(d *document) { d.Paths["keys/three"] = d.Paths["keys/two"] },
	"a number changed":     func(d *document) { e := d.Paths["keys/one"]; e.Versions[1].Number, e.Current = 3, 3 },
	"a time changed":       func(d *document) { d.Paths["keys/one"].Versions[0].Created = noon.Add(-time.Hour) },
	"metadata edited":      func(d *document) { d.Paths["keys/one"].Custom["provider"] = "anthropic" },
	"max versions changed": func(d *document) { d.Paths["keys/one"].MaxVersions = 1 },
	"destroyed taken back": func(d *document) { d.Paths["keys/two"].Versions[1].Destroyed = false },
	"a value dropped":      func(d *document) { delete(d.Paths["keys/one"].Versions[0].Fields, "api_key") },
	"a generation raised":  func(d *document) { d.Generation++ },
	"a date changed":       func(d *document) { d.Written = d.Written.Add(time.Second) },
	"values exchanged": func(d *document) {
		a, b := d.Paths["keys/one"].Versions[0].Fields, d.Paths["keys/one"].Versions[1].Fields
		a["api_key"], b["api_key"] = b["api_key"], a["api_key"]
	},
	"a value moved to another field": func(d *document) {
		f := d.Paths["keys/one"].Versions[1].Fields
		f["organization"] = f["api_key"]
	},
	"a key id changed":      func(d *document) { d.Key.ID = "0123456789abcdef" },
	"a wrapped key changed": func(d *document) { d.Key.Wrapped[20] ^= 1 },
}

// rewrite edits the document and keeps the mac.
func rewrite(t testing.TB, good []byte, edit func(*document)) []byte {
	t.Helper()
	_, body, mac, err := split(good)
	if err != nil {
		t.Fatal(err)
	}
	d := &document{}
	if err := json.Unmarshal(append(bytes.Clone(body), '}'), d); err != nil {
		t.Fatal(err)
	}
	edit(d)
	body, err = encodeBody(d)
	if err != nil {
		t.Fatal(err)
	}
	return join(body, mac)
}

// The values are bound to their places by themselves, even if the mac were forged.
func TestValuesAreBoundToTheirPlace(t *testing.T) {
	dir := t.TempDir()
	s := openWith(t, options(dir))
	put(t, s, "keys/one", "value one")
	if _, err := s.Put(t.Context(), "keys/one", map[string]*secret.Value{
		"api_key": value(t, "value two"), "b": value(t, "b"), "c": value(t, "c"), "d": value(t, "d"), "e": value(t, "e"),
	}, 1); err != nil {
		t.Fatal(err)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	held := secret.Stats().Values
	for name, edit := range map[string]func(*document){
		"path":    func(d *document) { d.Paths["keys/moved"] = d.Paths["keys/one"] },
		"number":  func(d *document) { e := d.Paths["keys/one"]; e.Current, e.Versions[1].Number = 7, 7 },
		"created": func(d *document) { e := d.Paths["keys/one"]; e.Versions[1].Created = noon },
		"field": func(d *document) {
			f := d.Paths["keys/one"].Versions[1].Fields
			f["other"] = f["api_key"]
		},
		"bytes": func(d *document) { d.Paths["keys/one"].Versions[1].Fields["api_key"][14] ^= 1 },
		"short": func(d *document) { d.Paths["keys/one"].Versions[1].Fields["api_key"] = []byte("short") },
	} {
		t.Run(name, func(t *testing.T) {
			good, err := os.ReadFile(s.file)
			if err != nil {
				t.Fatal(err)
			}
			d, err := parse(good, func(header) (*keys, error) { return s.keys, nil })
			if err != nil {
				t.Fatal(err)
			}
			edit(d)
			forged := &Store{file: s.file, doc: d, keys: s.keys, now: time.Now, writer: make(chan struct{}, 1), lockWait: time.Second}
			f, info, err := openFile(s.file, false)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if forged.stamp, err = stampOf(f, info); err != nil {
				t.Fatal(err)
			}
			path := "keys/one"
			if name == "path" {
				path = "keys/moved"
			}
			_, err = forged.Get(t.Context(), path, 0)
			is(t, err, store.ErrUnavailable, ErrDamaged)
			_, err = forged.Patch(t.Context(), path, nil, store.Any)
			is(t, err, store.ErrUnavailable, ErrDamaged)
			if after, _ := os.ReadFile(s.file); !bytes.Equal(after, good) {
				t.Error("the file was changed")
			}
			if n := secret.Stats().Values - held; n != 0 {
				t.Errorf("%d values are left in the arena", n)
			}
		})
	}
}

func TestRunningStoreRefusesAnOlderFile(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "keys/one", "value one")
	old, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "keys/one", "value two")
	overwrite(t, s.file, old)
	_, err = read(t, s, "keys/one", 0)
	is(t, err, store.ErrUnavailable, ErrDamaged)
	// A process that starts now cannot know, and its next write is another history.
	other := open(t, dir)
	holds(t, other, "keys/one", "value one")
	put(t, other, "keys/one", "value three")
	_, err = read(t, s, "keys/one", 0)
	is(t, err, store.ErrUnavailable, ErrDamaged)
}

func TestRunningStoreRefusesAnotherFile(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "keys/one", "value one")
	if err := os.Remove(s.file); err != nil {
		t.Fatal(err)
	}
	_, err := read(t, s, "keys/one", 0)
	is(t, err, store.ErrUnavailable, ErrDamaged)
	_, err = s.Put(t.Context(), "keys/one", fields(t, "value two"), store.Any)
	is(t, err, store.ErrUnavailable, ErrDamaged)
	if _, err := os.Stat(s.file); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a file that vanished was made anew")
	}
	put(t, open(t, dir), "keys/other", "of another store")
	_, err = read(t, s, "keys/one", 0)
	is(t, err, store.ErrUnavailable, ErrDamaged)
	if !strings.Contains(err.Error(), "was replaced by another sealed store; if that was meant, restart postern") {
		t.Error(err)
	}
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	o := sample(t, dir)
	o.Create = true // which must never make a new key for an old file
	good, err := os.ReadFile(o.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	other := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, keySize))
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want []error
		says string
	}{
		"another key":       {other, 0o600, []error{store.ErrUnauthenticated, ErrWrongKey}, "was sealed with another key"},
		"empty":             {"", 0o600, []error{store.ErrUnauthenticated, ErrWrongKey}, "is no key file"},
		"cut off":           {string(good[:20]), 0o600, []error{store.ErrUnauthenticated, ErrWrongKey}, "is no key file"},
		"two keys":          {other + "\n" + other, 0o600, []error{store.ErrUnauthenticated, ErrWrongKey}, "is no key file"},
		"too long":          {strings.Repeat("A", 4096), 0o600, []error{store.ErrUnauthenticated, ErrWrongKey}, "is no key file"},
		"not base64":        {strings.Repeat("?", 44), 0o600, []error{store.ErrUnauthenticated, ErrWrongKey}, "is no key file"},
		"readable by group": {string(good), 0o640, []error{store.ErrUnauthenticated}, "chmod 600"},
		"readable by all":   {string(good), 0o604, []error{store.ErrUnauthenticated}, "chmod 600"},
		"writable by all":   {string(good), 0o602, []error{store.ErrUnauthenticated}, "chmod 600"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			overwrite(t, o.KeyFile, []byte(c.text))
			if err := os.Chmod(o.KeyFile, c.mode); err != nil {
				t.Fatal(err)
			}
			defer os.Chmod(o.KeyFile, 0o600)
			before := contents(t, dir)
			_, err := Open(o)
			is(t, err, c.want...)
			if !strings.Contains(err.Error(), o.KeyFile) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v names neither the key file nor %q", err, c.says)
			}
			if len(c.text) > 8 && strings.Contains(err.Error(), c.text[:8]) {
				t.Errorf("%v holds the key", err)
			}
			unchanged(t, dir, before)
			// Nor does a key file like this begin a new store.
			fresh := o
			fresh.File = filepath.Join(t.TempDir(), "fresh.sealed")
			if _, err := Open(fresh); name != "another key" {
				is(t, err, c.want...)
			} else if err != nil {
				t.Errorf("a good key file for a new store: %v", err)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		if err := os.Remove(o.KeyFile); err != nil {
			t.Fatal(err)
		}
		before := contents(t, dir)
		_, err := Open(o)
		is(t, err, store.ErrUnauthenticated, ErrWrongKey)
		if !strings.Contains(err.Error(), "no new key was made") {
			t.Errorf("%v", err)
		}
		unchanged(t, dir, before)
	})
	t.Run("through_a_link", func(t *testing.T) {
		elsewhere := filepath.Join(t.TempDir(), "mounted.key")
		overwrite(t, elsewhere, good)
		if err := os.Symlink(elsewhere, o.KeyFile); err != nil {
			t.Fatal(err)
		}
		holds(t, openWith(t, o), "keys/one", "value two")
	})
}

func TestOnlyRegularFiles(t *testing.T) {
	dir := t.TempDir()
	o := sample(t, dir)
	link := func(name, to string) Options {
		l := options(dir, func(l *Options) { l.File = filepath.Join(dir, name) })
		if err := os.Symlink(to, l.File); err != nil {
			t.Fatal(err)
		}
		return l
	}
	fifo := options(dir, func(o *Options) { o.File = filepath.Join(dir, "fifo") })
	if err := syscall.Mkfifo(fifo.File, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{
		link("link.sealed", o.File), link("dangling.sealed", filepath.Join(dir, "nothing")), fifo,
		options(dir, func(o *Options) { o.File = dir }),
	} {
		_, err := Open(o)
		is(t, err, store.ErrInvalid)
		if !strings.Contains(err.Error(), o.File) {
			t.Errorf("%v does not name the file", err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "nothing")); err == nil {
		t.Error("a dangling link was written through")
	}
	t.Run("the_lock", func(t *testing.T) {
		victim := filepath.Join(dir, "victim")
		if err := os.Remove(o.File + ".lock"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(victim, o.File+".lock"); err != nil {
			t.Fatal(err)
		}
		s := openWith(t, o)
		holds(t, s, "keys/one", "value two")
		_, err := s.Put(t.Context(), "keys/one", fields(t, "value three"), store.Any)
		is(t, err, store.ErrInvalid)
		if _, err := os.Lstat(victim); err == nil {
			t.Error("the lock was made through a link")
		}
	})
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	pass := value(t, "passphrase")
	gone := value(t, "gone")
	gone.Destroy()
	file, key := filepath.Join(dir, "f"), filepath.Join(dir, "k")
	for says, o := range map[string]Options{
		"file is required":                        {KeyFile: key},
		"one of key_file and passphrase":          {File: file},
		"exclude each other":                      {File: file, KeyFile: key, Passphrase: pass},
		"the passphrase is empty":                 {File: file, Passphrase: value(t, "")},
		"passphrase: ":                            {File: file, Passphrase: gone, Create: true},
		"key_file must be another":                {File: file, KeyFile: dir + "/./f"},
		"key_file must be another file than file": {File: file, KeyFile: file + ".lock"},
	} {
		_, err := Open(o)
		is(t, err, store.ErrInvalid)
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
	_, err := Open(Options{File: file, KeyFile: key})
	is(t, err, store.ErrNotFound)
	if len(names(t, dir)) != 0 {
		t.Errorf("opening made %q", names(t, dir))
	}
}
