package sealed

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

var createSteps = []string{
	"make directory", "lock",
	"make key directory", "create key", "write key", "sync key", "link key", "remove key", "sync key directory",
	"create file", "write file", "sync file", "rename file", "sync directory",
}

var writeSteps = []string{"make directory", "lock", "create file", "write file", "sync file", "rename file", "sync directory"}

// done says whether a write that ended before this step counts.
func done(step string) bool { return step == "sync directory" }

// A kill -9 before each step of the first write, and of a later one, leaves the
// old state or the new one, and nothing in the way of the next writer.
func TestKilledBetweenSteps(t *testing.T) {
	for _, c := range []struct {
		name  string
		first bool
		torn  string
		steps []string
	}{
		{"first write", true, "", createSteps},
		{"later write", false, "", writeSteps},
		{"torn first write", true, "yes", createSteps},
		{"torn later write", false, "yes", writeSteps},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			for n, step := range c.steps {
				if c.torn != "" && step != "sync file" {
					continue
				}
				dir := t.TempDir()
				if !c.first {
					put(t, open(t, dir), "a", "old value")
				}
				out, err := helper(t, "crash", dir, fmt.Sprint("SEALED_STEP=", n), "SEALED_TORN="+c.torn).Output()
				if !killed(err) || strings.TrimSpace(string(out)) != step {
					t.Fatalf("step %d: the helper ended with %v at %q, want to be killed at %q", n, err, out, step)
				}
				survives(t, dir, step, c.first)
			}
			dir := t.TempDir()
			if !c.first {
				put(t, open(t, dir), "a", "old value")
			}
			if err := helper(t, "crash", dir, fmt.Sprint("SEALED_STEP=", len(c.steps))).Run(); err != nil {
				t.Fatalf("there are more than %d steps: %v", len(c.steps), err)
			}
			holds(t, open(t, dir), "a", "new value")
		})
	}
}

func killed(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

// survives checks a store whose writer died or failed before a step.
func survives(t *testing.T, dir, step string, first bool) {
	t.Helper()
	s := open(t, dir)
	got, err := read(t, s, "a", 0)
	switch {
	case done(step):
		if got != "new value" {
			t.Errorf("before %q: %q, %v, want the new value", step, got, err)
		}
	case first:
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("before %q: %q, %v, want an empty store", step, got, err)
		}
	case got != "old value":
		t.Errorf("before %q: %q, %v, want the old value", step, got, err)
	}
	put(t, s, "a", "next value")
	holds(t, open(t, dir), "a", "next value")
	if got := names(t, dir); !slices.Equal(got, []string{"postern.key", "postern.sealed", "postern.sealed.lock"}) {
		t.Errorf("before %q, after the next write: files %q", step, got)
	}
}

// Every step may fail, for every reason, without leaving anything but the old file.
func TestEveryStepMayFail(t *testing.T) {
	for _, first := range []bool{true, false} {
		steps := writeSteps
		if first {
			steps = createSteps
		}
		for _, step := range steps {
			for cause, want := range map[error]error{
				syscall.ENOSPC: store.ErrUnavailable, syscall.EIO: store.ErrUnavailable,
				syscall.EROFS: store.ErrForbidden, syscall.EACCES: store.ErrForbidden,
			} {
				dir := t.TempDir()
				if !first {
					put(t, open(t, dir), "a", "old value")
				}
				s := open(t, dir)
				var seen []string
				s.disk.before = func(at string) error {
					seen = append(seen, at)
					if at == step {
						return &fs.PathError{Op: "test", Path: "a/path", Err: cause}
					}
					return nil
				}
				_, err := s.Put(t.Context(), "a", fields(t, "new value"), store.Any)
				if step == "sync directory" {
					want = store.ErrUnavailable // whatever the cause, the write may or may not last
				}
				is(t, err, want, cause)
				if !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "a/path") {
					t.Errorf("%q: %v does not name the file, once", step, err)
				}
				if !slices.Contains(seen, step) {
					t.Fatalf("there is no step %q in %q", step, seen)
				}
				for _, name := range names(t, dir) {
					if strings.Contains(name, ".tmp-") && step != "remove key" {
						t.Errorf("%q: %s is left", step, name)
					}
				}
				s.disk.before = nil
				survives(t, dir, step, first)
			}
		}
	}
}

// What was written is in no file of the directory in any form, at any moment.
func TestNoFileEverHoldsAValue(t *testing.T) {
	const one, two = "sk-canary-0123456789-first-Zm9v", "sk-canary-\"quoted\"\\-ünïcode-second"
	dir := t.TempDir()
	s := open(t, dir)
	looks := 0
	look := func() {
		looks++
		for name, text := range contents(t, dir) {
			for _, canary := range []string{one, two} {
				for _, form := range forms(t, canary) {
					if strings.Contains(text, form) {
						t.Fatalf("%s holds a value as %q", name, form)
					}
				}
			}
		}
	}
	s.disk.before = func(string) error { look(); return nil }
	for range 2 {
		put(t, s, "keys/one", one)
		put(t, s, "keys/one", two)
		if _, err := s.Patch(t.Context(), "keys/one", map[string]*secret.Value{"other": value(t, one)}, store.Any); err != nil {
			t.Fatal(err)
		}
		if err := s.SetMetadata(t.Context(), "keys/one", map[string]string{"label": "text"}, 2); err != nil {
			t.Fatal(err)
		}
		if err := s.Destroy(t.Context(), "keys/one", 3); err != nil {
			t.Fatal(err)
		}
		put(t, s, "keys/two", two)
		if err := s.Remove(t.Context(), "keys/two"); err != nil {
			t.Fatal(err)
		}
	}
	look()
	if looks < 60 {
		t.Errorf("looked only %d times", looks)
	}
	// The search itself finds what is there.
	overwrite(t, filepath.Join(dir, "planted"), []byte("..."+base64.StdEncoding.EncodeToString([]byte("xy"+one))+"..."))
	found := false
	for _, form := range forms(t, one) {
		found = found || strings.Contains(contents(t, dir)["planted"], form)
	}
	if !found {
		t.Error("the search does not find base64 at an odd offset")
	}
}

// forms are the ways in which bytes could stand in a file: raw, JSON, hex, and
// base64 at each of the three offsets.
func forms(t *testing.T, text string) []string {
	t.Helper()
	quoted, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	all := []string{text, string(bytes.Trim(quoted, `"`)), hex.EncodeToString([]byte(text)), strings.ToUpper(hex.EncodeToString([]byte(text)))}
	for offset := range 3 {
		b := []byte(text)[offset:]
		b = b[:len(b)/3*3]
		all = append(all, base64.StdEncoding.EncodeToString(b), base64.URLEncoding.EncodeToString(b))
	}
	return all
}

// The administrator's write leaves the file to its owner.
func TestOwnerIsKept(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only the administrator can make this case
	}
	const owner = 65534
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "a", "value one")
	for _, name := range names(t, dir) {
		if err := os.Chown(filepath.Join(dir, name), owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(s.file + ".lock"); err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "value two")
	for _, name := range names(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != owner || st.Gid != owner || info.Mode().Perm() != 0o600 {
			t.Errorf("%s belongs to %d:%d, mode %v", name, st.Uid, st.Gid, info.Mode())
		}
	}
}
