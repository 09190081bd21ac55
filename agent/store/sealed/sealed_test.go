package sealed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/storetest"
)

func TestMain(m *testing.M) {
	if run := helpers[os.Getenv("SEALED_HELPER")]; run != nil {
		run()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, t.TempDir()) })
}

// With a clock that stands still the store still tells versions apart.
func TestConformanceWithStoppedClock(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return openWith(t, options(t.TempDir(), func(o *Options) { o.Now = func() time.Time { return noon } }))
	})
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// options are those of a store in dir that a first write creates.
func options(dir string, change ...func(*Options)) Options {
	o := Options{File: filepath.Join(dir, "postern.sealed"), KeyFile: filepath.Join(dir, "postern.key"), Create: true}
	for _, c := range change {
		c(&o)
	}
	return o
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	return openWith(t, options(dir))
}

func openWith(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func value(t testing.TB, text string) *secret.Value {
	t.Helper()
	v, err := secret.New([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Destroy)
	return v
}

func fields(t testing.TB, text string) map[string]*secret.Value {
	t.Helper()
	return map[string]*secret.Value{"api_key": value(t, text)}
}

func put(t testing.TB, s *Store, path, text string) store.Version {
	t.Helper()
	v, err := s.Put(t.Context(), path, fields(t, text), store.Any)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// read returns the newest api_key of a path, or the error.
func read(t testing.TB, s *Store, path string, version int) (string, error) {
	t.Helper()
	sec, err := s.Get(t.Context(), path, version)
	if err != nil {
		return "", err
	}
	defer sec.Destroy()
	var text string
	sec.Fields["api_key"].Use(func(b []byte) { text = string(b) })
	return text, nil
}

func holds(t testing.TB, s *Store, path, want string) {
	t.Helper()
	if got, err := read(t, s, path, 0); err != nil || got != want {
		t.Fatalf("%s reads as %q, %v, want %q", path, got, err, want)
	}
}

// is fails the test unless err wraps every one of want.
func is(t testing.TB, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Fatalf("%v does not wrap %v", err, w)
		}
	}
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestFirstWriteCreates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "postern")
	s := open(t, dir)
	if list, err := s.List(t.Context(), ""); err != nil || len(list) != 0 {
		t.Fatalf("an empty store lists %q, %v", list, err)
	}
	if _, err := read(t, s, "a", 0); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("an empty store: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("reading created the directory")
	}
	put(t, s, "a", "value one")
	holds(t, s, "a", "value one")
	if got := names(t, dir); !slices.Equal(got, []string{"postern.key", "postern.sealed", "postern.sealed.lock"}) {
		t.Errorf("files: %q", got)
	}
	for name, want := range map[string]os.FileMode{"": 0o700, "postern.key": 0o600, "postern.sealed": 0o600, "postern.sealed.lock": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	again := openWith(t, options(dir, func(o *Options) { o.Create = false }))
	holds(t, again, "a", "value one")
}

// What has nothing to write makes no key.
func TestRefusedFirstWriteMakesNoKey(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := s.Patch(t.Context(), "a", fields(t, "value"), store.Any)
	is(t, err, store.ErrNotFound)
	_, err = s.Put(t.Context(), "a", fields(t, "value"), 3)
	is(t, err, store.ErrConflict)
	if err := s.Destroy(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"postern.sealed.lock"}) {
		t.Errorf("files: %q", got)
	}
}

func TestPassphrase(t *testing.T) {
	dir := t.TempDir()
	form := func(text string, create bool) Options {
		return options(dir, func(o *Options) { o.KeyFile, o.Passphrase, o.Create = "", value(t, text), create })
	}
	o := form("a long passphrase", true)
	s := openWith(t, o)
	o.Passphrase.Destroy() // the store has its own
	put(t, s, "a", "value one")
	again := openWith(t, form("a long passphrase", false))
	holds(t, again, "a", "value one")
	put(t, again, "a", "value two")
	holds(t, s, "a", "value two")

	before := contents(t, dir)
	_, err := Open(form("another passphrase", true))
	is(t, err, store.ErrUnauthenticated, ErrWrongKey)
	_, err = Open(options(dir))
	is(t, err, store.ErrUnauthenticated, ErrWrongKey)
	unchanged(t, dir, before)
	if got := names(t, dir); !slices.Equal(got, []string{"postern.sealed", "postern.sealed.lock"}) {
		t.Errorf("files: %q", got)
	}
}

func TestPassphraseDoesNotOpenAKeyFilesStore(t *testing.T) {
	dir := t.TempDir()
	put(t, open(t, dir), "a", "value one")
	_, err := Open(options(dir, func(o *Options) { o.KeyFile, o.Passphrase = "", value(t, "passphrase") }))
	is(t, err, store.ErrUnauthenticated, ErrWrongKey)
}

func TestNowIsTheClock(t *testing.T) {
	at := noon
	s := openWith(t, options(t.TempDir(), func(o *Options) { o.Now = func() time.Time { return at.In(time.FixedZone("east", 3600)) } }))
	if got := s.Now(); got != noon {
		t.Errorf("Now is %v, want %v in UTC", got, noon)
	}
	if v := put(t, s, "a", "1"); !v.Created.Equal(noon) {
		t.Errorf("created %v, want %v", v.Created, noon)
	}
	at = noon.Add(-time.Hour) // a clock set back does not date a version before its predecessor
	if v := put(t, s, "a", "2"); !v.Created.After(noon) {
		t.Errorf("created %v, want after %v", v.Created, noon)
	}
	at = noon.Add(time.Hour)
	if v := put(t, s, "a", "3"); !v.Created.Equal(at) {
		t.Errorf("created %v, want %v", v.Created, at)
	}
}

func TestClose(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "a", "value one")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := read(t, s, "a", 0)
	is(t, err, store.ErrUnavailable)
	_, err = s.Put(t.Context(), "a", fields(t, "value two"), store.Any)
	is(t, err, store.ErrUnavailable)
	holds(t, open(t, dir), "a", "value one")
}

// Every key and value that a store holds is given back, in success and in failure.
func TestNothingStaysInTheArena(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the collector would clean up after us
	dir := t.TempDir()
	v := fields(t, "value one")
	other := map[string]*secret.Value{"other": v["api_key"]}
	pass := value(t, "a long passphrase")
	before := secret.Stats().Values
	held := func(when string, want int) {
		t.Helper()
		if got := secret.Stats().Values - before; got != want {
			t.Fatalf("%s: %d values are in the arena, want %d", when, got, want)
		}
	}
	s, err := Open(options(dir))
	if err != nil {
		t.Fatal(err)
	}
	held("before the first write", 0)
	for range 3 {
		if _, err := s.Put(t.Context(), "a", v, store.Any); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Patch(t.Context(), "a", other, store.Any); err != nil {
			t.Fatal(err)
		}
		holds(t, s, "a", "value one")
	}
	held("open, with its two keys", 2)
	_, err = s.Put(t.Context(), "a", map[string]*secret.Value{"gone": nil}, store.Any)
	is(t, err, store.ErrInvalid)
	held("after a refused write", 2)
	s.Close()
	held("closed", 0)

	for _, dir := range []string{dir, t.TempDir()} {
		if s, err = Open(options(dir)); err != nil {
			t.Fatal(err)
		}
		s.disk.before = func(step string) error {
			if step == "rename file" {
				s.Close()
			}
			return nil
		}
		if _, err := s.Put(t.Context(), "a", v, store.Any); err != nil {
			t.Fatal(err)
		}
		held("closed in the middle of a write", 0)
		holds(t, open(t, dir), "a", "value one")
		before = secret.Stats().Values // less what that other store holds
	}

	s = openWith(t, options(t.TempDir()))
	s.disk.before = func(step string) error {
		if step == "rename file" {
			return syscall.EIO
		}
		return nil
	}
	_, err = s.Put(t.Context(), "a", v, store.Any)
	is(t, err, store.ErrUnavailable)
	held("after a first write that failed", 0)

	_, err = Open(options(dir, func(o *Options) { o.KeyFile, o.Passphrase = "", pass }))
	is(t, err, ErrWrongKey)
	file := options(dir).File
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, file, rewrite(t, data, func(d *document) { d.Generation++ }))
	_, err = Open(options(dir))
	is(t, err, ErrDamaged)
	held("after refusing to open", 0)

	s = openWith(t, options(t.TempDir(), func(o *Options) { o.KeyFile, o.Passphrase = "", pass }))
	if _, err := s.Put(t.Context(), "a", v, store.Any); err != nil {
		t.Fatal(err)
	}
	held("open by passphrase, which is no longer needed", 2)
}

// A write that fails leaves what this process knows as it was, too.
func TestFailedWritesChangeNothing(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "a", "value one")
	put(t, s, "a", "value two")
	if err := s.SetMetadata(t.Context(), "a", map[string]string{"label": "text"}, 5); err != nil {
		t.Fatal(err)
	}
	before, err := s.Metadata(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	s.disk.before = func(step string) error {
		if step == "rename file" {
			return syscall.EIO
		}
		return nil
	}
	v := fields(t, "value that must not be written")
	for name, write := range map[string]func() error{
		"Put":         func() error { _, err := s.Put(t.Context(), "a", v, store.Any); return err },
		"Put new":     func() error { _, err := s.Put(t.Context(), "b", v, store.Any); return err },
		"Patch":       func() error { _, err := s.Patch(t.Context(), "a", v, store.Any); return err },
		"SetMetadata": func() error { return s.SetMetadata(t.Context(), "a", map[string]string{"label": "new"}, 1) },
		"Destroy":     func() error { return s.Destroy(t.Context(), "a", 1, 2) },
		"Remove":      func() error { return s.Remove(t.Context(), "a") },
	} {
		is(t, write(), store.ErrUnavailable)
		after, err := s.Metadata(t.Context(), "a")
		if err != nil || !reflect.DeepEqual(after, before) {
			t.Errorf("after a failed %s: %+v, %v, want %+v", name, after, err, before)
		}
		holds(t, s, "a", "value two")
		if list, err := s.List(t.Context(), ""); err != nil || !slices.Equal(list, []string{"a"}) {
			t.Errorf("after a failed %s: paths %q, %v", name, list, err)
		}
	}
}

func TestLimits(t *testing.T) {
	s := open(t, t.TempDir())
	big := make([]byte, maxVersionSize+1)
	for i := range big {
		big[i] = 'x'
	}
	_, err := s.Put(t.Context(), "a", fields(t, string(big)), 0)
	is(t, err, store.ErrInvalid)
	put(t, s, "a", string(big[:maxVersionSize]))
	many := map[string]*secret.Value{}
	v := value(t, "v")
	for i := range maxFields + 1 {
		many[fmt.Sprintf("field %d", i)] = v
	}
	_, err = s.Put(t.Context(), "a", many, 1)
	is(t, err, store.ErrInvalid)
	for _, name := range []string{"", "line\nbreak", string(big[:maxName+1]), "\xff"} {
		_, err = s.Put(t.Context(), "a", map[string]*secret.Value{name: v}, 1)
		is(t, err, store.ErrInvalid)
		is(t, s.SetMetadata(t.Context(), "a", map[string]string{name: "text"}, 0), store.ErrInvalid)
	}
	for _, text := range []string{"", "line\nbreak", string(big[:maxLabel+1]), "\xff"} {
		is(t, s.SetMetadata(t.Context(), "a", map[string]string{"label": text}, 0), store.ErrInvalid)
	}
	_, err = s.Put(t.Context(), string(big[:maxPath+1]), fields(t, "v"), 0)
	is(t, err, store.ErrInvalid)
	put(t, s, string(big[:maxPath]), "v")
	is(t, s.Destroy(t.Context(), "a", 1, 0), store.ErrInvalid)
	is(t, s.Destroy(t.Context(), "a"), store.ErrInvalid)
	if m, err := s.Metadata(t.Context(), "a"); err != nil || m.Current != 1 || !m.Versions[0].Readable() {
		t.Errorf("refused writes wrote: %+v, %v", m, err)
	}
}
