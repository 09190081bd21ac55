package keys

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/store"
)

func TestTheRecordIsOneChainThroughProcesses(t *testing.T) {
	open := sealedFile(t)
	first, second := NewTrail(open(), "prod", "boot-1"), NewTrail(open(), "prod", "boot-2")
	start := time.Now().Add(-time.Second)
	var heads []audit.Head
	for i, tr := range []*Trail{first, first, second, second, first, second} {
		heads = append(heads, must(t, tr, happened(fmt.Sprintf("event.%d", i+1))))
	}
	all, err := first.Entries(t.Context(), TrailFilter{})
	if err != nil || len(all) != 6 {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	prev := audit.Genesis("boot-1")
	for i, e := range all {
		want := happened(fmt.Sprintf("event.%d", i+1))
		if e.Seq != uint64(i+1) || e.Prev != prev || e.Head() != heads[i] || e.Event.Event != want.Event || e.Environment != "prod" || e.Actor != "ann" || e.Key != "openai" {
			t.Errorf("entry %d: %+v", i+1, e)
		}
		if e.Time.Before(start) || e.Time.After(time.Now()) {
			t.Errorf("entry %d is of %v", i+1, e.Time)
		}
		prev = e.Hash
	}
	if all[2].Boot != "boot-2" || all[4].Boot != "boot-1" {
		t.Error("an entry does not name its process")
	}
	r := unbroken(t, second, 6, heads...)
	if r.Chains[0].Head != heads[5] {
		t.Errorf("%+v", r.Chains[0])
	}
	// Another environment has a record of its own.
	if h := must(t, NewTrail(open(), "dev", "boot-1"), happened("event.1")); h.Seq != 1 {
		t.Errorf("dev begins with entry %d", h.Seq)
	}
	unbroken(t, first, 6)
}

func TestAnEventThatCannotBeRecorded(t *testing.T) {
	s := newShelf()
	tr := NewTrail(s, "prod", "boot")
	if _, err := tr.Append(t.Context(), audit.Event{}); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("an event without a name: %v", err)
	}
	if _, err := tr.Append(t.Context(), audit.Event{Event: "x", Environment: "dev"}); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("an event of another environment: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tr.Append(ctx, happened("x")); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "audit/prod/") {
		t.Errorf("a cancelled context: %v", err)
	}
	if s.writes != 0 {
		t.Errorf("%d writes", s.writes)
	}
}

// Goroutines of one process wait for each other in place of racing in the store.
func TestGoroutinesTakeTurns(t *testing.T) {
	s := newShelf()
	tr := NewTrail(s.by("one"), "prod", "boot")
	var wg sync.WaitGroup
	for i := range 40 {
		on := tr.On(s.by(fmt.Sprint("entity-", i%3)))
		wg.Go(func() {
			for range 5 {
				must(t, on, audit.Event{Event: "x", Detail: map[string]string{"entity_id": fmt.Sprint("entity-", i%3)}})
			}
		})
	}
	wg.Wait()
	unbroken(t, tr, 200)
	if s.writes != 200 {
		t.Errorf("%d writes for 200 entries", s.writes)
	}
}

func TestProcessesShareARecordOnASealedFile(t *testing.T) {
	open := sealedFile(t)
	var wg sync.WaitGroup
	for i := range 4 {
		tr := NewTrail(open(), "prod", fmt.Sprint("boot-", i))
		wg.Go(func() {
			for range 20 {
				if _, err := tr.Append(t.Context(), happened("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r := unbroken(t, NewTrail(open(), "prod", "reader"), 80)
	if len(r.Chains[0].Boots) != 4 {
		t.Errorf("%+v", r.Chains[0])
	}
}

func TestTheEndIsFoundByReadingAFewPlaces(t *testing.T) {
	s := newShelf()
	head := audit.Head{}
	for n := range 300 {
		fresh := NewTrail(s, "prod", "boot")
		head = must(t, fresh, happened("x"))
		if head.Seq != uint64(n+1) {
			t.Fatalf("entry %d is recorded as %d", n+1, head.Seq)
		}
	}
	unbroken(t, NewTrail(s, "prod", "boot"), 300, head)

	for _, n := range []int{1023, 1024, 1025, 5000, 5000 + rand.IntN(1000)} {
		s := newShelf()
		s.fill(n)
		tr := NewTrail(s, "prod", "boot")
		reads := s.counted(func() { head = must(t, tr, happened("x")) })
		if head.Seq != uint64(n+1) || reads > 60 {
			t.Errorf("after %d entries: recorded as %d after %d reads", n, head.Seq, reads)
		}
		// Where the end is known, appending reads nothing, on another identity's Store neither.
		reads = s.counted(func() { must(t, tr, happened("x")); must(t, tr.On(s.by("")), happened("x")) })
		if reads != 0 {
			t.Errorf("%d reads to append where the end is known", reads)
		}
		// Another process is far behind: it finds the end again without reading all between.
		behind := NewTrail(s, "prod", "behind")
		must(t, behind, happened("x"))
		for range 700 {
			must(t, tr, happened("x"))
		}
		reads = s.counted(func() { head = must(t, behind, happened("x")) })
		if reads > 60 || int(head.Seq) != n+705 {
			t.Errorf("%d reads to find the end again, %d; recorded as %d", reads, n+704, head.Seq)
		}
		unbroken(t, tr, n+705, head)
	}
}

// squat is an entry as somebody writes it who may append and means no good.
func squat(seq uint64) string {
	_, e := audit.Chain{Boot: "squatter", Head: audit.Head{Seq: seq - 1, Hash: strings.Repeat("0", 64)}}.Next(audit.Event{Event: "x", Environment: "prod"}, time.Now())
	return string(e.AppendJSON(nil))
}

func TestSquattersMoveNobody(t *testing.T) {
	run := func(from, to uint64) (all []uint64) {
		for ; from <= to; from++ {
			all = append(all, from)
		}
		return all
	}
	for name, squatted := range map[string][]uint64{
		"one far ahead":            {100_000},
		"where galloping looks":    {64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768},
		"in pairs":                 {63, 64, 127, 128, 255, 256, 511, 512},
		"a run as long as the gap": run(60, 80),
		"the very last":            {lastPlace, lastPlace - 1},
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{0, 1, 2, 7, 31, 37} {
				s := newShelf()
				s.fill(n)
				remembering := NewTrail(s, "prod", "boot")
				if n > 0 {
					must(t, remembering, happened("x"))
					n++
				}
				for _, seq := range squatted {
					s.by("squatter").put(seq, squat(seq))
				}
				for _, tr := range []*Trail{NewTrail(s, "prod", "fresh"), remembering} {
					n++
					if h := must(t, tr, happened("x")); h.Seq != uint64(n) {
						t.Fatalf("entry %d was recorded as %d", n, h.Seq)
					}
				}
				got := verified(t, remembering)
				if len(got) < 2 || got[0] != fmt.Sprint("missing@", n+1) || got[1] != fmt.Sprint("start@", squatted[0]) && name != "the very last" {
					t.Errorf("%v", got)
				}
			}
		})
	}
}

// When the record reaches a squatted place, it goes on behind it.
func TestTheRecordPassesSquatters(t *testing.T) {
	s := newShelf()
	s.fill(5)
	s.by("squatter").put(9, squat(9))
	s.by("squatter").put(12, "garbage")
	remembering := NewTrail(s, "prod", "boot")
	for i := range 20 {
		must(t, remembering, happened("x"))
		if i%3 == 0 {
			must(t, NewTrail(s, "prod", "fresh"), happened("x"))
		}
	}
	if got := fmt.Sprint(verified(t, remembering)); got != "[broken@9 forged@9 garbled@12]" {
		t.Errorf("%v", got)
	}
}

func TestGarbageIsSteppedOver(t *testing.T) {
	other := func(seq uint64, alter func(*audit.Entry)) string {
		e, _ := audit.ParseEntry([]byte(squat(seq)))
		alter(&e)
		return string(e.AppendJSON(nil))
	}
	for want, lay := range map[string]func(s *shelf, seq uint64){
		"garbled":   func(s *shelf, seq uint64) { s.put(seq, "hello") },
		"misplaced": func(s *shelf, seq uint64) { s.put(seq, squat(seq+1)) },
		"misplaced ": func(s *shelf, seq uint64) {
			s.put(seq, other(seq, func(e *audit.Entry) { e.Environment = "dev"; e.Hash = e.Sum() }))
		},
		"edited":  func(s *shelf, seq uint64) { s.put(seq, other(seq, func(e *audit.Entry) { e.Key = "anthropic" })) },
		"form":    func(s *shelf, seq uint64) { s.put(seq, strings.Replace(squat(seq), `,"time"`, `, "time"`, 1)) },
		"deleted": func(s *shelf, seq uint64) { s.put(seq, "x"); s.Destroy(context.Background(), tpath(seq), 1) },
		"garbled ": func(s *shelf, seq uint64) { // an entry and something beside it
			s.put(seq, squat(seq))
			s.places[tpath(seq)][0].fields["note"] = "x"
		},
		"garbled  ": func(s *shelf, seq uint64) {
			s.put(seq, strings.Repeat("x", 10))
			s.before = func(method, path string) error {
				if method == "get" && path == tpath(seq) {
					return fmt.Errorf("%s: %w", path, store.ErrTooLarge)
				}
				return nil
			}
		},
	} {
		t.Run(want, func(t *testing.T) {
			for _, n := range []int{0, 1, 6, 7} {
				s := newShelf()
				s.fill(n)
				remembering := NewTrail(s, "prod", "boot")
				must(t, remembering, happened("x"))
				n++
				if n == 1 { // at the very beginning
					n = 0
					s.Remove(t.Context(), tpath(1))
					remembering = NewTrail(s, "prod", "boot")
				}
				lay(s, uint64(n+1))
				writers := []*Trail{NewTrail(s, "prod", "fresh"), remembering, NewTrail(s, "prod", "fresh")}
				if n%2 == 0 {
					slices.Reverse(writers[:2])
				}
				for _, tr := range writers {
					must(t, tr, happened("x"))
				}
				r, err := remembering.Verify(t.Context())
				if err != nil || r.Entries != n+3 || len(r.Chains) != 1 || fmt.Sprint(problems(r)) != fmt.Sprintf("[%s@%d]", strings.TrimSpace(want), n+1) {
					t.Errorf("after %d entries: %d entries, %v, %v", n, r.Entries, r.Problems, err)
				}
				all, err := remembering.Entries(t.Context(), TrailFilter{})
				if err != nil || len(all) != n+3 {
					t.Fatalf("%d entries, %v", len(all), err)
				}
				prev := audit.Genesis(all[0].Boot)
				for _, e := range all {
					if e.Prev != prev {
						t.Errorf("entry %d hangs on %s, want %s", e.Seq, e.Prev, prev)
					}
					prev = e.Hash
				}
			}
		})
	}
}

func tpath(seq uint64) string { return fmt.Sprintf("audit/prod/%012d", seq) }

// However much garbage somebody puts there, the record goes on.
func TestALongRunOfGarbageDoesNotStopTheRecord(t *testing.T) {
	s := newShelf()
	s.fill(3)
	for seq := range uint64(3 * garbageRun) {
		s.put(4+seq, "x")
	}
	var head audit.Head
	reads := s.counted(func() { head = must(t, NewTrail(s, "prod", "fresh"), happened("x")) })
	if head.Seq != 4+3*garbageRun || reads > 60+garbageRun+readers {
		t.Errorf("recorded as %d after %d reads", head.Seq, reads)
	}
	r, err := NewTrail(s, "prod", "fresh").Verify(t.Context(), head)
	if err != nil || len(r.Problems) != 3*garbageRun || r.Entries != 4 {
		t.Errorf("%d entries, %d problems, %v", r.Entries, len(r.Problems), err)
	}
}

// What was written first counts, also where somebody wrote over it.
func TestAnEntryThatWasOverwrittenIsReadAsItWas(t *testing.T) {
	s := newShelf()
	s.fill(4)
	s.put(4, "gone")
	s.put(2, squat(2))
	s.put(1, squat(1))
	s.Destroy(t.Context(), tpath(1), 2)
	must(t, NewTrail(s, "prod", "fresh"), happened("x"))
	r, err := NewTrail(s, "prod", "fresh").Verify(t.Context())
	if err != nil || fmt.Sprint(problems(r)) != "[rewritten@1 deleted@1 rewritten@2 rewritten@4]" || r.Entries != 4 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhoeverMayNotAppendIsTold(t *testing.T) {
	s := newShelf()
	s.fill(3)
	refuse := func(what string) {
		s.before = func(method, path string) error {
			if method == what {
				return fmt.Errorf("%s: %w", path, store.ErrForbidden)
			}
			return nil
		}
	}
	for what, says := range map[string]string{"put": "may not append", "get": "may not read"} {
		refuse(what)
		for range 2 {
			_, err := NewTrail(s, "prod", "boot").Append(t.Context(), happened("key.add"))
			if !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "key.add") || !strings.Contains(err.Error(), "audit/prod/") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	s.before = nil
	unbroken(t, NewTrail(s, "prod", "boot"), 3)
}

// An answer that is lost is not taken for a write that failed, nor the other way round.
func TestALostAnswerIsLookedFor(t *testing.T) {
	for _, reason := range []error{store.ErrUnavailable, store.ErrForbidden, store.ErrConflict} {
		s := newShelf()
		tr := NewTrail(s, "prod", "boot")
		must(t, tr, happened("x"))
		lose := true
		s.before = func(method, path string) error {
			if method != "put" || !lose {
				return nil
			}
			lose = false
			entry := s.next(t, tr, "second")
			s.put(2, entry) // arrived all the same
			return fmt.Errorf("%s: %w", path, reason)
		}
		// The entry is the same only where the clock stands still.
		at := time.Now()
		s.now = func() time.Time { return at }
		if h := must(t, tr, happened("second")); h.Seq != 2 {
			t.Errorf("%v: %+v", reason, h)
		}
		must(t, tr, happened("third"))
		unbroken(t, tr, 3)
	}

	s := newShelf()
	tr := NewTrail(s, "prod", "boot")
	must(t, tr, happened("x"))
	s.before = func(method, path string) error {
		if method == "put" {
			return fmt.Errorf("%s: %w", path, store.ErrUnavailable)
		}
		return nil
	}
	if _, err := tr.Append(t.Context(), happened("lost")); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	s.before = nil
	must(t, tr, happened("second"))
	unbroken(t, tr, 2)
}

// next is the line that tr would write now.
func (s *shelf) next(t *testing.T, tr *Trail, what string) string {
	ev := happened(what)
	ev.Environment = "prod"
	e, err := tr.next(tr.remembered(), ev)
	if err != nil {
		t.Fatal(err)
	}
	return string(e.AppendJSON(nil))
}

func TestAppendGivesUpInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		tr := NewTrail(s, "prod", "boot")
		faster := func() { // somebody is always first
			s.before = func(method, path string) error {
				if method == "put" {
					s.fillNext(path)
				}
				return nil
			}
		}
		faster()
		_, err := tr.Append(t.Context(), happened("x"))
		if !errors.Is(err, store.ErrConflict) || s.writes != appendTries {
			t.Errorf("%d writes, %v", s.writes, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := tr.Append(ctx, happened("x")); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		s.before = nil
		must(t, tr, happened("x"))
		if got := verified(t, tr); len(got) != 0 {
			t.Errorf("%v", got)
		}
	})
}

// fillNext puts an entry at a path that continues the chain.
func (s *shelf) fillNext(path string) {
	s.mu.Lock()
	n := len(s.places)
	var head audit.Head
	if n > 0 {
		e, _ := audit.ParseEntry([]byte(s.places[tpath(uint64(n))][0].fields["entry"]))
		head = e.Head()
	}
	s.mu.Unlock()
	_, e := audit.Chain{Boot: "faster", Head: head}.Next(audit.Event{Event: "x", Environment: "prod"}, s.now())
	if tpath(e.Seq) == path {
		s.put(e.Seq, string(e.AppendJSON(nil)))
	}
}

func TestWaitingForATurnEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		tr := NewTrail(s, "prod", "boot")
		let := make(chan struct{})
		s.before = func(string, string) error { <-let; return nil }
		done := make(chan error, 1)
		go func() {
			_, err := tr.Append(context.Background(), happened("slow"))
			done <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tr.On(s).Append(ctx, happened("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		close(let)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
