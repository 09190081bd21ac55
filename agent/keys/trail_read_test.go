package keys

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

func TestEntriesAreChosen(t *testing.T) {
	s := newShelf()
	start := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	at := start
	s.now = func() time.Time { return at }
	tr := NewTrail(s, "prod", "boot")
	const n = 3*window + 7
	for i := range n { // one an hour
		ev := happened([]string{"key.add", "key.revoke"}[i%2])
		ev.Key, ev.Actor = fmt.Sprint("key-", i%3), fmt.Sprint("actor-", i%5)
		must(t, tr, ev)
		at = at.Add(time.Hour)
	}
	s.put(n+1, "garbage")
	s.Remove(t.Context(), tpath(100))
	hour := func(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }
	const all = n - 1
	for _, tt := range []struct {
		name        string
		f           TrailFilter
		n           int
		first, last uint64
	}{
		{"all", TrailFilter{}, all, 1, n},
		{"the newest", TrailFilter{Limit: 10}, 10, n - 9, n},
		{"more than there are", TrailFilter{Limit: 10 * n}, all, 1, n},
		{"after", TrailFilter{After: n - 3}, 3, n - 2, n},
		{"after the last", TrailFilter{After: n + 5}, 0, 0, 0},
		{"before", TrailFilter{Before: 5}, 4, 1, 4},
		{"a page back", TrailFilter{Before: 50, Limit: 20}, 20, 30, 49},
		{"between", TrailFilter{After: 90, Before: 110}, 18, 91, 109},
		{"since", TrailFilter{Since: hour(n - 10)}, 10, n - 9, n},
		{"until", TrailFilter{Until: hour(10)}, 10, 1, 10},
		{"a day", TrailFilter{Since: hour(240), Until: hour(264)}, 24, 241, 264},
		{"a key", TrailFilter{Key: "key-1", Limit: 2}, 2, n - 5, n - 2},
		{"an event", TrailFilter{Event: "key.revoke"}, n/2 - 1, 2, n - 1},
		{"an actor", TrailFilter{Actor: "actor-0", Before: 12}, 3, 1, 11},
		{"nobody", TrailFilter{Actor: "actor-9"}, 0, 0, 0},
	} {
		got, err := NewTrail(s, "prod", "reader").Entries(t.Context(), tt.f)
		if err != nil || len(got) != tt.n || tt.n > 0 && (got[0].Seq != tt.first || got[tt.n-1].Seq != tt.last) {
			t.Errorf("%s: %d entries, %v, want %d from %d to %d", tt.name, len(got), err, tt.n, tt.first, tt.last)
			continue
		}
		for i, e := range got {
			if i > 0 && e.Seq <= got[i-1].Seq {
				t.Errorf("%s: entry %d after %d", tt.name, e.Seq, got[i-1].Seq)
			}
		}
	}
	if got, err := NewTrail(newShelf(), "prod", "x").Entries(t.Context(), TrailFilter{}); err != nil || got == nil || len(got) != 0 {
		t.Errorf("an empty record: %v, %v", got, err)
	}
	// What is asked for of a long record's end costs no more than that end.
	for _, f := range []TrailFilter{{Limit: 5}, {After: n - 3}, {Since: hour(n - 3)}} {
		if reads := s.counted(func() { tr.Entries(t.Context(), f) }); reads > 2*readers {
			t.Errorf("%+v: %d reads", f, reads)
		}
	}
	s.before = func(method, path string) error {
		if method == "get" && path == tpath(n-1) {
			return fmt.Errorf("%s: %w", path, store.ErrUnavailable)
		}
		return nil
	}
	if got, err := tr.Entries(t.Context(), TrailFilter{}); !errors.Is(err, store.ErrUnavailable) || got != nil {
		t.Errorf("a store that fails: %d entries, %v", len(got), err)
	}
}

// Backdated entries do not hide what happened before them.
func TestEntriesSinceATimeAreNotHiddenByBackdating(t *testing.T) {
	s := newShelf()
	tr := NewTrail(s, "prod", "boot")
	must(t, tr, happened("the.deed"))
	head := tr.remembered()
	for range 2 * window {
		c, e := audit.Chain{Boot: "mallory", Head: audit.Head{Seq: head.seq, Hash: head.hash}}.Next(
			audit.Event{Event: "x", Environment: "prod"}, time.Now().Add(-1000*time.Hour))
		head = trailHead{c.Head.Seq, c.Head.Hash}
		s.put(e.Seq, string(e.AppendJSON(nil)))
	}
	got, err := NewTrail(s, "prod", "reader").Entries(t.Context(), TrailFilter{Since: time.Now().Add(-time.Minute)})
	if err != nil || len(got) != 1 || got[0].Event.Event != "the.deed" {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// rewrite is what somebody does who may do everything: lay a line at a place as its only version.
func rewrite(t *testing.T, s store.Store, seq uint64, line string) {
	t.Helper()
	if err := s.Remove(t.Context(), tpath(seq)); err != nil {
		t.Fatal(err)
	}
	overwrite(t, s, seq, line)
}

// overwrite lays a line over what is there.
func overwrite(t *testing.T, s store.Store, seq uint64, line string) {
	t.Helper()
	if _, err := store.PutText(t.Context(), s, tpath(seq), map[string][]byte{"entry": []byte(line)}, store.Any); err != nil {
		t.Fatal(err)
	}
}

func lineAt(t *testing.T, s store.Store, seq uint64) string {
	t.Helper()
	fields, _, err := store.GetText(t.Context(), s, tpath(seq))
	if err != nil {
		t.Fatal(err)
	}
	return string(fields["entry"])
}

// altered is a line with something changed; rehashed where whoever does it knows how.
func altered(t *testing.T, line string, rehash bool, alter func(*audit.Entry)) string {
	t.Helper()
	e, err := audit.ParseEntry([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	alter(&e)
	if rehash {
		e.Hash = e.Sum()
	}
	return string(e.AppendJSON(nil))
}

// attacks are what somebody with every right may do to a record of 9 entries,
// and what Verify says then. They work on every store.
var attacks = []struct {
	name   string
	attack func(t *testing.T, s store.Store)
	want   string // with an anchor at entry 9
}{
	{"nothing", func(*testing.T, store.Store) {}, "[]"},
	{"an edit", func(t *testing.T, s store.Store) {
		rewrite(t, s, 4, altered(t, lineAt(t, s, 4), false, func(e *audit.Entry) { e.Actor = "bob" }))
	}, "[edited@4]"},
	{"an edit with its hash", func(t *testing.T, s store.Store) {
		rewrite(t, s, 4, altered(t, lineAt(t, s, 4), true, func(e *audit.Entry) { e.Actor = "bob" }))
	}, "[broken@5]"},
	{"an edit of the newest with its hash", func(t *testing.T, s store.Store) {
		rewrite(t, s, 9, altered(t, lineAt(t, s, 9), true, func(e *audit.Entry) { e.Actor = "bob" }))
	}, "[anchor@9]"},
	{"an edit as the next version", func(t *testing.T, s store.Store) {
		overwrite(t, s, 4, altered(t, lineAt(t, s, 4), true, func(e *audit.Entry) { e.Actor = "bob" }))
	}, "[rewritten@4]"},
	{"a deletion", func(t *testing.T, s store.Store) {
		if err := s.Destroy(t.Context(), tpath(4), 1); err != nil {
			t.Fatal(err)
		}
	}, "[deleted@4]"},
	{"a removal", func(t *testing.T, s store.Store) {
		if err := s.Remove(t.Context(), tpath(4)); err != nil {
			t.Fatal(err)
		}
	}, "[missing@4 start@5]"},
	{"a swap", func(t *testing.T, s store.Store) {
		three, seven := lineAt(t, s, 3), lineAt(t, s, 7)
		rewrite(t, s, 3, seven)
		rewrite(t, s, 7, three)
	}, "[misplaced@3 misplaced@7]"},
	{"a swap with their numbers", func(t *testing.T, s store.Store) {
		three, seven := lineAt(t, s, 3), lineAt(t, s, 7)
		rewrite(t, s, 3, altered(t, seven, true, func(e *audit.Entry) { e.Seq = 3 }))
		rewrite(t, s, 7, altered(t, three, true, func(e *audit.Entry) { e.Seq = 7 }))
	}, "[broken@3 broken@4 broken@7 broken@8]"},
	{"a truncation", func(t *testing.T, s store.Store) {
		for seq := uint64(7); seq < 10; seq++ {
			if err := s.Remove(t.Context(), tpath(seq)); err != nil {
				t.Fatal(err)
			}
		}
	}, "[anchor@9]"},
	{"everything removed", func(t *testing.T, s store.Store) {
		for seq := uint64(1); seq < 10; seq++ {
			if err := s.Remove(t.Context(), tpath(seq)); err != nil {
				t.Fatal(err)
			}
		}
	}, "[anchor@9]"},
	{"a squat far ahead", func(t *testing.T, s store.Store) { rewrite(t, s, 4096, squat(4096)) }, "[missing@10 start@4096]"},
	{"a stray", func(t *testing.T, s store.Store) {
		for _, name := range []string{"note", "10", "000000000000", "0000000000010", "sub/000000000010"} {
			if _, err := store.PutText(t.Context(), s, "audit/prod/"+name, map[string][]byte{"entry": []byte(squat(10))}, 0); err != nil {
				t.Fatal(err)
			}
		}
	}, "[misplaced@0 misplaced@0 misplaced@0 misplaced@0 misplaced@0]"},
	{"a backdated entry", func(t *testing.T, s store.Store) {
		c := NewTrail(s, "prod", "mallory")
		at, err := c.seek(t.Context(), trailHead{})
		if err != nil {
			t.Fatal(err)
		}
		_, e := audit.Chain{Boot: "mallory", Head: audit.Head{Seq: at.seq, Hash: at.hash}}.Next(audit.Event{Event: "x", Environment: "prod"}, time.Now().Add(-time.Hour))
		overwrite(t, s, e.Seq, string(e.AppendJSON(nil)))
	}, "[redated@10]"},
}

// attacked tries each attack on a record of its own, which fresh opens.
func attacked(t *testing.T, fresh func(t *testing.T) store.Store) {
	for _, tt := range attacks {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			s := fresh(t)
			tr := NewTrail(s, "prod", "boot")
			var head audit.Head
			for range 9 {
				head = must(t, tr, audit.Event{Event: "key.add", Actor: "ann", Key: "openai"})
			}
			unbroken(t, tr, 9, head)
			tt.attack(t, s)
			if got := fmt.Sprint(verified(t, NewTrail(s, "prod", "reader"), head)); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
			// The record goes on after it, for whoever remembers its end and for whoever does not.
			for _, w := range []*Trail{tr, NewTrail(s, "prod", "fresh"), tr} {
				must(t, w, happened("after"))
			}
		})
	}
}

func TestVerifyNamesWhatWasDoneToASealedRecord(t *testing.T) {
	attacked(t, func(t *testing.T) store.Store { return sealedFile(t)() })
}

func TestVerifyComparesWriters(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := newShelf()
	ann, bob := s.by("entity-ann"), s.by("entity-bob")
	claims := func(entity string) audit.Event {
		ev := happened("key.add")
		if entity != "" {
			ev.Detail = map[string]string{"entity_id": entity}
		}
		return ev
	}
	tr := NewTrail(s, "prod", "boot")
	for _, w := range []struct {
		s     store.Store
		claim string
	}{
		{ann, "entity-ann"}, {bob, "entity-ann"}, {bob, "entity-bob"}, {bob, ""}, {s, "entity-ann"}, {s, ""},
	} {
		must(t, tr.On(w.s), claims(w.claim))
	}
	r, err := tr.Verify(t.Context())
	if err != nil || fmt.Sprint(problems(r)) != "[forged@2 forged@4 forged@5]" {
		t.Fatalf("%+v, %v", r, err)
	}
	if text := r.Problems[0].Text; !strings.Contains(text, "entity-ann") || !strings.Contains(text, "entity-bob") || !strings.Contains(text, "entry 2") {
		t.Errorf("%q names neither", text)
	}
	s.before = func(method, path string) error {
		if method == "metadata" {
			return fmt.Errorf("%s: %w", path, store.ErrForbidden)
		}
		return nil
	}
	if got := verified(t, tr); fmt.Sprint(got) != "[unwitnessed@0]" {
		t.Errorf("metadata that may not be read: %v", got)
	}
	for _, method := range []string{"metadata", "get", "list"} {
		s.before = func(m, path string) error {
			if m == method {
				return fmt.Errorf("%s: %w", path, store.ErrUnavailable)
			}
			return nil
		}
		if _, err := tr.Verify(t.Context()); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s fails: %v", method, err)
		}
	}
}

func TestVerifyReadsALongRecord(t *testing.T) {
	s := newShelf()
	s.fill(5000)
	r := unbroken(t, NewTrail(s, "prod", "reader"), 5000)
	if r.Lines != 5000 || r.Chains[0].Head.Seq != 5000 {
		t.Errorf("%+v", r)
	}
}

// No value of an entry is left in the arena.
func TestReadingARecordLeavesNoValues(t *testing.T) {
	s := newShelf()
	tr := NewTrail(s, "prod", "boot")
	use := func() {
		for range 50 {
			must(t, tr, happened("x"))
		}
		unbroken(t, tr, int(tr.remembered().seq))
	}
	use()
	before := secret.Stats()
	use()
	if after := secret.Stats(); after != before {
		t.Errorf("%+v before, %+v after", before, after)
	}
}
