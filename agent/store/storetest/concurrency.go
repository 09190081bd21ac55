package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

const writers = 12

// together calls f from many goroutines that start at once.
func together(f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range writers {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

// each makes one value a writer, before the writers start.
func (t *suite) each(format string) []map[string]*secret.Value {
	all := make([]map[string]*secret.Value, writers)
	for i := range all {
		all[i] = t.values(fields{"k": fmt.Sprintf(format, i)})
	}
	return all
}

var concurrencyTests = []test{
	{"of many who write with cas 0 exactly one wins", func(t *suite) {
		mine := t.each("writer %d")
		for round := range 5 {
			path := fmt.Sprintf("race/%d", round)
			errs := make([]error, writers)
			together(func(i int) { _, errs[i] = t.s.Put(t.Context(), path, mine[i], 0) })
			winner := t.winner(path, errs)
			t.keeps(path, 1)
			t.holds(path, 0, fields{"k": fmt.Sprintf("writer %d", winner)})
		}
	}},
	{"of many who write on one version exactly one wins", func(t *suite) {
		mine := t.each("writer %d")
		t.put("race", fields{"k": "zero", "kept": "yes"}, 0)
		for version := 1; version <= 4; version++ {
			write := t.s.Put
			if version%2 == 1 {
				write = t.s.Patch
			}
			errs := make([]error, writers)
			together(func(i int) { _, errs[i] = write(t.Context(), "race", mine[i], version) })
			winner := t.winner("race", errs)
			if m := t.metadata("race"); m.Current != version+1 {
				t.Errorf("after the race for version %d the current one is %d", version+1, m.Current)
			}
			if got, _ := t.get("race", 0); got["k"] != fmt.Sprintf("writer %d", winner) {
				t.Errorf("version %d holds %q, writer %d won", version+1, got["k"], winner)
			}
		}
	}},
	{"of many who destroyed and write with cas 0 none wins", func(t *suite) {
		mine := t.each("writer %d")
		t.unreadable(func(path string) {
			errs := make([]error, writers)
			together(func(i int) { _, errs[i] = t.s.Put(t.Context(), path, mine[i], 0) })
			for _, err := range errs {
				t.fails(err, store.ErrConflict, path)
			}
		})
	}},
	{"writers who read, check and try again lose nothing", func(t *suite) {
		const rounds = 3
		t.ok(t.s.SetMetadata(t.Context(), "count", nil, 2*writers*rounds))
		mine := t.each("writer %d")
		got := make([][]int, writers)
		together(func(i int) {
			for len(got[i]) < rounds {
				m, err := t.s.Metadata(t.Context(), "count")
				if err != nil {
					t.Errorf("Metadata: %v", err)
					return
				}
				v, err := t.s.Put(t.Context(), "count", mine[i], m.Current)
				if errors.Is(err, store.ErrConflict) {
					continue
				}
				if err != nil {
					t.Errorf("Put: %v", err)
					return
				}
				got[i] = append(got[i], v.Number)
			}
		})
		t.contiguous("count", slices.Concat(got...), writers*rounds)
		for i, numbers := range got {
			for _, n := range numbers {
				t.holds("count", n, fields{"k": fmt.Sprintf("writer %d", i)})
			}
		}
	}},
	{"writers with Any each get a version of their own", func(t *suite) {
		t.ok(t.s.SetMetadata(t.Context(), "any", nil, 2*writers))
		mine := t.each("writer %d")
		got := make([]int, writers)
		together(func(i int) {
			v, err := t.s.Put(t.Context(), "any", mine[i], store.Any)
			if err != nil {
				t.Errorf("Put: %v", err)
			}
			got[i] = v.Number
		})
		t.contiguous("any", slices.Clone(got), writers)
		for i, n := range got {
			t.holds("any", n, fields{"k": fmt.Sprintf("writer %d", i)})
		}
	}},
	{"patches of different fields all stay", func(t *suite) {
		want := fields{"first": "here"}
		t.put(one, want, 0)
		mine := make([]map[string]*secret.Value, writers)
		for i := range mine {
			name := fmt.Sprintf("field-%d", i)
			want[name] = "of its own"
			mine[i] = t.values(fields{name: want[name]})
		}
		together(func(i int) {
			if _, err := t.s.Patch(t.Context(), one, mine[i], store.Any); err != nil {
				t.Errorf("Patch: %v", err)
			}
		})
		t.holds(one, 0, want)
	}},
	{"paths do not disturb each other", func(t *suite) {
		mine := t.each("writer %d")
		together(func(i int) {
			path := fmt.Sprintf("own/%d", i)
			for n := range 3 {
				if v, err := t.s.Put(t.Context(), path, mine[i], n); err != nil || v.Number != n+1 {
					t.Errorf("%s: version %d, %v", path, v.Number, err)
				}
			}
		})
		for i := range writers {
			t.keeps(fmt.Sprintf("own/%d", i), 1, 2, 3)
		}
	}},
	{"a reader sees whole versions only", func(t *suite) {
		const rounds = 15
		t.ok(t.s.SetMetadata(t.Context(), one, nil, 2*rounds))
		var versions []map[string]*secret.Value
		for n := range rounds {
			versions = append(versions, t.values(fields{"a": fmt.Sprint(n + 1), "b": fmt.Sprint(n + 1)}))
		}
		_, err := t.s.Put(t.Context(), one, versions[0], 0)
		t.ok(err)
		done := make(chan struct{})
		t.Cleanup(func() { <-done })
		go func() {
			defer close(done)
			for n := 1; n < rounds; n++ {
				if _, err := t.s.Put(t.Context(), one, versions[n], n); err != nil {
					t.Errorf("Put: %v", err)
				}
			}
		}()
		last := 0
		for over := false; !over; {
			select {
			case <-done:
				over = true
			default:
			}
			f, v := t.get(one, 0)
			if f["a"] != f["b"] || f["a"] != fmt.Sprint(v.Number) {
				t.Errorf("version %d reads as %v", v.Number, f)
			}
			if v.Number < last {
				t.Errorf("version %d after version %d", v.Number, last)
			}
			last = v.Number
		}
		if last != rounds {
			t.Errorf("the last version read is %d, want %d", last, rounds)
		}
	}},
}

// winner checks that one of many succeeded and the others were told of a conflict.
func (t *suite) winner(path string, errs []error) int {
	t.Helper()
	winner := -1
	for i, err := range errs {
		switch {
		case err != nil:
			t.fails(err, store.ErrConflict, path)
		case winner >= 0:
			t.Errorf("%s: writers %d and %d both won", path, winner, i)
		default:
			winner = i
		}
	}
	if winner < 0 {
		t.Fatalf("%s: nobody won", path)
	}
	return winner
}

// contiguous checks that version numbers are 1 to n, each once, and that the store tells the same.
func (t *suite) contiguous(path string, got []int, n int) {
	t.Helper()
	want := make([]int, n)
	for i := range want {
		want[i] = i + 1
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s: versions %v were written, want 1 to %d", path, got, n)
	}
	t.keeps(path, want...)
}
