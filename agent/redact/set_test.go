package redact

import (
	"crypto/rand"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
)

func TestEmptySet(t *testing.T) {
	s := newSet(t, Options{})
	b := []byte("nothing is known, so nothing is looked for")
	if !s.Empty() || s.Mask(b, WhereResponse) != 0 || &s.Text(b)[0] != &b[0] {
		t.Error("an empty set does something")
	}
	st := s.NewStream(WhereResponse)
	if out := st.Next(b); &out[0] != &b[0] || len(out) != len(b) {
		t.Error("a stream of an empty set copies")
	}
	if out := st.Close(); len(out) != 0 || st.Hits() != 0 {
		t.Errorf("it held back %q", out)
	}
}

func TestAddRefuses(t *testing.T) {
	s := newSet(t, Options{})
	for _, n := range []int{0, 15, MaxValue + 1} {
		_, err := s.Add(Label{"openai", 3}, value(t, strings.Repeat("x", n)), "")
		if err == nil || !strings.Contains(err.Error(), "openai version 3") || !strings.Contains(err.Error(), fmt.Sprint(n)) || strings.Contains(err.Error(), "xxx") {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	v := value(t, testKeys[0].value)
	v.Destroy()
	if _, err := s.Add(Label{"openai", 3}, v, ""); err == nil {
		t.Error("a destroyed value was added")
	}
	if _, err := s.Add(Label{"openai", 3}, nil, ""); err == nil {
		t.Error("nil was added")
	}
	if !s.Empty() {
		t.Error("a refused value is known")
	}
}

func TestAddKeepsItsOwnCopy(t *testing.T) {
	s := newSet(t, Options{})
	v := value(t, testKeys[0].value)
	if _, err := s.Add(Label{"k", 1}, v, ""); err != nil {
		t.Fatal(err)
	}
	v.Destroy()
	if s.Mask([]byte(testKeys[0].value), WhereResponse) != 1 {
		t.Error("the caller's Destroy took the value from the set")
	}
}

func TestRetireKeepsRecognisingForItsTime(t *testing.T) {
	c := newClock()
	s, es := knowing(t, Options{Now: c.Now})
	for _, e := range es {
		s.Retire(e)
		s.Retire(e)
		if e.bytes.Use(func([]byte) {}) {
			t.Error("a retired value's bytes are there")
		}
	}
	s.Retire(nil)
	all := func(want int) {
		t.Helper()
		for _, k := range testKeys {
			for name, form := range referenceForms(k.value) {
				b := []byte("....." + form + ".....")
				if n := s.Mask(b, WhereResponse); n != want || want == 1 && strings.Trim(string(b), "*.") != "" {
					t.Errorf("%v after retirement: %s of %q: %d hits, %s", c.now.Sub(newClock().now), name, k.value, n, b)
				}
			}
		}
	}
	all(1)
	c.advance(24*time.Hour - 1)
	all(1)
	if s.Empty() {
		t.Error("empty while retired values are known")
	}
	c.advance(1)
	all(0)
	if !s.Empty() {
		t.Error("not empty when all is forgotten")
	}
	// The next change gives the memory back.
	add(t, s, Label{"new", 1}, "another-key-0123456789", "")
	for _, e := range es {
		if e.marks.Use(func([]byte) {}) {
			t.Error("a forgotten value's hashes are there")
		}
	}
}

func TestKeepIsAnOption(t *testing.T) {
	c := newClock()
	s := newSet(t, Options{Now: c.Now, Keep: time.Minute})
	s.Retire(add(t, s, Label{"k", 1}, testKeys[0].value, ""))
	c.advance(time.Minute - 1)
	if s.Mask([]byte(testKeys[0].value), WhereLog) != 1 {
		t.Error("forgotten too early")
	}
	c.advance(1)
	if s.Mask([]byte(testKeys[0].value), WhereLog) != 0 {
		t.Error("forgotten too late")
	}
}

// A reload adds what is there already and retires it again: nothing may pile up.
func TestTheSameValueAgainAndAgain(t *testing.T) {
	c := newClock()
	s := newSet(t, Options{Now: c.Now})
	last := add(t, s, Label{"k", 0}, testKeys[0].value, "")
	for i := 1; i < 50; i++ {
		c.advance(time.Minute)
		next := add(t, s, Label{"k", i}, testKeys[0].value, "")
		if n := s.Mask([]byte(testKeys[0].value), WhereLog); n != 1 {
			t.Fatalf("known twice, one occurrence counted %d times", n)
		}
		s.Retire(last)
		last = next
		if len(s.entries) != 1 {
			t.Fatalf("round %d: %d entries for one value", i, len(s.entries))
		}
	}
	s.Retire(last)
	c.advance(23 * time.Hour)
	if s.Mask([]byte(testKeys[0].value), WhereLog) != 1 {
		t.Error("the last retirement does not count")
	}
}

// A value retired under one label and live under another stays wholly known.
func TestRetireOneOfTwo(t *testing.T) {
	var got []Label
	c := newClock()
	s := newSet(t, Options{Now: c.Now, OnHit: func(l Label, _ string) { got = append(got, l) }})
	a := add(t, s, Label{"a", 1}, testKeys[0].value, "")
	add(t, s, Label{"b", 1}, testKeys[0].value, "")
	s.Retire(a)
	c.advance(48 * time.Hour)
	if s.Mask([]byte(testKeys[0].value), WhereLog) != 1 || !slices.Equal(got, []Label{{"b", 1}}) {
		t.Errorf("hits %v", got)
	}
}

// Of two retirements of one value the later one counts, in whatever order they were added.
func TestTheLaterRetirementCounts(t *testing.T) {
	for first := range 2 {
		c := newClock()
		s := newSet(t, Options{Now: c.Now})
		es := []*Entry{add(t, s, Label{"a", 1}, testKeys[0].value, ""), add(t, s, Label{"b", 1}, testKeys[0].value, "")}
		s.Retire(es[first])
		c.advance(time.Hour)
		s.Retire(es[1-first])
		c.advance(23*time.Hour + 30*time.Minute)
		if s.Mask([]byte(testKeys[0].value), WhereLog) != 1 {
			t.Errorf("entry %d retired first: forgotten with it", first)
		}
	}
}

func TestChangesWipeTheFormerIndex(t *testing.T) {
	s := newSet(t, Options{})
	e := add(t, s, Label{"a", 1}, testKeys[0].value, "")
	old := s.snap.Load().index
	add(t, s, Label{"b", 1}, testKeys[1].value, "")
	if old.Use(func([]byte) {}) {
		t.Error("a former filter is still in memory")
	}
	if e.Label() != (Label{"a", 1}) {
		t.Errorf("label %v", e.Label())
	}
}

func TestOnHit(t *testing.T) {
	type hit struct {
		l     Label
		where string
	}
	var got []hit
	s, _ := knowing(t, Options{
		OnHit:    func(l Label, where string) { got = append(got, hit{l, where}) },
		Patterns: []string{`pat-[0-9]{10}`},
	})
	want := func(w ...hit) {
		t.Helper()
		if !slices.Equal(got, w) {
			t.Errorf("OnHit %v, want %v", got, w)
		}
		got = nil
	}
	one, two := testKeys[0].value, testKeys[1].value
	s.Mask([]byte(one+two+one), WhereHeader)
	want(hit{Label{"key0", 1}, WhereHeader}, hit{Label{"key1", 2}, WhereHeader}, hit{Label{"key0", 1}, WhereHeader})
	s.Text([]byte("pat-0123456789 " + two))
	want(hit{Label{}, WhereLog}, hit{Label{"key1", 2}, WhereLog})
	st := s.NewStream(WhereResponse)
	st.Next([]byte(one[:20]))
	want()
	st.Next([]byte(one[20:]))
	want(hit{Label{"key0", 1}, WhereResponse})
	st.Close()
	want()
	if s.Hits() != 6 || st.Hits() != 1 {
		t.Errorf("%d hits, %d of the stream", s.Hits(), st.Hits())
	}
}

// Values come and go while texts are looked through: a value that is known
// throughout is never missed.
func TestChangesWhileScanning(t *testing.T) {
	s := newSet(t, Options{Patterns: []string{`pat-[0-9]{10}`}})
	add(t, s, Label{"steady", 1}, testKeys[0].value, testKeys[0].prefix)
	retired := add(t, s, Label{"retired", 1}, testKeys[1].value, testKeys[1].prefix)
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		defer stop.Store(true)
		for i := range 50 {
			v, err := secret.New([]byte(fmt.Sprintf("changing-key-%010d", i)))
			if err != nil {
				t.Error(err)
				return
			}
			e, err := s.Add(Label{"changing", i}, v, "changing-key-")
			v.Destroy()
			if err != nil {
				t.Error(err)
				return
			}
			if i == 25 {
				s.Retire(retired)
			}
			if s.Mask([]byte(fmt.Sprintf("x changing-key-%010d", i)), WhereLog) != 1 {
				t.Error("an added value is not found")
			}
			s.Retire(e)
		}
	})
	for range 3 {
		wg.Go(func() {
			text := "a " + testKeys[0].value + " b " + testKeys[1].value
			for !stop.Load() {
				if n := s.Mask([]byte(text), WhereResponse); n != 2 {
					t.Errorf("%d hits", n)
				}
				if got := string(s.Text([]byte(text))); got != "a [redacted] b [redacted]" {
					t.Errorf("text %q", got)
				}
				st := s.NewStream(WhereResponse)
				out := string(st.Next([]byte(text[:30])))
				out += string(st.Next([]byte(text[30:])))
				out += string(st.Close())
				if strings.Count(out, "*") < len(text)-6-len("sk-proj-")-len("sk-ant-api03-")-14 {
					t.Errorf("stream %q", out)
				}
			}
		})
	}
	wg.Wait()
}

func TestNothingFoundAllocatesNothing(t *testing.T) {
	s, es := knowing(t, Options{Patterns: []string{`sk-[\w-]{20,}`, `AIza[\w-]{35}`}})
	s.Retire(es[1])
	b := []byte(strings.Repeat("an ordinary line of text, a task force, a sky-blue AI: true\n", 40))
	st := s.NewStream(WhereResponse)
	st.Next(b)
	for name, f := range map[string]func(){
		"Mask":   func() { s.Mask(b, WhereResponse) },
		"Text":   func() { s.Text(b) },
		"Stream": func() { st.Next(b) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	key := []byte("x " + testKeys[0].value)
	buf := make([]byte, len(key))
	if n := testing.AllocsPerRun(100, func() {
		copy(buf, key)
		if s.Mask(buf, WhereResponse) != 1 {
			t.Error("not found")
		}
	}); n != 0 {
		t.Errorf("Mask with a hit: %v allocations", n)
	}
}

// However many values are known, ordinary text passes the filter: of a bit in so
// many, few are set. And each of them is found.
func TestManyValues(t *testing.T) {
	s := newSet(t, Options{})
	const many = 80
	var text []byte
	for i := range many {
		key := "sk-proj-" + rand.Text() + rand.Text()
		if _, err := s.Add(Label{"k", i}, value(t, key), "sk-proj-"); err != nil {
			t.Fatal(err)
		}
		text = append(text, "key: "+key+"\n"...)
	}
	if n := s.Mask(text, WhereResponse); n != many {
		t.Errorf("%d of %d values were found", n, many)
	}
	sn := s.snap.Load()
	sn.index.Use(func(b []byte) {
		set, filter := 0, sn.table(b).filter
		for _, w := range filter {
			set += bits.OnesCount64(w)
		}
		if share := float64(set) / float64(64*len(filter)); share > 1./spare {
			t.Errorf("%.1f %% of the filter's bits are set", 100*share)
		}
	})
}

// Values that are added together are known together: a snapshot for each of a
// thousand keys would make an agent's start a matter of minutes.
func TestAddsShareASnapshot(t *testing.T) {
	s := newSet(t, Options{})
	const n = 50
	var known [n]*snapshot // when Add had returned
	s.mu.Lock()            // a snapshot is being made
	var wg sync.WaitGroup
	for i := range n {
		v := value(t, fmt.Sprintf("sk-proj-fake-%040d", i))
		wg.Go(func() {
			if _, err := s.Add(Label{"k", i}, v, "sk-proj-"); err != nil {
				t.Error(err)
			}
			known[i] = s.snap.Load()
		})
	}
	for waiting := 0; waiting < n; runtime.Gosched() {
		s.coming.Lock()
		waiting = len(s.coming.entries)
		s.coming.Unlock()
	}
	s.mu.Unlock()
	wg.Wait()
	for i, sn := range known {
		if sn == nil || sn != known[0] {
			t.Errorf("value %d has a snapshot of its own", i)
		}
	}
	for i := range n {
		if s.Mask(fmt.Appendf(nil, "sk-proj-fake-%040d", i), WhereResponse) != 1 {
			t.Errorf("value %d is not known", i)
		}
	}
}
