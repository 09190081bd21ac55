package sealed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"github.com/postern-proxy/postern/agent/store"
)

// Eight processes that write at once lose nothing.
func TestManyProcesses(t *testing.T) {
	const processes, writes = 8, 12
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.SetMetadata(t.Context(), "shared", nil, processes*writes); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range processes {
		cmd := helper(t, "count", dir, fmt.Sprint("SEALED_N=", writes), fmt.Sprint("SEALED_ID=", i))
		wg.Go(func() {
			if err := cmd.Run(); err != nil {
				t.Errorf("process %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	m, err := s.Metadata(t.Context(), "shared")
	if err != nil || m.Current != processes*writes || len(m.Versions) != processes*writes {
		t.Fatalf("shared: %d versions, current %d, %v, want %d", len(m.Versions), m.Current, err, processes*writes)
	}
	for i, v := range m.Versions {
		if got, err := read(t, s, "shared", v.Number); v.Number != i+1 || err != nil || got != strconv.Itoa(v.Number) {
			t.Fatalf("shared, version %d reads as %q, %v", v.Number, got, err)
		}
		if i > 0 && !v.Created.After(m.Versions[i-1].Created) {
			t.Errorf("version %d is not newer than the one before", v.Number)
		}
	}
	for i := range processes {
		holds(t, s, fmt.Sprint("own/", i), strconv.Itoa(writes))
	}
}

// Many processes that all begin with no file agree on one key.
func TestManyProcessesCreate(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 {
		cmd := helper(t, "count", dir, "SEALED_N=1", fmt.Sprint("SEALED_ID=", i))
		wg.Go(func() {
			if err := cmd.Run(); err != nil {
				t.Errorf("process %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	s := open(t, dir)
	holds(t, s, "shared", "4")
	for i := range 4 {
		holds(t, s, fmt.Sprint("own/", i), "1")
	}
}

// Stores in one process, each with its own idea of the file, see each other's writes at once.
func TestReadersSeeEveryWrite(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	for i := range 60 {
		text := fmt.Sprintf("value %02d", i) // of one length: the files differ in size hardly ever
		put(t, a, "a", text)
		holds(t, b, "a", text)
		a, b = b, a
	}
}

// A writer that is killed at a random moment has written what it said it wrote,
// or one version more.
func TestKilledWriterLosesNothingItSaid(t *testing.T) {
	dir := t.TempDir()
	current := 0
	for round := range 5 {
		cmd := helper(t, "hammer", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := 0
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if said, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
			if n == 5+round {
				cmd.Process.Kill()
			}
		}
		if err := cmd.Wait(); !killed(err) {
			t.Fatalf("the helper ended with %v", err)
		}
		s := open(t, dir)
		m, err := s.Metadata(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if said <= current || m.Current < said || m.Current > said+1 {
			t.Errorf("the writer said %d after %d, the store has %d", said, current, m.Current)
		}
		if _, err := read(t, s, "a", 0); err != nil {
			t.Error(err)
		}
		current = m.Current
	}
}

func TestLockHeldBySomebodyElse(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "a", "value one")
	other := flock.New(s.file + ".lock")
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	holds(t, s, "a", "value one") // readers need no lock

	s.lockWait = 20 * time.Millisecond
	_, err := s.Put(t.Context(), "a", fields(t, "value two"), store.Any)
	is(t, err, store.ErrUnavailable)
	if !strings.Contains(err.Error(), s.file+".lock") {
		t.Errorf("%v does not name the lock", err)
	}
	s.lockWait = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = s.Put(ctx, "a", fields(t, "value two"), store.Any)
	is(t, err, context.DeadlineExceeded)

	// A second writer of this process waits for the first, and no longer than its context.
	s.writer <- struct{}{}
	ctx, cancel = context.WithCancel(t.Context())
	failed := make(chan error)
	v := fields(t, "value two")
	go func() {
		_, err := s.Put(ctx, "a", v, store.Any)
		failed <- err
	}()
	cancel()
	is(t, <-failed, context.Canceled)
	<-s.writer

	if err := other.Unlock(); err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "value three")
}

// In a directory that may not be written, reading works and writing says so.
func TestReadOnlyDirectory(t *testing.T) {
	dir, err := os.MkdirTemp("", "sealed")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error { os.Chmod(path, 0o700); return nil })
		os.RemoveAll(dir)
	})
	put(t, open(t, dir), "a", "value one")
	if err := os.Remove(filepath.Join(dir, "postern.sealed.lock")); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked")
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "locked.key"), nil, 0), os.WriteFile(filepath.Join(dir, "locked.sealed"), nil, 0), os.Mkdir(locked, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(filepath.Join(dir, "postern.sealed"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := helper(t, "forbidden", dir)
	asNobody(t, cmd, dir)
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	said := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i, want := range []string{"postern.sealed.lock", "locked.key", "locked.sealed", "locked/postern.sealed"} {
		if !strings.Contains(said[i], filepath.Join(dir, want)) {
			t.Errorf("%q does not name %s", said[i], want)
		}
	}
	if after, err := os.ReadFile(filepath.Join(dir, "postern.sealed")); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed (%v)", err)
	}
}

// Readers and writers of one Store, and its Close, from many goroutines.
func TestConcurrentUseAndClose(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "a", "value one")
	v := fields(t, "value")
	var wg sync.WaitGroup
	closing := make(chan struct{})
	closeOnce := sync.OnceFunc(func() { close(closing); s.Close() })
	for range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				sec, err := s.Get(context.Background(), "a", 0)
				sec.Destroy()
				if err == nil && n%4 == 0 {
					_, err = s.Put(context.Background(), "a", v, store.Any)
				}
				if err != nil {
					select {
					case <-closing:
						if !errors.Is(err, store.ErrUnavailable) {
							t.Error(err)
						}
					default:
						t.Error(err)
					}
					return
				}
				if n == 10 {
					closeOnce()
				}
			}
		})
	}
	wg.Wait()
}
