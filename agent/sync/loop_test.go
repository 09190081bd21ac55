package sync

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	stdsync "sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	keyPath = "provider-keys/prod/px_acme/openai"
	record  = "rotations/prod/px_acme/openai"
	halt2   = "halts/prod/px_acme/openai-2"
)

func key(n int) string { return fmt.Sprintf("sk-test-%024d", n) }

// verdictSlow is live, three seconds later, whatever the context says.
const verdictSlow rotation.Verdict = 99

// logs is a writer that tests may read while it is written.
type logs struct {
	mu stdsync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rig is an agent's surroundings; all its Loops share the store.
type rig struct {
	t      *testing.T
	store  *memory
	redact *redact.Set
	reg    *prometheus.Registry
	m      *Metrics
	logs   *logs

	mu      stdsync.Mutex
	verdict map[string]rotation.Verdict // by key; default live
	probes  []string
}

// agent is one running Loop.
type agent struct {
	*rig
	*Loop
	key     *keyring.Key
	journal *journal
	cancel  context.CancelFunc
	done    chan struct{}
	retired func() int
}

func inBubble(t *testing.T, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		known, err := redact.New(redact.Options{})
		if err != nil {
			t.Fatal(err)
		}
		reg := prometheus.NewRegistry()
		f(&rig{t: t, store: newMemory(), redact: known, reg: reg, m: NewMetrics(reg), logs: &logs{}, verdict: map[string]rotation.Verdict{}})
	})
}

// probe is the provider: it says what the test put down, and that redaction knows the key already.
func (r *rig) probe(_ context.Context, fields map[string]*secret.Value) provider.Result {
	res := provider.Result{Meaning: "unknown: the key was wiped"}
	fields[keyring.KeyField].Use(func(b []byte) {
		if got := string(r.redact.Text(slices.Clone(b))); got != redact.Redacted {
			r.t.Errorf("a key was used before redaction knew it: %s", got)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.probes = append(r.probes, string(b))
		v, ok := r.verdict[string(b)]
		if v == verdictSlow {
			time.Sleep(3 * time.Second)
			v = rotation.VerdictLive
		}
		if !ok {
			v = rotation.VerdictLive
		}
		res = provider.Result{Verdict: v, Status: 200, Meaning: "as the test says"}
	})
	return res
}

func (r *rig) says(key string, v rotation.Verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verdict[key] = v
}

func (r *rig) probed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.probes)
}

// start runs a Loop until the test ends; change may alter its options.
func (r *rig) start(change func(*Options)) *agent {
	r.t.Helper()
	a := &agent{rig: r, key: keyring.NewKey("openai"), journal: &journal{}, done: make(chan struct{})}
	var mu stdsync.Mutex
	retired := 0
	o := Options{
		Name: "openai", Source: Source{Path: keyPath}, Environment: "prod", ProxyID: "px_acme",
		Store: r.store, Key: a.key, Redact: r.redact, Audit: a.journal, Probe: r.probe, KeyPrefix: "sk-test-",
		Grace: 10 * time.Second, RejectRatio: 0.05, Poll: 5 * time.Second, MaxStale: time.Hour,
		Logger: slog.New(slog.NewTextHandler(r.logs, nil)), Metrics: r.m, Rand: func() float64 { return 0.5 },
		OnRetired: func() { mu.Lock(); retired++; mu.Unlock() },
	}
	if change != nil {
		change(&o)
	}
	a.retired = func() int { mu.Lock(); defer mu.Unlock(); return retired }
	a.Loop = New(o)
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() {
		defer close(a.done)
		a.Run(ctx)
	}()
	r.t.Cleanup(func() { cancel(); <-a.done })
	synctest.Wait()
	return a
}

func (a *agent) stop() {
	a.cancel()
	<-a.done
}

// pass lets time go by and everything that is due then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (a *agent) shares(want string) {
	a.t.Helper()
	var got []string
	for _, e := range a.key.Entries() {
		got = append(got, fmt.Sprintf("%d:%d", e.Version.Number(), e.Weight))
	}
	if g := strings.Join(got, " "); g != want {
		a.t.Errorf("shares %q, want %q", g, want)
	}
}

func (a *agent) recorded(want ...string) {
	a.t.Helper()
	if got := a.journal.told(); !slices.Equal(got, want) {
		a.t.Errorf("recorded\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (a *agent) gauge(name, want string) {
	a.t.Helper()
	if err := testutil.GatherAndCompare(a.reg, strings.NewReader(want), name); err != nil {
		a.t.Error(err)
	}
}

// counted asserts postern_rotations_total.
func (r *rig) counted(outcome string, want float64) {
	r.t.Helper()
	if got := testutil.ToFloat64(r.m.rotations.WithLabelValues("openai", outcome)); got != want {
		r.t.Errorf("%v rotations %s, want %v", got, outcome, want)
	}
}

func (r *rig) logged(text string) int { return strings.Count(r.logs.String(), text) }

func isShut(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func reads(v *keyring.Version) bool { return v.Field(keyring.KeyField).Use(func([]byte) {}) }

// rotated is an agent whose version 2 has just taken over.
func (r *rig) rotated(change func(*Options)) *agent {
	r.t.Helper()
	r.store.write(keyPath, key(1))
	a := r.start(change)
	r.store.write(keyPath, key(2))
	pass(5 * time.Second)
	a.journal.told()
	return a
}

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
		one, two := r.start(ramp), r.start(ramp)
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
		one.recorded("version.rolled_back 1 ok", "key.halted 2 ok")
		two.recorded("version.rolled_back 1 ok", "key.halted 2 ok")
		r.store.mu.Lock()
		stored := r.store.kv[halt2].data[0]
		r.store.mu.Unlock()
		if stored["failed"] != "5" || stored["served"] != "20" || !strings.Contains(stored["to"], `"number":2`) {
			t.Errorf("the halt reads %v", stored)
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

func TestStopWaitsForRequestsAndWipes(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(nil)
		lease, _ := a.key.Pick(0)
		rest := a.key.Entries()[1].Version
		a.cancel()
		synctest.Wait()
		a.shares("")
		if isShut(a.done) || reads(rest) || !reads(lease.Version()) {
			t.Fatal("stopping: a request's version must stay, the other one go, and Run wait")
		}
		time.Sleep(5 * time.Second)
		lease.Release()
		<-a.done
		if reads(lease.Version()) {
			t.Error("not wiped")
		}
		if a.Status().Usable || r.logged("wiped under them") != 0 {
			t.Error("a clean stop says something else")
		}
	})
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(nil)
		lease, _ := a.key.Pick(0)
		r.store.set(func() { r.store.hang = true })
		pass(2 * time.Second) // a look hangs
		begun := time.Now()
		a.stop()
		if took := time.Since(begun); took != stopWait {
			t.Errorf("stopping took %v", took)
		}
		if reads(lease.Version()) {
			t.Error("the bytes outlived the loop")
		}
		if r.logged("wiped under them") != 1 {
			t.Error("nobody was told")
		}
		lease.Release()
	})
}

func TestStopWhileAVersionIsOnItsWay(t *testing.T) {
	for at, slow := range map[string]func(a *agent){
		"load":  func(a *agent) { a.store.set(func() { a.store.slow = 3 * time.Second }) },
		"probe": func(a *agent) { a.says(key(1), verdictSlow) },
		"audit": func(a *agent) { a.journal.set(3 * time.Second) },
	} {
		t.Run(at, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				a := r.start(nil)
				pass(4900 * time.Millisecond)
				r.store.write(keyPath, key(1))
				slow(a)
				pass(1100 * time.Millisecond) // the answer comes after the stop
				a.stop()
				a.shares("")
				if n := r.logged("version wiped"); n != 1 {
					t.Errorf("wiped %d times", n)
				}
				if r.logged("version promoted") != 0 {
					t.Error("promoted after the stop")
				}
			})
		})
	}
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
		changes := 0
		a := r.rotated(func(o *Options) { o.OnChange = func() { changes++ } })
		if changes != 2 {
			t.Errorf("told of %d changes", changes)
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

func TestFetch(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		r.store.writeFields(keyPath, map[string]string{"token": key(2), "organization": "org-1"})
		a := r.start(func(o *Options) { o.Source.Field = "token" })
		sec, err := a.Fetch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer sec.Destroy()
		r.store.write(keyPath, key(3))
		r.store.set(func() { r.store.kv[keyPath].versions[2].Destroyed = true })
		again, err := a.Fetch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		again.Destroy()
		if sec.Version.Number != 2 || again.Version.Number != 2 || sec.Fields[keyring.KeyField].Len() != len(key(2)) || sec.Fields["token"] != nil || sec.Fields["organization"].Len() != 5 {
			t.Errorf("fetched version %d, %d fields", sec.Version.Number, len(sec.Fields))
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

func TestMetrics(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(nil)
		a.gauge("postern_key_versions", `
# HELP postern_key_versions Versions of a key that the agent did something with, by state.
# TYPE postern_key_versions gauge
postern_key_versions{key="openai",state="active"} 1
postern_key_versions{key="openai",state="compromised"} 0
postern_key_versions{key="openai",state="draining"} 1
postern_key_versions{key="openai",state="pending"} 0
postern_key_versions{key="openai",state="rejected"} 0
postern_key_versions{key="openai",state="retired"} 0
`)
		a.gauge("postern_key_version_active", `
# HELP postern_key_version_active Number of the newest active version; 0 if there is none.
# TYPE postern_key_version_active gauge
postern_key_version_active{key="openai"} 2
`)
		a.gauge("postern_rotations_total", `
# HELP postern_rotations_total What became of versions: promoted, rejected, rolled_back, revoked.
# TYPE postern_rotations_total counter
postern_rotations_total{key="openai",outcome="promoted"} 2
`)
		// A second Loop of the same name, as while a configuration is replaced, does not disturb the figures.
		b := r.start(nil)
		if n, err := testutil.GatherAndCount(r.reg, "postern_key_usable"); err != nil || n != 1 {
			t.Errorf("%d series, %v", n, err)
		}
		a.stop()
		if n, err := testutil.GatherAndCount(r.reg, "postern_key_usable"); err != nil || n != 1 {
			t.Errorf("after the older one ended: %d series, %v", n, err)
		}
		a.gauge("postern_key_usable", `
# HELP postern_key_usable 1 if requests can be served with the key.
# TYPE postern_key_usable gauge
postern_key_usable{key="openai"} 1
`)
		b.stop()
		if n, _ := testutil.GatherAndCount(r.reg, "postern_key_usable"); n != 0 {
			t.Errorf("after both ended: %d series", n)
		}
		if problems, err := testutil.GatherAndLint(r.reg); err != nil || len(problems) > 0 {
			t.Errorf("%v %v", problems, err)
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

func TestStopWritesWhatIsNotRecordedYet(t *testing.T) {
	for _, works := range []bool{true, false} {
		inBubble(t, func(r *rig) {
			a := r.rotated(nil)
			a.journal.broken(errors.New("disk full"))
			r.store.set(func() { delete(r.store.kv, keyPath) })
			pass(10 * time.Minute)
			if n := a.journal.tries(); n > 25 {
				t.Errorf("%d tries in ten minutes", n)
			}
			if works {
				a.journal.broken(nil)
			}
			a.stop()
			if a.journal.broken(nil); works {
				a.recorded("key.missing 2 ok", "version.retired 1 ok")
			} else if r.logged("never written") != 1 {
				t.Error("an entry was lost without a word")
			}
		})
	}
}

func TestReasons(t *testing.T) {
	for want, s := range map[string]Status{
		"":                               {Usable: true, Error: "old"},
		"policy":                         {Error: "policy", Missing: true},
		"it is being loaded and checked": {busy: true, looked: true},
		"version 2 was rejected: dead":   {looked: true, Versions: []VersionStatus{{Number: 2, State: "rejected", Reason: "dead"}}},
		"no version of it is stored":     {looked: true, Missing: true},
		"the store has not answered yet": {},
		"no version of it is usable":     {looked: true, Versions: []VersionStatus{{Number: 1, State: "retired"}}},
		"version 1 was revoked":          {looked: true, Versions: []VersionStatus{{Number: 1, State: "compromised"}}},
	} {
		if got := s.Reason(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestKinds(t *testing.T) {
	for want, err := range map[string]error{
		"": nil, "not_found": store.ErrDeleted, "forbidden": store.ErrForbidden, "unauthenticated": store.ErrUnauthenticated,
		"invalid": store.ErrInvalid, "unavailable": context.DeadlineExceeded, "environment": errEnvironment{}, "unusable": errUnusable{errors.New("x")},
		"halted": errHalted{},
	} {
		if err != nil {
			err = fmt.Errorf("path: %w", err)
		}
		if got := kindOf(err); got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
}
