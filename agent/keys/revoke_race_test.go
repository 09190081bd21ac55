package keys

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
)

// An answer that got lost on the way changes nothing about what was written.
func TestRevokeWhoseAnswerGotLost(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	lost := map[string]bool{}
	o.store.wrote = func(method, _ string) error {
		if lost[method] {
			return nil
		}
		lost[method] = true
		return fmt.Errorf("%s: %w", method, store.ErrUnavailable)
	}
	if r := o.revoke("openai", RevokeOptions{}); len(r.Destroyed) != 0 || len(r.Warnings) != 2 {
		t.Errorf("%+v", r)
	}
	if r := o.revoke("openai", RevokeOptions{Versions: []int{1}}); len(r.Destroyed) != 1 {
		t.Errorf("%+v", r)
	}
	o.gone("openai", "1 compromised destroyed")
}

// A rotation to what is revoked is over; one from it goes on.
func TestRevokeUnderARotation(t *testing.T) {
	for _, c := range []struct {
		version int
		written bool // the record knows that To is there
		phase   rotation.Phase
		closed  bool
	}{
		{3, true, rotation.PhaseRolledBack, true}, {3, false, rotation.PhaseRolledBack, true}, {2, true, rotation.PhaseMigrate, false}, {1, true, rotation.PhaseMigrate, false},
	} {
		o := newOperator(t)
		for n := 1; n <= 3; n++ {
			o.add("openai", n, Meta{})
		}
		r := rotation.Record{Phase: rotation.PhaseMigrate, From: o.id("openai", 2), To: o.id("openai", 3), StartedAt: o.store.Now().UTC(), Actor: "grace", Reason: "quarterly", Rest: map[string]string{"ticket": "4711"}}
		if !c.written {
			r.To.Created = time.Time{}
		}
		o.writes("openai", r)
		o.revoke("openai", RevokeOptions{Versions: []int{c.version}, Reason: "it leaked"})
		got := o.rec("openai")
		reason := "quarterly"
		if c.closed {
			reason = "version 3 was revoked: it leaked"
		}
		if got.Phase != c.phase || got.Closed != c.closed || got.Reason != reason || got.Actor != "grace" || got.Rest["ticket"] != "4711" || !got.From.Equal(r.From) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

// Whatever a rotation writes meanwhile, the revocation gets in and nothing of the rotation is lost.
func TestRevokeAgainstARotationThatWrites(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	o.writes("openai", rotation.Record{Phase: rotation.PhaseMigrate, From: o.id("openai", 1), To: rotation.ID{Number: 3}})
	beaten := 0
	o.store.before = func(method string) error {
		if method == "rotations" && beaten < 7 {
			beaten++
			m := &Manager{Store: o.store.Store, Scope: o.Scope}
			e, err := m.readRecord(t.Context(), "openai")
			if err != nil {
				return err
			}
			e.Actor = fmt.Sprint("step ", beaten)
			return m.writeRecord(t.Context(), "openai", e)
		}
		return nil
	}
	o.revoke("openai", RevokeOptions{Versions: []int{1}})
	o.gone("openai", "1 compromised destroyed", "2")
	if rec := o.rec("openai"); rec.Actor != "step 7" || rec.Phase != rotation.PhaseMigrate {
		t.Errorf("%+v", rec)
	}
}

func TestRevokeAgainstManyWriters(t *testing.T) {
	o := newOperator(t)
	for n := range 4 {
		o.add("openai", n, Meta{})
	}
	o.writes("openai", rotation.Record{Phase: rotation.PhaseMigrate, From: o.id("openai", 4), Rest: map[string]string{}})
	done := make(chan struct{})
	var writers, revokers sync.WaitGroup
	var wrote [3]int
	for w := range wrote {
		writers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				e, err := o.readRecord(t.Context(), "openai")
				if err != nil {
					t.Error(err)
					return
				}
				if e.Rest == nil {
					e.Rest = map[string]string{}
				}
				e.Rest[fmt.Sprint("writer", w)] = fmt.Sprint(wrote[w] + 1)
				if err := o.writeRecord(t.Context(), "openai", e); err == nil {
					wrote[w]++
				} else if !errors.Is(err, store.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := 1; n <= 3; n++ {
		revokers.Go(func() {
			if _, err := o.Revoke(t.Context(), "openai", RevokeOptions{Versions: []int{n}}); err != nil {
				t.Error(err)
			}
		})
	}
	revokers.Wait()
	close(done)
	writers.Wait()
	o.gone("openai", "1 compromised destroyed", "2 compromised destroyed", "3 compromised destroyed", "4")
	for w, n := range wrote {
		if got := o.rec("openai").Rest[fmt.Sprint("writer", w)]; n > 0 && got != fmt.Sprint(n) {
			t.Errorf("writer %d's last write was %d, and %q is there", w, n, got)
		}
	}
}

// A record that nobody can read does not save a key.
func TestRevokeOverARecordThatMakesNoSense(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	if _, err := store.PutText(t.Context(), o.store, "rotations/prod/px_acme/openai", map[string][]byte{"grace": []byte("[]")}, 0); err != nil {
		t.Fatal(err)
	}
	if r := o.revoke("openai", RevokeOptions{}); len(r.Warnings) != 2 || !strings.Contains(r.Warnings[0], "it was replaced") {
		t.Errorf("%q", r.Warnings)
	}
	o.gone("openai", "1 compromised destroyed")
	// Nor does one that is larger than what the store reads, be its versions in sight or not.
	for n, unseen := range []error{nil, store.ErrForbidden} {
		o.add("openai", 2+n, Meta{})
		written := false
		o.store.wrote = func(method, _ string) error {
			written = written || method == "rotations"
			return nil
		}
		o.store.read = func(method, path string) error {
			switch {
			case path != "rotations/prod/px_acme/openai" || written:
			case method == "get":
				return fmt.Errorf("%s: %w", path, store.ErrTooLarge)
			case method == "metadata":
				return unseen
			}
			return nil
		}
		if r := o.revoke("openai", RevokeOptions{}); !slices.Equal(r.Destroyed, []int{2 + n}) || !strings.Contains(r.Warnings[0], "it was replaced") {
			t.Errorf("%+v", r)
		}
		o.store.read, o.store.wrote = nil, nil
	}
}

// Killed between any two writes, what the record says is carried out by whoever comes next.
func TestRevokeKilledAnywhere(t *testing.T) {
	for n := 0; ; n++ {
		o := newOperator(t)
		v := &vendor{}
		o.issues(v)
		o.add("openai", 1, Meta{})
		o.add("openai", 2, Meta{})
		o.writes("openai", rotation.Record{Phase: rotation.PhaseMigrate, From: o.id("openai", 1), To: o.id("openai", 2), Versions: []rotation.VersionRecord{{ID: o.id("openai", 2), ProviderID: "svc_2"}}})
		revive := o.killAfter(n, false)
		_, err := o.Revoke(t.Context(), "openai", RevokeOptions{Versions: []int{2}})
		if writes := revive(); writes < n {
			if err != nil || n != 4 {
				t.Fatalf("%d writes, %v", writes, err)
			}
			break
		}
		rec := o.rec("openai")
		if n == 0 {
			if err == nil || rec.Closed || len(rec.Versions) != 1 {
				t.Fatalf("nothing was written: %v, %+v", err, rec)
			}
			continue
		}
		if err != nil {
			t.Fatalf("killed after %d writes: the record stands, and it says %v", n, err)
		}
		if recorded(rec, o.id("openai", 2)).State != rotation.Compromised || !rec.Closed || rec.Phase != rotation.PhaseRolledBack {
			t.Fatalf("killed after %d writes: %+v", n, rec)
		}
		// Not before their time: what was tried and failed waits. Another Revoke does not.
		if _, err := o.Revoke(t.Context(), "openai", RevokeOptions{Versions: []int{2}}); err != nil {
			t.Fatal(err)
		}
		o.gone("openai", "1", "2 compromised destroyed revoked")
	}
}

// The record of operations can neither stop nor delay what removes (I15).
func TestRevokeWithoutARecordOfOperations(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	o.trail.before = func(audit.Event) error { return errors.New("the disk is full") }
	r := o.revoke("openai", RevokeOptions{Versions: []int{1}})
	if len(r.Warnings) != 2 || !strings.Contains(r.Warnings[1], "the disk is full") {
		t.Errorf("%q", r.Warnings)
	}
	o.trail.before = func(e audit.Event) error {
		if e.Outcome == OutcomeIntent {
			return errors.New("the disk is full")
		}
		return nil
	}
	if r := o.revoke("openai", RevokeOptions{Versions: []int{1}}); len(r.Warnings) != 2 || !strings.Contains(r.Warnings[1], "lacks the intent") {
		t.Errorf("%q", r.Warnings)
	}
	o.Audit = nil
	o.revoke("openai", RevokeOptions{Versions: []int{2}})
	o.gone("openai", "1 compromised destroyed", "2 compromised destroyed")
}

// stuck is a record of operations that does not answer.
type stuck struct{}

func (stuck) Append(ctx context.Context, _ audit.Event) (audit.Head, error) {
	<-ctx.Done()
	return audit.Head{}, ctx.Err()
}

func inBubble(t *testing.T) *operator {
	dir := t.TempDir()
	st, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	sh, tr := &shim{Store: st}, &ledger{}
	return &operator{&Manager{Store: sh, Scope: Scope{"prod", "px_acme"}, Audit: tr}, t, sh, tr}
}

func TestRevokeWithAStuckRecordOfOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := inBubble(t)
		o.add("openai", 1, Meta{})
		o.Audit = stuck{}
		begin := time.Now()
		var destroyed time.Duration
		o.store.wrote = func(method, _ string) error {
			if method == "destroy" {
				destroyed = time.Since(begin)
			}
			return nil
		}
		r := o.revoke("openai", RevokeOptions{})
		if destroyed != 0 || len(r.Destroyed) != 1 {
			t.Errorf("destroyed after %v: %+v", destroyed, r)
		}
		if took := time.Since(begin); took > 2*recordTime {
			t.Errorf("took %v", took)
		}
		o.gone("openai", "1 compromised destroyed")
	})
}

// A store that does not answer is asked again for a while.
func TestRevokeThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := inBubble(t)
		o.add("openai", 1, Meta{})
		o.add("openai", 2, Meta{})
		begin := time.Now()
		o.store.read = func(_, path string) error {
			if time.Since(begin) < 5*time.Second {
				return fmt.Errorf("%s: %w", path, store.ErrUnavailable)
			}
			return nil
		}
		outage := func(length time.Duration) {
			o.store.before = func(method string) error {
				if method == "rotations" && time.Since(begin) < length {
					return fmt.Errorf("rotations: %w", store.ErrUnavailable)
				}
				return nil
			}
		}
		outage(10 * time.Second)
		o.revoke("openai", RevokeOptions{})
		if took := time.Since(begin); took < 10*time.Second || took > 13*time.Second {
			t.Errorf("took %v", took)
		}
		o.store.read = nil
		begin = time.Now()
		outage(time.Hour)
		if _, err := o.Revoke(t.Context(), "openai", RevokeOptions{}); !errors.Is(err, store.ErrUnavailable) || time.Since(begin) > insist+insistMost {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		// Nor does it write for ever against somebody who always writes first, or a record it may not see.
		begin = time.Now()
		o.store.before = func(method string) error {
			if method == "rotations" {
				return fmt.Errorf("rotations: %w", store.ErrConflict)
			}
			return nil
		}
		if _, err := o.Revoke(t.Context(), "openai", RevokeOptions{}); !errors.Is(err, store.ErrConflict) || time.Since(begin) > insist+insistMost {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		outage(time.Hour)
		if _, err := o.Revoke(ctx, "openai", RevokeOptions{}); err == nil || time.Since(begin) > 2*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}
