package sync

import (
	"errors"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

func TestADeadKeyIsNeverPromoted(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.says(key(2), rotation.VerdictDead)
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		a.journal.told()
		r.store.write(keyPath, key(2))
		pass(10 * time.Minute)
		a.shares("1:100")
		a.recorded("version.rejected 2 ok")
		r.counted("rejected", 1)
		if n := testutil.ToFloat64(r.m.probes.WithLabelValues("openai", "dead")); n != 1 {
			t.Errorf("%v dead probes", n)
		}
		if n := r.probed(); n != 2 {
			t.Errorf("%d probes", n)
		}
		s := a.Status()
		if len(s.Versions) != 2 || s.Versions[0].State != "rejected" || !strings.Contains(s.Versions[0].Reason, "as the test says (status 200)") {
			t.Errorf("status %+v", s.Versions)
		}
		if n := r.logged("version rejected"); n != 1 {
			t.Errorf("said %d times", n)
		}
	})
}

func TestAnUnknownProbe(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.says(key(1), rotation.VerdictUnknown)
		r.says(key(2), rotation.VerdictUnknown)
		a := r.rotated(func(o *Options) { o.Grace = time.Hour }) // version 1 is better than nothing
		pass(time.Minute)
		a.shares("1:100") // version 2 is not better than version 1
		a.gauge("postern_key_version_active", `
# HELP postern_key_version_active Number of the newest active version; 0 if there is none.
# TYPE postern_key_version_active gauge
postern_key_version_active{key="openai"} 1
`)
		if n, err := testutil.GatherAndCount(r.reg, "postern_key_age_seconds"); n != 1 || err != nil {
			t.Error("the age is not shown", n, err)
		}
		r.says(key(2), rotation.VerdictLive)
		pass(time.Minute)
		a.shares("2:100 1:0")
	})
}

func TestNoProbeMeansLive(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(func(o *Options) { o.Probe = nil })
		a.shares("2:100 1:0")
	})
}

func TestAuditHoldsUpPromotionsAndNothingElse(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(nil)
		old := a.key.Entries()[1].Version
		a.journal.broken(errors.New("disk full"))
		r.store.write(keyPath, key(3))
		pass(15 * time.Second)
		a.shares("2:100") // version 1 is retired, version 3 not promoted
		if reads(old) {
			t.Error("the wiping waited for its entry")
		}
		pass(10 * time.Minute)
		a.shares("2:100")
		if a.Status().Unrecorded != 1 || r.logged("not promoted: its audit entry cannot be written") != 1 {
			t.Errorf("%d entries wait, and it was said %d times", a.Status().Unrecorded, r.logged("not promoted"))
		}
		a.recorded()
		a.journal.broken(nil)
		pass(2 * time.Minute)
		a.shares("3:100")
		got := a.journal.told()
		slices.Sort(got)
		if want := []string{"version.promoted 3 intent", "version.promoted 3 ok", "version.retired 1 ok", "version.retired 2 ok"}; !slices.Equal(got, want) {
			t.Errorf("recorded %v", got)
		}
	})
}

func TestAVersionIsWipedWhenItsLastRequestEnds(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		lease, _ := a.key.Pick(0)
		r.store.write(keyPath, key(2))
		pass(time.Minute)
		a.shares("2:100")
		if !reads(lease.Version()) || a.retired() != 0 {
			t.Fatal("wiped under a request")
		}
		lease.Release()
		synctest.Wait()
		if reads(lease.Version()) || a.retired() != 1 {
			t.Error("not wiped after its last request")
		}
		if len(a.ending) > 0 {
			t.Error("a wiped version is still waited for")
		}
		if got := r.redact.Text([]byte("x " + key(1))); strings.Contains(string(got), key(1)) {
			t.Error("redaction forgot a retired key at once")
		}
	})
}

func TestAnEmergencyRevocation(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		lease, _ := a.key.Pick(0)
		a.journal.told()
		r.store.writeRecord(record, rotation.Record{Versions: []rotation.VersionRecord{{ID: lease.Version().ID(), State: rotation.Compromised}}})
		pass(5 * time.Second)
		a.shares("")
		if reads(lease.Version()) {
			t.Error("the revoked key is still in memory")
		}
		lease.Release()
		a.recorded("version.revoked 1 ok")
		r.counted("revoked", 1)
		if s := a.Status(); a.Loading() || !strings.Contains(s.Reason(), "version 1 was revoked") {
			t.Errorf("reason %q", s.Reason())
		}
	})
}

func TestEvidenceHaltsAVersionEverywhere(t *testing.T) {
	inBubble(t, func(r *rig) {
		ramp := func(o *Options) { o.Ramp = rotation.Ramp{{Weight: 50, For: time.Hour}} }
		r.store.write(keyPath, key(1))
		acks := NewAcks(AcksOptions{Store: r.store, Agent: "one", Logger: slog.New(slog.DiscardHandler)})
		one, two := r.start(func(o *Options) { ramp(o); o.Acks = acks }), r.start(ramp)
		r.store.write(keyPath, key(2))
		pass(5 * time.Second)
		one.shares("2:50 1:50")
		one.journal.told()
		two.journal.told()
		bad := one.key.Entries()[0].Version
		for range 20 {
			bad.Served()
		}
		for range 4 {
			bad.Failed()
		}
		pass(2 * time.Second)
		one.shares("2:50 1:50") // four are no evidence
		bad.Failed()
		pass(2 * time.Second)
		one.shares("1:100")
		two.shares("1:100")
		for _, e := range one.journal.events {
			if e.Event != EventRolledBack && (e.Detail["served"] != "20" || e.Detail["failed"] != "5") {
				t.Errorf("%s is recorded with %v", e.Event, e.Detail)
			}
		}
		one.recorded("version.rolled_back 1 ok", "key.halted 2 ok", "halt.written 2 ok")
		two.recorded("version.rolled_back 1 ok", "key.halted 2 ok")
		r.store.mu.Lock()
		stored := maps.Clone(r.store.kv[halt2].data[0])
		r.store.mu.Unlock()
		if _, err := time.Parse(time.RFC3339Nano, stored["at"]); err != nil || stored["failed"] != "5" || stored["served"] != "20" ||
			!strings.Contains(stored["to"], `"number":2`) || stored["agent"] != "one" || stored["reason"] == "" {
			t.Errorf("the halt reads %v, %v", stored, err)
		}
		for _, a := range []*agent{one, two} {
			if s := a.Status().Versions[0]; s.State != "rejected" || !strings.Contains(s.Reason, "requests were refused with this version") {
				t.Errorf("%+v", s)
			}
		}
		r.counted("rolled_back", 2)
		late := r.start(ramp) // and whoever starts later keeps away from it
		pass(time.Minute)
		late.shares("1:100")
		pass(24 * time.Hour) // even when nothing of the rotation is left
		r.start(ramp).shares("1:100")
	})
}

func TestAHaltIsWrittenOnceTheStoreIsBack(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(func(o *Options) { o.Grace = time.Hour })
		r.store.broken(halt2, store.ErrUnavailable)
		bad := a.key.Entries()[0].Version
		for range 9 {
			bad.Failed()
		}
		pass(time.Minute)
		a.shares("1:100") // not waiting for anybody
		r.store.broken(halt2, nil)
		pass(2 * time.Minute)
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		if r.store.kv[halt2] == nil {
			t.Error("the halt was never written")
		}
	})
}

// Two agents that find out at one moment: one halt stands, and both say so.
func TestTheSecondHaltOfAVersion(t *testing.T) {
	inBubble(t, func(r *rig) {
		one := r.rotated(func(o *Options) { o.Grace = time.Hour })
		two := r.start(func(o *Options) { o.Grace = time.Hour })
		for _, a := range []*agent{one, two} {
			a.journal.told()
			for range 9 {
				a.key.Entries()[0].Version.Failed()
			}
		}
		pass(10 * time.Second)
		all := append(one.journal.told(), two.journal.told()...)
		slices.Sort(all)
		if want := []string{"halt.written 2 exists", "halt.written 2 ok"}; !slices.Equal(all[:2], want) {
			t.Errorf("recorded %v", all)
		}
	})
}

func TestAValueThatIsNoKey(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(nil)
		r.store.write(keyPath, "too-short")
		r.store.writeFields(keyPath, map[string]string{"token": key(3)})
		pass(time.Minute)
		a.shares("1:100")
		s := a.Status()
		if s.Versions[0].State != "rejected" || !strings.Contains(s.Versions[0].Reason, `no field "api_key"`) || s.Versions[1].State != "rejected" {
			t.Errorf("%+v", s.Versions)
		}
		if s.Trouble != "" {
			t.Errorf("trouble %q, although all is said about the versions", s.Trouble)
		}
		if strings.Contains(r.logs.String(), "too-short") {
			t.Error("a refused value stands in the log")
		}
	})
}

func TestAVersionThatIsReadTwice(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		a := r.start(func(o *Options) { o.Poll = time.Second; o.Grace = time.Hour })
		pass(500 * time.Millisecond)
		r.store.set(func() { r.store.slow = 3 * time.Second })
		r.store.write(keyPath, key(2))
		pass(time.Second) // version 2 is being read
		r.store.write(keyPath, key(3))
		pass(time.Second) // version 3 instead
		r.store.set(func() { r.store.kv[keyPath].versions[2].Deleted = time.Now() })
		pass(10 * time.Second) // and version 2 again: both answers come
		a.shares("2:100 1:0")
		if !reads(a.key.Entries()[0].Version) {
			t.Error("the one in use was wiped")
		}
		if n := r.logged("version wiped"); n != 1 {
			t.Errorf("%d copies were wiped", n)
		}
	})
}

func TestNothingIsLeftOfARetiredVersion(t *testing.T) {
	inBubble(t, func(r *rig) {
		var changes atomic.Int32
		a := r.rotated(func(o *Options) { o.OnChange = func() { changes.Add(1) } })
		if n := changes.Load(); n != 2 {
			t.Errorf("told of %d changes", n)
		}
		for range 5 { // what other tests left
			runtime.GC()
			pass(0)
		}
		before := secret.Stats().Values
		pass(20 * time.Second)
		a.shares("2:100")
		// The key itself and redaction's copy of it; hashes stay.
		if gone := before - secret.Stats().Values; gone < 2 {
			t.Errorf("%d values are gone", gone)
		}
	})
}

func TestCredentialsBesideTheKeyAreRedactedToo(t *testing.T) {
	inBubble(t, func(r *rig) {
		const password = "a-password-of-some-length"
		r.store.writeFields(keyPath, map[string]string{"api_key": key(1), "password": password, "organization": "org-of-some-length-too"})
		a := r.start(func(o *Options) { o.Credentials = []string{"password", "second_password"} })
		a.shares("1:100")
		if got := string(r.redact.Text([]byte(password + " org-of-some-length-too"))); got != redact.Redacted+" org-of-some-length-too" {
			t.Errorf("redacted to %q", got)
		}
		for range 5 { // what other tests left
			runtime.GC()
			pass(0)
		}
		before := secret.Stats().Values
		r.store.writeFields(keyPath, map[string]string{"api_key": key(2), "password": "short"})
		pass(10 * time.Second)
		if more := secret.Stats().Values - before; more > 1 { // hashes of the key
			t.Errorf("%d values are left of a refused version", more)
		}
		a.shares("1:100") // it could not be recognised in a log
		if s := a.Status().Versions[0]; s.State != "rejected" || !strings.Contains(s.Reason, `field "password": 5 bytes`) {
			t.Errorf("%+v", s)
		}
	})
}

func TestAHaltMeetsAVersionOnItsWay(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.says(key(2), rotation.VerdictUnknown)
		a := r.rotated(nil)
		v := r.store.kv[keyPath].versions[1]
		h := rotation.Halt{To: rotation.ID{Number: 2, Created: v.Created}, Reason: "seen by another agent"}
		fields, _ := h.Encode()
		data := map[string]string{}
		for k, b := range fields {
			data[k] = string(b)
		}
		r.store.writeFields(halt2, data)
		pass(5 * time.Second)
		r.says(key(2), rotation.VerdictLive)
		pass(time.Hour)
		a.shares("1:100")
		if s := a.Status().Versions[0]; s.State != "rejected" || !strings.Contains(s.Reason, "seen by another agent") {
			t.Errorf("%+v", s)
		}
	})
}

func TestAHaltOfAnotherLifeOfThePath(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.writeFields(halt2, map[string]string{"to": `{"number":2,"created":"2001-01-01T00:00:00Z"}`})
		a := r.rotated(func(o *Options) { o.Grace = time.Hour })
		a.shares("2:100 1:0") // it does not count
		for range 9 {
			a.key.Entries()[0].Version.Failed()
			if len(a.key.Entries()) < 2 {
				break
			}
		}
		pass(time.Minute)
		a.shares("1:100")
		if r.logged("holds a halt of another version") == 0 {
			t.Error("the halt could not be shared, and nobody was told")
		}
	})
}

func TestAHaltThatCannotBeFollowed(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.writeFields(halt2, map[string]string{"to": "two"})
		a := r.rotated(func(o *Options) { o.Grace = time.Hour })
		pass(10 * time.Second)
		a.shares("2:100 1:0")
		if r.logged("the halt is not followed") != 1 {
			t.Errorf("said %d times", r.logged("the halt is not followed"))
		}
	})
}
