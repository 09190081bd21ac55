package sealed

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A file that has not changed for long is not opened again, and whatever happens
// to it shows, though size and modification time be the same.
func TestAGlanceIsEnoughUntilSomethingChanges(t *testing.T) {
	for name, change := range map[string]func(file string) error{
		"written by another": func(file string) error {
			_, err := open(t, filepath.Dir(file)).Put(t.Context(), "a", fields(t, "value two"), 1)
			return err
		},
		"edited in place": func(file string) error {
			info, err := os.Stat(file)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("x"), info.Size()/2); err != nil {
				return err
			}
			return os.Chtimes(file, info.ModTime(), info.ModTime())
		},
		"its mode": func(file string) error { return os.Chmod(file, 0o400) },
		"a link": func(file string) error {
			if err := os.Rename(file, file+".moved"); err != nil {
				return err
			}
			return os.Symlink(file+".moved", file)
		},
		"taken away": os.Remove,
	} {
		dir := t.TempDir()
		put(t, open(t, dir), "a", "value one")
		s := open(t, dir)
		holds(t, s, "a", "value one")
		if s.same() {
			t.Errorf("%s: a glance is trusted although the file was written just now", name)
		}
		s.coarse = 0
		holds(t, s, "a", "value one")
		if !s.same() {
			t.Errorf("%s: the file is opened again and again", name)
		}
		awaitNewTime(t, s.file)
		if err := change(s.file); err != nil {
			t.Fatal(err)
		}
		if s.same() {
			t.Errorf("%s: does not show", name)
		}
	}
}

// awaitNewTime waits until a change of a file would get another time than its last one.
func awaitNewTime(t *testing.T, file string) {
	t.Helper()
	changed := func(file string) time.Time {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return ctime(info.Sys().(*syscall.Stat_t))
	}
	for probe := filepath.Join(t.TempDir(), "now"); ; {
		if err := os.WriteFile(probe, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if changed(probe).After(changed(file)) {
			return
		}
	}
}
