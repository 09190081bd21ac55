package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// faulty is an output in memory that fails as told.
type faulty struct {
	mu       sync.Mutex
	data     []byte
	off      int
	room     int // bytes that still fit; -1: any number
	syncErr  error
	undoErr  error
	beginErr error
	block    chan struct{} // if not nil, a write waits for it
}

func (o *faulty) begin(bool) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.off = len(o.data)
	return false, o.beginErr
}

func (o *faulty) Write(b []byte) (int, error) {
	if o.block != nil {
		<-o.block
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := len(b), error(nil)
	if o.room >= 0 && n > o.room {
		n, err = o.room, syscall.ENOSPC
	}
	if o.room >= 0 {
		o.room -= n
	}
	o.data = append(o.data, b[:n]...)
	return n, err
}

func (o *faulty) sync() error { return o.syncErr }

func (o *faulty) undo() error {
	if o.undoErr == nil {
		o.data = o.data[:o.off]
	}
	return o.undoErr
}

func (o *faulty) Close() error { return nil }

// sinkOn runs a File on an output.
func sinkOn(t *testing.T, o output) *File {
	f := &File{name: "audit.file x", now: time.Now, queue: make(chan *request), closing: make(chan struct{}),
		done: make(chan struct{}), chain: Chain{Boot: "b"}, out: o}
	f.head.Store(&Head{})
	go f.run()
	t.Cleanup(func() { f.Close() })
	return f
}

func TestAFailedWriteLeavesNoBrokenChain(t *testing.T) {
	line := len((func() []byte { l, _ := lines("b", 1); return []byte(l[0]) })())
	for name, undo := range map[string]error{"undone": nil, "completed": syscall.EPERM} {
		for room := range 2 * line {
			o := &faulty{room: room, undoErr: undo}
			f := sinkOn(t, o)
			var ok []Head
			for range 5 {
				if h, err := f.Append(t.Context(), Event{Event: "key.loaded", Key: "openai", Version: 1, Outcome: "ok"}); err == nil {
					ok = append(ok, h)
				} else if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				} else if len(ok) > 0 && f.Head() != ok[len(ok)-1] {
					t.Fatalf("%s, %d bytes: head %v after a failure", name, room, f.Head())
				}
			}
			o.room = -1
			ok = append(ok, add(t, f, "recovered"), add(t, f, "again"))
			f.Close()
			if r := verify(t, string(o.data), ok...); !r.OK() || len(r.Chains) != 1 || r.Foreign != 0 {
				t.Fatalf("%s, %d bytes: %+v\n%s", name, room, r, o.data)
			} else if room == 0 && r.Entries != len(ok) {
				t.Fatalf("%s: of what was not written at all, %d entries came back", name, r.Entries-len(ok))
			}
		}
	}
}

func TestAFailedSyncIsAFailure(t *testing.T) {
	for name, undo := range map[string]error{"undone": nil, "kept": syscall.EPERM} {
		o := &faulty{room: -1, undoErr: undo}
		f := sinkOn(t, o)
		first := add(t, f, "one")
		o.syncErr = syscall.EIO
		if _, err := f.Append(t.Context(), Event{Event: "two"}); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", name, err)
		}
		if f.Head() != first {
			t.Errorf("%s: head %v is ahead of what is known to be there", name, f.Head())
		}
		o.syncErr = nil
		third := add(t, f, "three")
		f.Close()
		if r := verify(t, string(o.data), first, third); !r.OK() || r.Entries != map[string]int{"undone": 2, "kept": 3}[name] {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestAFailedBeginWritesNothing(t *testing.T) {
	o := &faulty{room: -1, beginErr: syscall.EACCES}
	f := sinkOn(t, o)
	if _, err := f.Append(t.Context(), Event{Event: "one"}); !errors.Is(err, syscall.EACCES) || len(o.data) != 0 {
		t.Errorf("%v", err)
	}
	o.beginErr = nil
	if h := add(t, f, "one"); h.Seq != 1 {
		t.Errorf("%v", h)
	}
}

// Random failures of every kind: whatever was confirmed is there, in one chain.
func TestRandomFailures(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		o := &faulty{room: -1}
		f := sinkOn(t, o)
		var ok []Head
		for range 60 {
			o.room, o.syncErr, o.undoErr, o.beginErr = -1, nil, nil, nil
			switch rnd.IntN(5) {
			case 0:
				o.room = rnd.IntN(600)
			case 1:
				o.syncErr = syscall.EIO
			case 2:
				o.beginErr = syscall.EIO
			}
			if rnd.IntN(2) == 0 {
				o.undoErr = syscall.EPERM
			}
			if h, err := f.Append(t.Context(), Event{Event: "x", Reason: strings.Repeat("r", rnd.IntN(300))}); err == nil {
				ok = append(ok, h)
			}
		}
		o.room, o.syncErr, o.beginErr = -1, nil, nil
		ok = append(ok, add(t, f, "last"))
		f.Close()
		if r := verify(t, string(o.data), ok...); !r.OK() || len(r.Chains) != 1 || r.Foreign+r.Torn != 0 {
			t.Fatalf("seed %d: %+v\n%s", seed, r, o.data)
		}
	}
}

func TestAppendIsBoundedByItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &faulty{room: -1, block: make(chan struct{})}
		f := sinkOn(t, o)
		writing, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := f.Append(writing, Event{Event: "stuck"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		// The writer is still in that write: the next one cannot even hand over its entry.
		waiting, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.Append(waiting, Event{Event: "never"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("took %v", took)
		}
		if err := f.Close(); err == nil || time.Since(start) != 2*time.Second+closeWait {
			t.Errorf("Close waited until %v: %v", time.Since(start), err)
		}
		close(o.block)
		<-f.done
		if r := verify(t, string(o.data)); !r.OK() || r.Entries != 1 || bytes.Contains(o.data, []byte("never")) {
			t.Errorf("%+v\n%s", r, o.data)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.Append(gone, Event{Event: "x"}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// An entry whose caller gave up before it was written is not written at all.
func TestAnAbandonedEntryIsNotWritten(t *testing.T) {
	o := &faulty{room: -1}
	f := &File{name: "x", now: time.Now, chain: Chain{Boot: "b"}, out: o}
	f.head.Store(&Head{})
	r := &request{event: Event{Event: "abandoned"}, done: make(chan result, 1)}
	r.state.Store(true)
	if _, err := f.commit([]*request{r}); err != nil || len(o.data) != 0 {
		t.Errorf("%v %s", err, o.data)
	}
	kept := &request{event: Event{Event: "kept"}, done: make(chan result, 1)}
	heads, err := f.commit([]*request{r, kept})
	if err != nil || heads[1].Seq != 1 || bytes.Contains(o.data, []byte("abandoned")) {
		t.Errorf("%v %v %s", heads, err, o.data)
	}
}

// helperAppend is the process that the tests below start and kill. With
// AUDIT_TEST_LIMIT it first meets a file size limit in the middle of a line, as a disk that
// is full for a while.
func helperAppend(path string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(3)
		}
	}
	f, err := Open(path, Options{})
	fail(err)
	limited := os.Getenv("AUDIT_TEST_LIMIT") != ""
	if limited {
		signal.Ignore(syscall.SIGXFSZ)
		var old syscall.Rlimit
		fail(syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
		fail(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 5000, Max: old.Max}))
		defer func() { fail(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)) }()
		for range 3 {
			for err == nil {
				_, err = f.Append(context.Background(), Event{Event: "filling"})
			}
			if !errors.Is(err, syscall.EFBIG) {
				fail(fmt.Errorf("the limit gave %w", err))
			}
			st, serr := os.Stat(path)
			fail(serr)
			fmt.Println("full", st.Size())
			err = nil
		}
		fail(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old))
	}
	for i := 0; !limited || i < 3; i++ {
		h, err := f.Append(context.Background(), Event{Event: "appending"})
		fail(err)
		fmt.Println(h)
	}
	fail(f.Close())
	os.Exit(0)
}

func helper(t *testing.T, env ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

func TestFileThroughAFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	out, err := helper(t, "AUDIT_TEST_APPEND="+path, "AUDIT_TEST_LIMIT=1").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var heads []Head
	full := map[string]bool{}
	for l := range strings.Lines(string(out)) {
		if size, ok := strings.CutPrefix(l, "full "); ok {
			full[size] = true
		} else if h, err := ParseHead(l); err != nil {
			t.Fatal(err)
		} else {
			heads = append(heads, h)
		}
	}
	if len(full) != 1 || full["5000\n"] {
		t.Errorf("sizes while full: %v: the torn line should be taken back each time", full)
	}
	if r := verifyFile(t, path, heads...); !r.OK() || len(heads) != 3 || r.Torn+r.Foreign != 0 {
		t.Errorf("%+v", r)
	}
}

func TestFileThroughKills(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	var confirmed []Head
	for round := range 8 {
		cmd := helper(t, "AUDIT_TEST_APPEND="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 64<<10)
		n, err := out.Read(said) // it has begun
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "in use") {
				t.Errorf("while another process writes: %v", err)
			}
		}
		more, _ := out.Read(said[n:])
		cmd.Process.Kill()
		cmd.Wait()
		for _, l := range strings.SplitAfter(string(said[:n+more]), "\n") {
			if h, err := ParseHead(l); err == nil && strings.HasSuffix(l, "\n") {
				confirmed = append(confirmed, h)
			}
		}
	}
	f := open(t, path, Options{})
	confirmed = append(confirmed, add(t, f, "after"))
	r := verifyFile(t, path, confirmed...)
	if !r.OK() || len(r.Chains) != 1 || len(confirmed) < 2 {
		t.Errorf("%d confirmed, %d entries: %v", len(confirmed), r.Entries, r.Problems)
	}
}
