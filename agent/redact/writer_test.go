package redact

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

func TestWriterAcrossWrites(t *testing.T) {
	s, es := knowing(t, Options{Patterns: keyPatterns})
	s.Retire(es[1])
	for _, k := range testKeys {
		line := "before " + k.value + " between " + k.value + " after sk-abcdefghijklmnopqrstuvwxyz\n"
		want := "before [redacted] between [redacted] after [redacted]\n"
		for a := range len(line) + 1 {
			for b := a; b <= len(line); b += 7 {
				var out bytes.Buffer
				w := s.Writer(&out, WhereLog)
				for _, p := range []string{line[:a], line[a:b], line[b:]} {
					if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
						t.Fatalf("Write: %d, %v", n, err)
					}
				}
				if out.String() != want {
					t.Fatalf("cut at %d and %d: %s", a, b, out.String())
				}
			}
		}
	}
}

func TestWriterWritesWholeLines(t *testing.T) {
	s, _ := knowing(t, Options{})
	var out bytes.Buffer
	w := s.Writer(&out, WhereLog)
	step := func(in, want string) {
		t.Helper()
		if _, err := w.Write([]byte(in)); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("after %q: %q, want %q", in, out.String(), want)
		}
		out.Reset()
	}
	step("one\ntwo\n", "one\ntwo\n")
	step("thr", "")
	step("ee\nfour", "three\n")
	step("", "")
	step("\n\n", "four\n\n")
	step("rest "+testKeys[0].value, "")
	if err := w.Flush(); err != nil || out.String() != "rest [redacted]" {
		t.Errorf("Flush: %q, %v", out.String(), err)
	}
	out.Reset()
	step("more\n", "more\n")
	step("end", "")
	if err := w.Close(); err != nil || out.String() != "end" {
		t.Errorf("Close: %q, %v", out.String(), err)
	}
	out.Reset()
	if err := w.Flush(); err != nil || out.Len() != 0 {
		t.Errorf("a second Flush: %q, %v", out.String(), err)
	}
}

// A line without an end is written in pieces, and no value falls between them.
func TestWriterBoundsALineWithoutEnd(t *testing.T) {
	s, es := knowing(t, Options{})
	s.Retire(es[1])
	for seed := range uint64(2) {
		in := bytes.ReplaceAll(soup(seed, 5*maxLine), []byte("\n"), nil)
		want := naiveText(in, nil, testKeys...)
		var out bytes.Buffer
		w := s.Writer(&out, WhereLog)
		r := rand.New(rand.NewPCG(seed, 9))
		kept := 0
		for at := 0; at < len(in); {
			n := min(len(in)-at, 1+r.IntN(5000))
			if _, err := w.Write(in[at : at+n]); err != nil {
				t.Fatal(err)
			}
			at += n
			kept = max(kept, len(w.buf))
		}
		if kept > maxLine+5000 {
			t.Errorf("%d bytes were kept back", kept)
		}
		if out.Len() < len(want)/2 {
			t.Errorf("only %d bytes written before the end", out.Len())
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("seed %d: the pieces are not what the whole would be", seed)
		}
	}
}

// The border of a piece falls on every place of the longest form.
func TestWriterCutsNoValue(t *testing.T) {
	s := newSet(t, Options{})
	k := testKeys[0]
	add(t, s, Label{"k", 1}, k.value, "")
	longest := referenceForms(k.value)["every byte"]
	for there := range len(longest) + 1 {
		var out bytes.Buffer
		w := s.Writer(&out, WhereLog)
		pad := strings.Repeat(".", maxLine-there)
		for _, p := range []string{pad + longest[:there], longest[there:] + "\n"} {
			if _, err := w.Write([]byte(p)); err != nil {
				t.Fatal(err)
			}
		}
		if out.String() != pad+"[redacted]\n" {
			t.Fatalf("%d bytes before the border: …%q", there, out.String()[len(pad)-5:])
		}
	}
}

// Not even one value upon the other makes the buffer grow without bound.
func TestWriterBoundsEndlessOverlaps(t *testing.T) {
	s := newSet(t, Options{})
	add(t, s, Label{"k", 1}, "abababababababababab", "")
	var out bytes.Buffer
	w := s.Writer(&out, WhereLog)
	for range 1000 {
		if _, err := w.Write([]byte(strings.Repeat("ab", 500))); err != nil {
			t.Fatal(err)
		}
		if len(w.buf) > 4*maxLine+1000 {
			t.Fatalf("%d bytes are kept", len(w.buf))
		}
	}
	if out.Len() == 0 || strings.Contains(out.String(), "abab") {
		t.Errorf("%d bytes, %.40q", out.Len(), out.String())
	}
}

// Without any value known the buffer is bounded too.
func TestWriterBoundsWithoutValues(t *testing.T) {
	s := newSet(t, Options{Patterns: keyPatterns})
	var out bytes.Buffer
	w := s.Writer(&out, WhereLog)
	long := bytes.Repeat([]byte("x"), maxLine+1)
	if _, err := w.Write(long); err != nil || out.Len() != len(long) {
		t.Errorf("%d of %d bytes written, %v", out.Len(), len(long), err)
	}
}

func TestWriterSeesSeveralLinesOfOneWrite(t *testing.T) {
	s := newSet(t, Options{})
	pem := "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nEFAASCBKcwggSjAgEAAoIBAQ\n-----END KEY-----\n"
	add(t, s, Label{"k", 1}, pem, "-----BEGIN KEY-----\n")
	var out bytes.Buffer
	w := s.Writer(&out, WhereLog)
	if _, err := w.Write([]byte("the key is\n" + pem + "and that\n")); err != nil || out.String() != "the key is\n[redacted]and that\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestWriterElsewhereAppliesNoPatterns(t *testing.T) {
	var where []string
	s := newSet(t, Options{Patterns: keyPatterns, OnHit: func(_ Label, w string) { where = append(where, w) }})
	add(t, s, Label{"k", 1}, testKeys[0].value, "")
	var out bytes.Buffer
	if _, err := s.Writer(&out, WhereAdmin).Write([]byte("hf_0123456789012345678901234567890123 " + testKeys[0].value + "\n")); err != nil {
		t.Fatal(err)
	}
	if out.String() != "hf_0123456789012345678901234567890123 [redacted]\n" || len(where) != 1 || where[0] != WhereAdmin {
		t.Errorf("%q, hits %q", out.String(), where)
	}
}

type failing struct{ err error }

func (f *failing) Write(p []byte) (int, error) { return 0, f.err }

func TestWriterReportsErrors(t *testing.T) {
	s, _ := knowing(t, Options{})
	f := &failing{errors.New("disk full")}
	w := s.Writer(f, WhereLog)
	if _, err := w.Write([]byte("one\n")); !errors.Is(err, f.err) {
		t.Errorf("%v", err)
	}
	if n, err := w.Write([]byte("no end")); n != 6 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := w.Flush(); !errors.Is(err, f.err) {
		t.Errorf("%v", err)
	}
}

func TestWriterWipesItsBuffer(t *testing.T) {
	s, _ := knowing(t, Options{})
	w := s.Writer(&bytes.Buffer{}, WhereLog)
	key := testKeys[0].value
	_, _ = w.Write([]byte("x " + key))
	old := w.buf
	_, _ = w.Write(bytes.Repeat([]byte("."), 2*cap(old)))
	if bytes.Contains(old, []byte(key[8:])) {
		t.Errorf("the buffer it outgrew still holds the value: %q", old)
	}
	_, _ = w.Write([]byte("\ny"))
	if b := w.buf[:cap(w.buf)]; bytes.Contains(b, []byte(key[8:])) {
		t.Errorf("the buffer still holds the value: %q", b)
	}
}

// OnHit may log through the very writer that found something.
func TestOnHitMayLog(t *testing.T) {
	var out bytes.Buffer
	var log *slog.Logger
	s := newSet(t, Options{OnHit: func(l Label, where string) { log.Warn("key exposed", "key", l.Key, "where", where) }})
	add(t, s, Label{"openai", 1}, testKeys[0].value, "")
	w := s.Writer(&out, WhereLog)
	log = slog.New(s.Handler(slog.NewTextHandler(w, nil)))
	if _, err := w.Write([]byte("raw " + testKeys[0].value + "\n")); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), `msg="key exposed" key=openai where=log`) {
		t.Errorf("%s", out.String())
	}
}

func TestWriterConcurrently(t *testing.T) {
	s, _ := knowing(t, Options{})
	var out bytes.Buffer
	w := s.Writer(&out, WhereLog)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				fmt.Fprintf(w, "%d %d %s\n", g, i, testKeys[g].value)
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 400 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, l := range lines {
		if !strings.HasSuffix(l, " "+Redacted) {
			t.Fatalf("%q", l)
		}
	}
}
