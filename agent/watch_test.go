package agent

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/goleak"
)

// watched is a file that a WatchFile looks at, and the times it said "changed".
type watched struct {
	t       *testing.T
	file    string
	changed chan struct{}
}

func newWatched(t *testing.T, file string) *watched {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	w := &watched{t: t, file: file, changed: make(chan struct{}, 100)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		WatchFile(ctx, file, func() { w.changed <- struct{}{} })
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		goleak.VerifyNone(t, leaks)
	})
	w.notices("the first look")
	return w
}

// notices waits for a change to be said; well under the time of a tick.
func (w *watched) notices(what string) {
	w.t.Helper()
	select {
	case <-w.changed:
	case <-time.After(statEvery / 2):
		w.t.Fatalf("not noticed: %s", what)
	}
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAFileThatIsWrittenInPlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "postern.yaml")
	put(t, file, "one")
	w := newWatched(t, file)
	put(t, file, "two")
	w.notices("a write in place")
}

func TestAFileThatIsRenamedOver(t *testing.T) {
	file := filepath.Join(t.TempDir(), "postern.yaml")
	put(t, file, "one")
	w := newWatched(t, file)
	for _, text := range []string{"two", "three"} {
		put(t, file+".new", text)
		try(t, os.Rename(file+".new", file))
		w.notices("a file renamed over")
	}
	try(t, os.Remove(file))
	put(t, file, "four")
	w.notices("a file made anew")
}

// Kubernetes writes a new directory beside and swaps the link ..data to it; the
// file's own name is a link through it that never changes.
func TestAConfigMapThatIsSwapped(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		try(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		put(t, filepath.Join(dir, name, "postern.yaml"), text)
		try(t, os.Symlink(name, filepath.Join(dir, "..data_tmp")))
		try(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	version("..2026_1", "one")
	try(t, os.Symlink("..data/postern.yaml", filepath.Join(dir, "postern.yaml")))
	w := newWatched(t, filepath.Join(dir, "postern.yaml"))
	version("..2026_2", "two")
	w.notices("a swap")
	try(t, os.RemoveAll(filepath.Join(dir, "..2026_1")))
	version("..2026_3", "three")
	w.notices("another swap")
}

// clockwork is a watch whose events the test makes, on a clock of its own.
type clockwork struct {
	told           bool // there are events
	events         chan fsnotify.Event
	errs           chan error
	changed, asked atomic.Int32
}

func (c *clockwork) run(t *testing.T, file string, story func()) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if c.told {
			c.events, c.errs = make(chan fsnotify.Event), make(chan error)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			watch(ctx, file, c.events, c.errs, func() { c.asked.Add(1) }, func() { c.changed.Add(1) })
		}()
		synctest.Wait()
		story()
		cancel()
		<-done
	})
}

// after lets time pass and asserts how often the file was said to have changed so far.
func (c *clockwork) after(t *testing.T, d time.Duration, want int32) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
	if n := c.changed.Load(); n != want {
		t.Errorf("changed %d times, want %d", n, want)
	}
}

// Where no event comes (a subPath mount, no inotify instance left) a look every ten seconds does.
func TestWithoutEventsTheTickLooks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "postern.yaml")
	put(t, file, "one")
	c := &clockwork{}
	c.run(t, file, func() {
		c.after(t, 0, 1)
		put(t, file, "two")
		c.after(t, statEvery-time.Second, 1)
		c.after(t, time.Second, 2)
		c.after(t, time.Hour, 2)
		try(t, os.Remove(file))
		c.after(t, time.Hour, 2)
		put(t, file, "three")
		c.after(t, statEvery, 3)
	})
}

// Events are many, changes few: another file in the directory, new times, the
// same content again, the file gone and back as it was.
func TestWhatIsNoChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "postern.yaml")
	put(t, file, "one")
	c := &clockwork{told: true}
	c.run(t, file, func() {
		c.after(t, 0, 1)
		for _, f := range []func(){
			func() { put(t, file+".swp", "another") },
			func() { try(t, os.Chtimes(file, time.Unix(1, 0), time.Unix(1, 0))) },
			func() { put(t, file, "one") },
			func() { try(t, os.Remove(file)) },
			func() { put(t, file, "one") },
		} {
			f()
			c.events <- fsnotify.Event{Name: file, Op: fsnotify.Write}
			c.after(t, debounce, 1)
		}
		put(t, file, "two")
		c.events <- fsnotify.Event{Name: file, Op: fsnotify.Write}
		c.after(t, debounce, 2)
	})
}

// A directory that was removed took its events with it. When it is there again
// the tick finds that, and asks for events anew.
func TestADirectoryThatIsMadeAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	file := filepath.Join(dir, "postern.yaml")
	try(t, os.Mkdir(dir, 0o755))
	put(t, file, "one")
	c := &clockwork{told: true}
	c.run(t, file, func() {
		c.after(t, 0, 1)
		try(t, os.RemoveAll(dir))
		c.events <- fsnotify.Event{Name: dir, Op: fsnotify.Remove}
		c.after(t, time.Minute, 1)
		try(t, os.Mkdir(dir, 0o755))
		put(t, file, "two")
		asked := c.asked.Load()
		c.after(t, statEvery, 2)
		if n := c.asked.Load() - asked; n != 1 {
			t.Errorf("events were asked for %d times", n)
		}
	})
}

// A flood of events, from a log in the same directory say, is settled before
// the file is read, but cannot keep it from being read for ever.
func TestEventsAreSettled(t *testing.T) {
	file := filepath.Join(t.TempDir(), "postern.yaml")
	put(t, file, "one")
	c := &clockwork{told: true}
	c.run(t, file, func() {
		c.after(t, 0, 1)
		put(t, file, "two")
		for range 10 {
			c.events <- fsnotify.Event{Name: file, Op: fsnotify.Write}
			c.after(t, debounce/2, 1)
		}
		c.after(t, debounce, 2)
		put(t, file, "three")
		for range int(2*statEvery/debounce) * 2 {
			c.events <- fsnotify.Event{Name: file, Op: fsnotify.Write}
			time.Sleep(debounce / 2)
		}
		c.after(t, 0, 3)
		c.errs <- fsnotify.ErrEventOverflow
		put(t, file, "four")
		c.after(t, statEvery, 4)
		close(c.events)
		close(c.errs)
		put(t, file, "five")
		c.after(t, statEvery, 5)
	})
}

// With a real watcher: after the tick asked anew, changes are noticed at once again.
func TestEventsComeBackWithTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	try(t, os.Mkdir(dir, 0o755))
	w, err := fsnotify.NewWatcher()
	try(t, err)
	defer w.Close()
	try(t, w.Add(dir))
	try(t, os.RemoveAll(dir))
	try(t, os.Mkdir(dir, 0o755))
	try(t, w.Add(dir))
	for len(w.Events) > 0 {
		<-w.Events
	}
	put(t, filepath.Join(dir, "postern.yaml"), "two")
	timeout := time.After(5 * time.Second)
	for {
		select {
		case e := <-w.Events:
			if e.Op.Has(fsnotify.Write) {
				return
			}
		case <-timeout:
			t.Fatal("no event")
		}
	}
}
