package sync

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

func TestAKeyIsLoadedProbedRecordedAndUsed(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		a.shares("1:100")
		a.recorded("version.promoted 1 intent", "version.promoted 1 ok", "key.loaded 1 ok")
		if !isShut(a.Loaded()) || !isShut(a.Settled()) || a.Loading() || a.Status().Reason() != "" {
			t.Error("a loaded key does not say so")
		}
		l, ok := a.key.Pick(0)
		if !ok || l.Version().Field(keyring.KeyField).Digest() == "" || l.Version().Field(keyring.KeyField).Len() != len(key(1)) {
			t.Fatal("what is picked is not the key")
		}
		l.Release()
		if strings.Contains(r.logs.String(), key(1)) {
			t.Error("the key stands in the log")
		}
	})
}

func TestARotationIsPickedUpWithinPoll(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		pass(7 * time.Second)
		a.journal.told()
		r.store.write(keyPath, key(2))
		pass(5 * time.Second)
		a.shares("2:100 1:0")
		a.recorded("version.promoted 2 intent", "version.promoted 2 ok")
		pass(8*time.Second - 1)
		if a.shares("2:100 1:0"); !a.Status().Open {
			t.Error("grace runs, but the rotation is not open")
		}
		pass(1)
		a.shares("2:100")
		a.recorded("version.retired 1 ok")
		if a.retired() != 1 {
			t.Error("nobody was told that a version was wiped")
		}
		if a.Status().Open {
			t.Error("the rotation is over and open")
		}
	})
}

func TestPollingIsFasterWhileARotationIsOpen(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		r.start(nil)
		count := func() int {
			before := r.store.count(keyPath)
			pass(10 * time.Second)
			return r.store.count(keyPath) - before
		}
		if n := count(); n != 2 {
			t.Errorf("%d looks in 10 s at poll 5s", n)
		}
		r.store.write(keyPath, key(2))
		pass(5 * time.Second) // two reads: metadata, value
		if n := count(); n < 9 || n > 10 {
			t.Errorf("%d looks in the 10 s of grace", n)
		}
	})
}

func TestTheRampIsTheSameOnAllAgents(t *testing.T) {
	inBubble(t, func(r *rig) {
		ramp := func(poll time.Duration) func(*Options) {
			return func(o *Options) {
				o.Ramp = rotation.Ramp{{Weight: 1, For: 30 * time.Second}, {Weight: 10, For: time.Minute}, {Weight: 50, For: time.Minute}}
				o.Poll = poll
			}
		}
		r.store.write(keyPath, key(1))
		one, two := r.start(ramp(5*time.Second)), r.start(ramp(3*time.Second))
		pass(time.Minute)
		r.store.write(keyPath, key(2))
		begun := time.Now()
		pass(5 * time.Second)
		for _, c := range []struct {
			at   time.Duration
			want string
		}{
			{5 * time.Second, "2:1 1:99"}, {30*time.Second - 1, "2:1 1:99"}, {30 * time.Second, "2:10 1:90"},
			{90*time.Second - 1, "2:10 1:90"}, {90 * time.Second, "2:50 1:50"}, {150*time.Second - 1, "2:50 1:50"},
			{150 * time.Second, "2:100 1:0"}, {160*time.Second - 1, "2:100 1:0"}, {160 * time.Second, "2:100"},
		} {
			pass(time.Until(begun.Add(c.at)))
			one.shares(c.want)
			two.shares(c.want)
		}
	})
}

func TestARampGoesOnWhileTheStoreHangs(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(func(o *Options) { o.Ramp = rotation.Ramp{{Weight: 1, For: 30 * time.Second}}; o.Grace = time.Minute })
		a.shares("2:1 1:99")
		r.store.set(func() { r.store.hang = true })
		pass(2 * time.Second)
		before := r.store.count(keyPath)
		pass(23 * time.Second)
		a.shares("2:100 1:0")
		if n := r.store.count(keyPath) - before; n != 0 {
			t.Errorf("%d more looks while one hangs", n)
		}
		pass(time.Minute)
		a.shares("2:100")
	})
}

func TestTheStoreIsAwayAndComesBack(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(func(o *Options) { o.Grace = time.Hour })
		pass(time.Second)
		a.journal.told()
		r.store.broken("", store.ErrUnavailable)
		r.store.write(keyPath, key(2))
		pass(25 * time.Second)
		a.recorded()
		pass(10*time.Minute - 25*time.Second)
		a.shares("1:100")
		if s := a.Status(); s.Trouble != "unavailable" || s.Stale < 590 || !s.Usable {
			t.Errorf("status %+v", s)
		}
		if n := r.store.count(keyPath); n < 30 || n > 100 {
			t.Errorf("%d looks in 10 minutes of outage", n)
		}
		a.recorded("key.stale 0 began")
		if n := r.logged("the key cannot be read"); n != 1 {
			t.Errorf("the outage was logged %d times", n)
		}
		r.store.broken("", nil)
		pass(30 * time.Second)
		a.shares("2:100 1:0")
		a.recorded("key.stale 0 ended", "version.promoted 2 intent", "version.promoted 2 ok")
		if s := a.Status(); s.Trouble != "" || s.Stale > 2 {
			t.Errorf("status %+v", s)
		}
		if r.logged("can be read again") != 1 {
			t.Error("nobody was told that the store is back")
		}
		r.store.broken("", store.ErrUnavailable)
		pass(10 * time.Second)
		if n := r.logged("the key cannot be read"); n != 2 {
			t.Errorf("two outages were logged %d times", n)
		}
		if testutil.ToFloat64(r.m.reads.WithLabelValues("unavailable")) < 30 || testutil.ToFloat64(r.m.reads.WithLabelValues("ok")) < 3 {
			t.Error("reads are not counted")
		}
	})
}

func TestMaxStaleEndsTheUse(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		pass(10 * time.Second)
		a.journal.told()
		at := a.Status().LastContact.Add(time.Hour)
		r.store.broken("", store.ErrUnavailable)
		pass(time.Until(at) - 1)
		a.shares("1:100")
		pass(1)
		a.shares("")
		a.recorded("key.stale 0 began", "version.retired 1 ok", "key.expired 0 ok")
		if !a.Loading() {
			t.Error("the store will come back, and waiting is said not to help")
		}
		r.store.broken("", nil)
		pass(time.Minute)
		a.shares("1:100")
	})
}

func TestARecordLeadsTheRotation(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		one := a.key.Entries()[0].Version.ID()
		rec := rotation.Record{From: one, To: rotation.ID{Number: 2}, Ramp: rotation.Ramp{{Weight: 25, For: time.Minute}}, Grace: time.Minute, Validated: true}
		r.store.writeRecord(record, rec)
		v := r.store.write(keyPath, key(2))
		pass(10 * time.Second)
		a.shares("1:100") // ready, and held
		rec.To.Created, rec.StartedAt = v.Created, time.Now().Add(5*time.Second)
		r.store.writeRecord(record, rec)
		pass(5 * time.Second)
		a.shares("2:25 1:75")
		if r.probed() != 1 {
			t.Error("a validated version was probed again")
		}
		pass(2 * time.Minute)
		a.shares("2:100")
	})
}

func TestARecordThatCannotBeReadIsDoneWithout(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.broken(record, store.ErrForbidden)
		a := r.rotated(nil)
		pass(time.Minute)
		a.shares("2:100")
		if n := r.logged("done without"); n != 1 {
			t.Errorf("said %d times", n)
		}
		r.store.broken(record, nil)
		pass(time.Minute)
		r.store.broken(record, store.ErrForbidden) // again
		pass(time.Minute)
		if n := r.logged("done without"); n != 2 {
			t.Errorf("said %d times", n)
		}
		r.store.broken(record, nil)
		r.store.writeFields(record, map[string]string{"ramp": "steep"})
		pass(time.Minute)
		if n := r.logged("done without"); n != 3 || !strings.Contains(r.logs.String(), "ramp: cannot be read") {
			t.Errorf("a malformed record was said %d times", n-2)
		}
	})
}

func TestAKeyOfAnotherEnvironmentIsRefused(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		r.store.set(func() { r.store.kv[keyPath].custom = map[string]string{"environment": "staging"} })
		a := r.start(nil)
		pass(time.Minute)
		a.shares("")
		if reason := a.Status().Reason(); !strings.Contains(reason, `"staging"`) || !strings.Contains(reason, `"prod"`) {
			t.Errorf("reason %q", reason)
		}
		if !isShut(a.Settled()) || a.Loading() {
			t.Error("somebody has to do something, and it is not said")
		}
		r.store.set(func() { r.store.kv[keyPath].custom["environment"] = "prod" })
		pass(time.Minute)
		a.shares("1:100")
	})
}

func TestAForbiddenKeyIsSaidOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		r.store.broken(keyPath, fmt.Errorf("policy px: %w", store.ErrForbidden))
		a := r.start(nil)
		pass(10 * time.Minute)
		if n := r.logged("the key cannot be read"); n != 1 {
			t.Errorf("said %d times", n)
		}
		r.store.broken(keyPath, fmt.Errorf("another policy: %w", store.ErrForbidden))
		pass(time.Minute)
		if n := r.logged("the key cannot be read"); n != 2 {
			t.Errorf("another text was said %d times", n-1)
		}
		if s := a.Status(); s.Trouble != "forbidden" || !strings.Contains(s.Reason(), "another policy") || a.Loading() {
			t.Errorf("%+v", s)
		}
	})
}

func TestTheKeyIsDeletedInTheStore(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		a.journal.told()
		r.store.set(func() { delete(r.store.kv, keyPath) })
		pass(time.Minute)
		a.shares("1:100")
		a.recorded("key.missing 1 ok")
		a.gauge("postern_key_source_missing", `
# HELP postern_key_source_missing 1 if the store has nothing of the key, or not what serves any more.
# TYPE postern_key_source_missing gauge
postern_key_source_missing{key="openai"} 1
`)
		r.store.write(keyPath, key(2)) // numbering starts anew
		pass(5 * time.Second)
		a.shares("1:100 1:0")
		pass(time.Minute)
		a.shares("1:100")
		if l, _ := a.key.Pick(0); l.Version().Fingerprint() == "" || !reads(l.Version()) {
			t.Error("the new version cannot be read")
		} else {
			l.Release()
		}
	})
}

func TestNothingIsStored(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.start(nil)
		if !isShut(a.Settled()) || isShut(a.Loaded()) || a.Loading() || a.Status().Reason() != "no version of it is stored" {
			t.Errorf("%+v: %s", a.Status(), a.Status().Reason())
		}
		if b, err := json.Marshal(a.Status()); err != nil || !strings.Contains(string(b), `"versions":[]`) {
			t.Errorf("%s, %v", b, err)
		}
		if _, err := a.Fetch(t.Context()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("fetch: %v", err)
		}
	})
}

// Whatever the store does: what is due by itself does not wait for the next look.
func TestRetriesDoNotWaitForALook(t *testing.T) {
	inBubble(t, func(r *rig) {
		slow := func(o *Options) { o.Poll = time.Hour }
		r.store.write(keyPath, key(1))
		a := r.start(slow)
		a.journal.told()
		r.store.write(keyPath, key(2))
		pass(time.Hour - time.Second)
		a.journal.broken(errors.New("disk full"))
		pass(2 * time.Second)
		a.shares("1:100")
		a.journal.broken(nil)
		pass(5 * time.Second)
		a.shares("2:100 1:0")
		a.journal.broken(errors.New("disk full"))
		pass(10 * time.Second)
		a.journal.broken(nil)
		pass(5 * time.Second)
		a.recorded("version.promoted 2 intent", "version.promoted 2 ok", "version.retired 1 ok")
	})
}

func TestALoadThatFailsIsTriedAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		r.store.broken("halts/prod/px_acme/openai-1", store.ErrUnavailable) // read before the value
		a := r.start(nil)
		pass(20 * time.Second)
		a.shares("")
		if s := a.Status(); s.Trouble != "unavailable" || !a.Loading() || isShut(a.Settled()) {
			t.Errorf("%+v", s)
		}
		if n := r.logged("version cannot be loaded"); n != 1 {
			t.Errorf("said %d times", n)
		}
		r.store.broken("halts/prod/px_acme/openai-1", nil)
		pass(30 * time.Second)
		a.shares("1:100")
		if s := a.Status(); s.Trouble != "" {
			t.Errorf("%+v", s)
		}
	})
}

func TestAPathWrittenAnewBetweenLookAndLoad(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		src := newKVSource(Options{Store: r.store, Source: Source{Path: keyPath}, Environment: "prod", ProxyID: "px_acme"})
		if _, err := src.fetch(t.Context(), rotation.ID{Number: 1, Created: time.Now().Add(-time.Hour)}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("another version of the same number: %v", err)
		}
	})
}

// A short outage does not delay what comes after it by much, wherever the dice fall.
func TestAShortOutageDelaysLittle(t *testing.T) {
	for _, poll := range []time.Duration{time.Second, 5 * time.Second} {
		for _, lasts := range []time.Duration{4 * time.Second, 12 * time.Second, 28 * time.Second} {
			t.Run(fmt.Sprint("poll ", poll, ", away for ", lasts), func(t *testing.T) {
				inBubble(t, func(r *rig) {
					r.store.write(keyPath, key(1))
					a := r.start(func(o *Options) {
						o.Poll, o.Grace, o.Rand = poll, time.Hour, func() float64 { return 0.999 }
					})
					pass(10 * time.Second)
					r.store.broken("", store.ErrUnavailable)
					pass(lasts)
					before := r.store.count(keyPath)
					r.store.broken("", nil)
					r.store.write(keyPath, key(2))
					pass(7 * time.Second)
					a.shares("2:100 1:0")
					if before > 60 {
						t.Errorf("%d looks", before)
					}
				})
			})
		}
	}
}

// However many keys there are, looks begin at few moments: each is one that the
// process wakes up for.
func TestLooksComeInGroups(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		loops := make([]*agent, 100)
		for i := range loops {
			loops[i] = r.start(func(o *Options) { o.Rand = rand.Float64 })
			pass(time.Duration(rand.Int64N(int64(100 * time.Millisecond)))) // agents load keys as it comes
		}
		pass(time.Minute)
		moments := map[time.Time]bool{}
		for _, a := range loops {
			moments[a.Status().LastContact] = true
		}
		// The last looks lie within 1.2 × poll.
		if most := groups*12/10 + 1; len(moments) > most {
			t.Errorf("%d keys were looked at at %d moments, want at most %d", len(loops), len(moments), most)
		}
		if len(moments) < groups/2 {
			t.Errorf("%d moments: the looks are not spread over poll", len(moments))
		}
	})
}
