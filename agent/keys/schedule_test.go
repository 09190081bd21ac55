package keys

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

func TestSchedule(t *testing.T) {
	o := newOperator(t)
	if err := o.Schedule(t.Context(), "openai", time.Hour); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a key that is not there: %v", err)
	}
	o.add("openai", 1, Meta{Service: "checkout"})
	o.trail.told()
	for _, every := range []time.Duration{time.Minute, -time.Hour, 1} {
		if err := o.Schedule(t.Context(), "openai", every); err == nil || !strings.Contains(err.Error(), "1h") {
			t.Errorf("every %v: %v", every, err)
		}
	}
	if err := o.Schedule(t.Context(), "openai", 720*time.Hour); err != nil {
		t.Fatal(err)
	}
	if md := o.metadata("openai"); md.Custom["rotate_every"] != "720h0m0s" || md.Custom["service"] != "checkout" || md.MaxVersions != 100 {
		t.Errorf("%+v", md)
	}
	if got := o.trail.told(); !slices.Equal(got, []string{"key.schedule intent openai 0", "key.schedule ok openai 0"}) {
		t.Errorf("%q", got)
	}
	i, err := o.Show(t.Context(), "openai")
	if err != nil || i.RotateEvery != "720h0m0s" || !i.LastRotated.Equal(i.Versions[0].Created) || i.NextDue.Sub(i.LastRotated) > 720*time.Hour || i.NextDue.Sub(i.LastRotated) < 719*time.Hour {
		t.Errorf("%+v, %v", i, err)
	}
	if err := o.Schedule(t.Context(), "openai", 720*time.Hour); err != nil || len(o.trail.told()) != 0 {
		t.Errorf("what is so already: %v", err)
	}
	o.trail.before = func(audit.Event) error { return errors.New("the disk is full") }
	if err := o.Schedule(t.Context(), "openai", time.Hour); err == nil || o.metadata("openai").Custom["rotate_every"] != "720h0m0s" {
		t.Errorf("without its entry: %v", err)
	}
	o.trail.before = nil
	if err := o.Schedule(t.Context(), "openai", 0); err != nil {
		t.Fatal(err)
	}
	if c := o.metadata("openai").Custom; len(c) != 4 {
		t.Errorf("%v", c)
	}
	o.trail.told()
	o.store.before = func(string) error { return store.ErrForbidden }
	if err := o.Schedule(t.Context(), "openai", time.Hour); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("%v", err)
	}
	if got := o.trail.told(); !slices.Equal(got, []string{"key.schedule intent openai 0", "key.schedule failed openai 0"}) {
		t.Errorf("%q", got)
	}
}

func TestAScheduleThatIsNone(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	for _, text := range []string{"30d", "10m", "soon", "-720h"} {
		custom := o.metadata("openai").Custom
		custom["rotate_every"] = text
		if err := o.store.SetMetadata(t.Context(), o.Scope.Path("openai"), custom, 0); err != nil {
			t.Fatal(err)
		}
		i, err := o.Show(t.Context(), "openai")
		if err != nil || i.RotateEvery != "" || !i.NextDue.IsZero() || len(i.Notes) != 1 || !strings.Contains(i.Notes[0], text) {
			t.Errorf("%s: %+v, %v", text, i, err)
		}
	}
	custom := o.metadata("openai").Custom
	custom["environment"] = "staging"
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("openai"), custom, 0); err != nil {
		t.Fatal(err)
	}
	if err := o.Schedule(t.Context(), "openai", time.Hour); err == nil || !strings.Contains(err.Error(), `"staging"`) {
		t.Errorf("another environment's: %v", err)
	}
}

func TestDue(t *testing.T) {
	last := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	i := Info{ID: "prod.px_acme.openai", RotateEvery: "720h0m0s", LastRotated: last}
	at, due := Due(i, last)
	if due || at.After(last.Add(720*time.Hour)) || at.Before(last.Add(719*time.Hour)) {
		t.Errorf("due at %v: %v", at, due)
	}
	if _, due := Due(i, at.Add(-time.Millisecond)); due {
		t.Error("due before its time")
	}
	for _, now := range []time.Time{at, at.Add(time.Hour), at.AddDate(1, 0, 0)} {
		if again, due := Due(i, now); !due || !again.Equal(at) {
			t.Errorf("at %v: %v, %v", now, again, due)
		}
	}
	// However many were missed, after one rotation the next is a period away.
	after := i
	after.LastRotated = at.AddDate(1, 0, 0)
	if _, due := Due(after, at.AddDate(1, 0, 1)); due {
		t.Error("a missed rotation is caught up twice")
	}
	open := i
	open.Rotation = &Rotation{}
	if _, due := Due(open, at.AddDate(1, 0, 0)); due {
		t.Error("a second rotation beside one that is under way")
	}
	for _, none := range []Info{{}, {RotateEvery: "720h"}, {RotateEvery: "1m", LastRotated: last}, {RotateEvery: "x", LastRotated: last}} {
		if at, due := Due(none, at.AddDate(1, 0, 0)); due || !at.IsZero() {
			t.Errorf("%+v: %v, %v", none, at, due)
		}
	}
}

// Keys with one period are due one after the other, each always at its own time.
func TestKeysAreNotAllDueAtOnce(t *testing.T) {
	last := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for every, most := range map[time.Duration]time.Duration{time.Hour: 6 * time.Minute, 720 * time.Hour: time.Hour} {
		var buckets [10]int
		for n := range 1000 {
			i := Info{ID: fmt.Sprintf("prod.px_%d.openai", n), RotateEvery: every.String(), LastRotated: last}
			at, _ := Due(i, last)
			early := last.Add(every).Sub(at)
			if early < 0 || early >= most {
				t.Fatalf("every %v: due %v before its time", every, early)
			}
			buckets[early*10/most]++
		}
		for _, n := range buckets {
			if n < 50 || n > 150 {
				t.Errorf("every %v: %v", every, buckets)
			}
		}
	}
}

func TestTheLastRotation(t *testing.T) {
	created := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	md := &store.Metadata{Versions: []store.Version{{Number: 1, Created: created.Add(-time.Hour)}, {Number: 2, Created: created}}}
	for started, want := range map[time.Duration]time.Duration{time.Minute: time.Minute, -time.Minute: 0} {
		var i Info
		i.schedule(md, &rotation.Record{Phase: rotation.PhaseDone, StartedAt: created.Add(started)})
		if !i.LastRotated.Equal(created.Add(want)) {
			t.Errorf("%v", i.LastRotated)
		}
	}
	var i Info
	i.schedule(md, &rotation.Record{Phase: rotation.PhaseRolledBack, StartedAt: created.Add(time.Minute)})
	if !i.LastRotated.Equal(created) {
		t.Errorf("%v", i.LastRotated)
	}
}

// A scheduled rotation that nobody did shows.
func TestOverdueSchedules(t *testing.T) {
	last := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	i := Info{ID: "prod.px_acme.openai", RotateEvery: "2h0m0s", LastRotated: last}
	at, _ := Due(i, last)
	i.overdue(&rotation.Record{}, at.Add(dueSlack))
	if len(i.Overdue) != 0 {
		t.Errorf("%q", i.Overdue)
	}
	i.overdue(&rotation.Record{}, at.Add(dueSlack+1))
	if len(i.Overdue) != 1 || !strings.Contains(i.Overdue[0], at.Format(time.RFC3339)) {
		t.Errorf("%q", i.Overdue)
	}
}
