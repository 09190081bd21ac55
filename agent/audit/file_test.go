package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("AUDIT_TEST_APPEND"); path != "" {
		helperAppend(path)
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, path string, o Options) *File {
	t.Helper()
	f, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func add(t *testing.T, f *File, event string) Head {
	t.Helper()
	h, err := f.Append(t.Context(), Event{Event: event})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func verifyFile(t *testing.T, path string, anchors ...Head) Report {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return verify(t, string(b), anchors...)
}

func TestFileContinuesItsChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	f := open(t, path, Options{Boot: "one", Now: func() time.Time { return epoch }})
	if f.Head() != (Head{}) || f.Boot() != "one" {
		t.Errorf("a new file stands at %v", f.Head())
	}
	first := add(t, f, "agent.started")
	second := add(t, f, "agent.stopped")
	if f.Head() != second {
		t.Errorf("head %v, want %v", f.Head(), second)
	}
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if _, err := f.Append(t.Context(), Event{Event: "x"}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	g := open(t, path, Options{})
	if g.Head() != second || len(g.Boot()) != 32 || g.Boot() == f.Boot() {
		t.Errorf("continued at %v by boot %q", g.Head(), g.Boot())
	}
	third := add(t, g, "agent.started")
	r := verifyFile(t, path, first, second, third)
	if !r.OK() || r.Entries != 3 || r.Torn != 0 || len(r.Chains) != 1 || len(r.Chains[0].Boots) != 2 {
		t.Errorf("%+v", r)
	}
	if _, err := g.Append(t.Context(), Event{}); err == nil {
		t.Error("an event without a name is accepted")
	}
}

func TestFileAfterACrashAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	ls, es := lines("old", 3)
	whole := strings.Join(ls, "")
	for cut := range len(whole) + 1 {
		path := filepath.Join(dir, fmt.Sprint(cut))
		if err := os.WriteFile(path, []byte(whole[:cut]), 0o600); err != nil {
			t.Fatal(err)
		}
		f := open(t, path, Options{Boot: "new"})
		head := add(t, f, "agent.started")
		f.Close()
		atEnd := cut == 0 || whole[cut-1] == '\n' || cut < len(whole) && whole[cut] == '\n'
		r := verifyFile(t, path, head)
		if want := 1; !r.OK() || atEnd && r.Torn != 0 || !atEnd && r.Torn != want {
			t.Fatalf("cut at %d: %+v", cut, r)
		}
		complete := strings.Count(whole[:cut], "\n")
		if cut < len(whole) && whole[cut] == '\n' {
			complete++
		}
		if complete > 0 {
			if r := verifyFile(t, path, es[complete-1].Head()); !r.OK() {
				t.Fatalf("cut at %d: what was whole is not part of the chain: %+v", cut, r)
			}
		}
		b, _ := os.ReadFile(path)
		if !bytes.HasPrefix(b, []byte(whole[:cut])) {
			t.Fatalf("cut at %d: what was found was changed", cut)
		}
		if r := verify(t, strings.Replace(string(b), "new", "nEw", 1)); r.OK() {
			t.Fatalf("cut at %d: an edit after it passes", cut)
		}
		// And a crash in the middle of resuming.
		again := path + "-again"
		for n := cut; n < len(b) && cut%60 == 7; n += 37 {
			if err := os.WriteFile(again, b[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			g := open(t, again, Options{Boot: "newer"})
			h := add(t, g, "agent.started")
			g.Close()
			if r := verifyFile(t, again, h); !r.OK() {
				t.Fatalf("cut at %d, then at %d: %+v", cut, n, r)
			}
		}
	}
	path := filepath.Join(dir, "zeros")
	os.WriteFile(path, []byte(whole[:len(whole)-50]+strings.Repeat("\x00", 49)), 0o600)
	f := open(t, path, Options{})
	if r := verifyFile(t, path, add(t, f, "x"), es[1].Head()); !r.OK() || r.Torn != 1 {
		t.Errorf("after zeros: %+v", r)
	}
}

func TestOpenReadsOnlyTheTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	c, b := Chain{Boot: "b"}, []byte(nil)
	for range 2000 { // 3 MB
		var e Entry
		c, e = c.Next(Event{Event: "x", Reason: strings.Repeat("r", 1500)}, epoch)
		b = append(e.AppendJSON(b), '\n')
	}
	torn := lineStart + strings.Repeat(" ", 700<<10)
	if err := os.WriteFile(path, append(b, torn...), 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, path, Options{})
	if f.Head() != c.Head {
		t.Fatalf("stands at %v, want %v", f.Head(), c.Head)
	}
	if r := verifyFile(t, path, add(t, f, "y")); !r.OK() || r.Torn != 1 {
		t.Errorf("%+v", r)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	ls, es := lines("b", 3)
	whole := strings.Join(ls, "")
	last := es[2]
	last.Prev = es[0].Hash
	for name, c := range map[string]struct {
		make func(path string) error
		want string
	}{
		"a symbolic link": {func(p string) error {
			return errors.Join(os.WriteFile(p+".real", nil, 0o600), os.Symlink(p+".real", p))
		}, "symbolic link"},
		"a dangling link":    {func(p string) error { return os.Symlink(p+".nowhere", p) }, "symbolic link"},
		"a pipe":             {func(p string) error { return syscall.Mkfifo(p, 0o600) }, "regular file"},
		"a directory":        {func(p string) error { return os.Mkdir(p, 0o700) }, "directory"},
		"writable by others": {func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, 0o606)) }, "chmod"},
		"writable by group":  {func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, 0o660)) }, "chmod"},
		"another file":       {func(p string) error { return os.WriteFile(p, []byte("key=value\n"), 0o600) }, "no audit entry"},
		"a big other file": {func(p string) error {
			return os.WriteFile(p, bytes.Repeat([]byte("key=value\n"), 2<<20), 0o600)
		}, "no audit entry"},
		"a foreign last line": {func(p string) error { return os.WriteFile(p, []byte(whole+"{}\n"), 0o600) }, "after seq 3"},
		"an edited last entry": {func(p string) error {
			return os.WriteFile(p, []byte(ls[0]+ls[1]+strings.Replace(ls[2], `"ok"`, `"no"`, 1)), 0o600)
		}, "seq 3) was edited"},
		"a respelled last entry": {func(p string) error {
			return os.WriteFile(p, []byte(ls[0]+ls[1]+strings.Replace(ls[2], `:"ok"`, `: "ok"`, 1)), 0o600)
		}, "after seq 2"},
		"a last entry that does not follow": {func(p string) error { return os.WriteFile(p, []byte(ls[0]+ls[1]+rehash(last)), 0o600) }, "does not follow"},
		"a gap before the last":             {func(p string) error { return os.WriteFile(p, []byte(ls[0]+ls[2]), 0o600) }, "does not follow"},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := c.make(path); err != nil {
			t.Fatal(err)
		}
		read := func() (b []byte) {
			if st, _ := os.Stat(path); st != nil && st.Mode().IsRegular() {
				b, _ = os.ReadFile(path)
			}
			return b
		}
		before := read()
		f, err := Open(path, Options{})
		if err == nil {
			f.Close()
			t.Errorf("%s: opened", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "audit.file "+path) {
			t.Errorf("%s: %v, want something about %q", name, err, c.want)
		}
		if !bytes.Equal(before, read()) {
			t.Errorf("%s: was changed", name)
		}
	}
	if _, err := Open("", Options{}); err == nil {
		t.Error("an empty path is accepted")
	}
	if _, err := Open(filepath.Join(dir, "no", "such", "dir"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestFileIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	f := open(t, path, Options{})
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one: %v", err)
	}
	f.Close()
	open(t, path, Options{})
}

func TestConcurrentWritersMakeOneChain(t *testing.T) {
	const writers, each = 8, 250
	path := filepath.Join(t.TempDir(), "audit.log")
	f := open(t, path, Options{})
	heads := make([][]Head, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				h, err := f.Append(t.Context(), Event{Event: "x", Actor: fmt.Sprint(w), Version: i + 1})
				if err != nil {
					t.Error(err)
					return
				}
				heads[w] = append(heads[w], h)
			}
		})
	}
	wg.Wait()
	all := slices.Concat(heads...)
	r := verifyFile(t, path, all...)
	if !r.OK() || r.Entries != writers*each || len(r.Chains) != 1 || f.Head().Seq != writers*each {
		t.Errorf("%d entries in %d chains: %v", r.Entries, len(r.Chains), r.Problems)
	}
	for w, hs := range heads {
		if !slices.IsSortedFunc(hs, func(a, b Head) int { return int(a.Seq) - int(b.Seq) }) {
			t.Errorf("writer %d: its entries are not in its order", w)
		}
	}
}

func TestFileFollowsARotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	f := open(t, path, Options{})
	add(t, f, "one")
	second := add(t, f, "two")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	third := add(t, f, "three")
	if r := verifyFile(t, path, second); !r.OK() || r.Entries != 1 || r.Chains[0].Head != third {
		t.Errorf("the new file: %+v", r)
	}
	a, _ := os.ReadFile(path + ".1")
	b, _ := os.ReadFile(path)
	if r := verify(t, string(a)+string(b), third); !r.OK() || r.Entries != 3 {
		t.Errorf("both together: %+v", r)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	// Copied and truncated.
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	fourth := add(t, f, "four")
	if r := verifyFile(t, path, third); !r.OK() || r.Chains[0].Head != fourth {
		t.Errorf("after truncation: %+v", r)
	}
	// Replaced by something else: nothing is recorded until that is gone.
	if err := errors.Join(os.Rename(path, path+".2"), os.WriteFile(path, []byte("hello\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Append(t.Context(), Event{Event: "five"}); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("%v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r := verifyFile(t, path, add(t, f, "five"), fourth); !r.OK() {
		t.Errorf("after it went: %+v", r)
	}
	// A line that somebody else left without its end.
	g, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	g.WriteString("hello")
	g.Close()
	if r := verifyFile(t, path, add(t, f, "six"), fourth); !r.OK() || r.Foreign != 1 {
		t.Errorf("after a stranger's line: %+v", r)
	}
}

func TestStandardOutput(t *testing.T) {
	var out bytes.Buffer
	var last Head
	for _, boot := range []string{"a", "b"} {
		f := open(t, "-", Options{Boot: boot, Stdout: &out})
		add(t, f, "agent.started")
		last = add(t, f, "agent.stopped")
		f.Close()
	}
	if r := verify(t, out.String(), last); !r.OK() || len(r.Chains) != 2 || last.Seq != 2 {
		t.Errorf("%+v", r)
	}
}

func TestEventsAreScrubbedBeforeTheyAreHashed(t *testing.T) {
	var out bytes.Buffer
	f := open(t, "-", Options{Stdout: &out, Scrub: func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte("sk-secret"), []byte("[redacted]"))
	}})
	const s = "x sk-secret y"
	h, err := f.Append(t.Context(), Event{Event: s, Actor: s, Source: s, Environment: s, ProxyID: s, Key: s,
		Outcome: s, Reason: s, Detail: map[string]string{s: s}})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if strings.Contains(out.String(), "sk-secret") || strings.Count(out.String(), "[redacted]") != 10 {
		t.Errorf("%s", out.String())
	}
	if r := verify(t, out.String(), h); !r.OK() {
		t.Errorf("%+v", r)
	}
}

func BenchmarkAppend(b *testing.B) {
	f, err := Open(filepath.Join(b.TempDir(), "audit.log"), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := f.Append(context.Background(), Event{Event: "x", Key: "openai"}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
