package sync

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

const ackFolder = "acks/prod/px_acme/"

// acking is one running Acks.
type acking struct {
	*Acks
	r      *rig
	cancel context.CancelFunc
	done   chan struct{}
}

// acks runs an Acks over the rig's store until the test ends.
func (r *rig) acks(name string, change func(*AcksOptions)) *acking {
	r.t.Helper()
	a := r.acksOn(r.store, name, change)
	synctest.Wait()
	return a
}

// acksOn is acks over any store, and outside of a bubble too.
func (r *rig) acksOn(st store.Store, name string, changes ...func(*AcksOptions)) *acking {
	o := AcksOptions{
		Store: st, Environment: "prod", ProxyID: "px_acme", Agent: name,
		Logger: slog.New(slog.NewTextHandler(r.logs, nil)), Metrics: r.m, Rand: func() float64 { return 0.5 },
	}
	for _, change := range changes {
		if change != nil {
			change(&o)
		}
	}
	a := &acking{Acks: NewAcks(o), r: r, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() {
		defer close(a.done)
		a.Run(ctx)
	}()
	r.t.Cleanup(a.stop)
	return a
}

func (a *acking) stop() {
	a.cancel()
	<-a.done
}

// told is what stands below acks/ for an agent, and when it was written.
func (r *rig) told(entity, name string) (map[string]Ack, time.Time) {
	r.t.Helper()
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	e := r.store.kv[ackFolder+entity+"/"+name]
	if e == nil {
		return nil, time.Time{}
	}
	data := e.data[len(e.data)-1]
	var keys map[string]Ack
	if err := json.Unmarshal([]byte(data["keys"]), &keys); err != nil {
		r.t.Errorf("%v", data)
	}
	at, err := time.Parse(time.RFC3339Nano, data["at"])
	if err != nil || data["agent"] != name || len(data) != 3 {
		r.t.Errorf("%v: %v", data, err)
	}
	return keys, at
}

// says asserts what one agent says about the one key.
func (r *rig) ackIs(name, want string) {
	r.t.Helper()
	keys, _ := r.told("local", name)
	got := "nothing"
	if a, ok := keys["openai"]; ok {
		got = fmt.Sprintf("%d %v from %v", a.To.Number, a.ToState, a.FromState)
	}
	if got != want {
		r.t.Errorf("%s says %q, want %q", name, got, want)
	}
}

// writes are the times at which an entry was written since it is there.
func (r *rig) writes(path string) []time.Time {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	var at []time.Time
	if e := r.store.kv[path]; e != nil {
		for _, v := range e.versions {
			at = append(at, v.Created)
		}
	}
	return at
}

func (r *rig) ackWrites(outcome string) float64 {
	return testutil.ToFloat64(r.m.acks.WithLabelValues(outcome))
}

// A rotation from the wish to its end, as another would read it.
func TestARotationIsAcknowledgedStepByStep(t *testing.T) {
	inBubble(t, func(r *rig) {
		acks := r.acks("one", nil)
		r.store.write(keyPath, key(1))
		r.start(func(o *Options) { o.Acks = acks.Acks })
		pass(time.Minute)
		r.ackIs("one", "nothing")

		rec := rotation.Record{Phase: rotation.PhaseRequested, Ramp: rotation.Ramp{{Weight: 10, For: time.Minute}}, Grace: time.Minute}
		r.store.writeRecord(record, rec)
		pass(10 * time.Second)
		r.ackIs("one", "nothing") // it is only wished for
		rec.Phase, rec.From, rec.To = rotation.PhaseGenerate, r.id(1), rotation.ID{Number: 2}
		r.store.writeRecord(record, rec)
		pass(6 * time.Second)
		r.ackIs("one", "2 unknown from active")
		r.store.write(keyPath, key(2))
		pass(3 * time.Second)
		r.ackIs("one", "2 pending from active") // ready, and held
		if keys, _ := r.told("local", "one"); !keys["openai"].To.Equal(r.id(2)) {
			t.Errorf("acknowledged %+v, want %+v", keys["openai"].To, r.id(2))
		}
		rec.Phase, rec.To, rec.StartedAt = rotation.PhaseMigrate, r.id(2), time.Now().Add(10*time.Second)
		r.store.writeRecord(record, rec)
		pass(9 * time.Second)
		r.ackIs("one", "2 pending from active")
		pass(2 * time.Second) // the ramp began a second ago
		r.ackIs("one", "2 active from active")
		pass(time.Minute)
		r.ackIs("one", "2 active from draining")
		pass(time.Minute)
		r.ackIs("one", "2 active from retired")
		rec.Phase = rotation.PhaseRevoke
		r.store.writeRecord(record, rec)
		r.store.set(func() { r.store.kv[keyPath].versions[0].Destroyed = true })
		pass(10 * time.Second)
		r.ackIs("one", "2 active from unknown") // the store has it no more, nor the agent
		rec.Phase, rec.Closed = rotation.PhaseDone, true
		r.store.writeRecord(record, rec)
		pass(7 * time.Second)
		r.ackIs("one", "nothing")
		written := r.ackWrites(ackWritten)
		pass(time.Hour)
		if n := r.ackWrites(ackWritten); n != written || r.ackWrites(ackRemoved) != 1 || r.ackWrites(ackFailed) != 0 {
			t.Errorf("%v writes and %v removals after the end", n-written, r.ackWrites(ackRemoved))
		}
	})
}

func TestAnAckIsRefreshedAndNotTooOften(t *testing.T) {
	inBubble(t, func(r *rig) {
		acks := r.acks("one", nil)
		r.ramping(func(o *Options) { o.Acks = acks.Acks })
		pass(30 * time.Minute)
		at := r.writes(ackFolder + "local/one")
		if _, said := r.told("local", "one"); time.Since(said) > time.Minute || !said.Equal(at[len(at)-1]) {
			t.Errorf("alive %v ago, written at %v", time.Since(said), at[len(at)-1])
		}
		if len(at) < 30 || len(at) > 40 {
			t.Errorf("%d writes in half an hour", len(at))
		}
		for i := range at[1:] {
			if gap := at[i+1].Sub(at[i]); gap < time.Second || gap > time.Minute {
				t.Errorf("%v between two writes", gap)
			}
		}
	})
}

func TestChangesAreGathered(t *testing.T) {
	inBubble(t, func(r *rig) {
		acks := r.acks("one", nil)
		one, two := acks.join("one"), acks.join("two")
		begun := time.Now()
		for n := range 100 { // in 10 s
			one.say(&Ack{To: rotation.ID{Number: n}})
			two.say(&Ack{To: rotation.ID{Number: -n}})
			pass(100 * time.Millisecond)
		}
		pass(2 * time.Second)
		at := r.writes(ackFolder + "local/one")
		if len(at) < 8 || len(at) > 12 || at[0].Sub(begun) > time.Second {
			t.Errorf("%d writes in 10 s, the first after %v", len(at), at[0].Sub(begun))
		}
		for i := range at[1:] {
			if gap := at[i+1].Sub(at[i]); gap < time.Second {
				t.Errorf("%v between two writes", gap)
			}
		}
		if keys, _ := r.told("local", "one"); len(keys) != 2 || keys["one"].To.Number != 99 || keys["two"].To.Number != -99 {
			t.Errorf("%+v", keys)
		}
		one.say(nil)
		pass(2 * time.Second)
		if keys, _ := r.told("local", "one"); len(keys) != 1 || keys["two"].To.Number != -99 {
			t.Errorf("one rotation is over: %+v", keys)
		}
		two.leave()
		pass(2 * time.Second)
		if keys, _ := r.told("local", "one"); keys != nil {
			t.Errorf("all are: %+v", keys)
		}
	})
}

// A change is told within a second, however long nothing happened before.
func TestAChangeIsToldAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		rep := r.acks("one", func(o *AcksOptions) { o.Rand = func() float64 { return 0.999 } }).join("openai")
		rep.say(&Ack{To: rotation.ID{Number: 2}})
		pass(10 * time.Minute)
		for _, change := range []*Ack{{To: rotation.ID{Number: 2}, ToState: rotation.Active, FromState: rotation.Active}, {To: rotation.ID{Number: 2}, ToState: rotation.Active, FromState: rotation.Retired}} {
			rep.say(change)
			pass(time.Second)
			if keys, _ := r.told("local", "one"); !change.equal(keys["openai"]) {
				t.Errorf("a second later %+v, want %+v", keys["openai"], *change)
			}
			pass(7 * time.Second)
		}
		rep.say(nil)
		pass(time.Second)
		if keys, _ := r.told("local", "one"); keys != nil {
			t.Errorf("a second after its end: %+v", keys)
		}
	})
}

func TestARejectedVersionIsAcknowledgedWithItsReason(t *testing.T) {
	inBubble(t, func(r *rig) {
		acks := r.acks("one", nil)
		r.says(key(2), rotation.VerdictDead)
		r.store.write(keyPath, key(1))
		r.start(func(o *Options) { o.Acks = acks.Acks })
		r.store.write(keyPath, key(2))
		r.store.writeRecord(record, rotation.Record{From: r.id(1), To: r.id(2), Phase: rotation.PhaseMigrate, StartedAt: time.Now(), Grace: time.Minute})
		pass(7 * time.Second)
		r.ackIs("one", "2 rejected from active")
		if keys, _ := r.told("local", "one"); !strings.Contains(keys["openai"].Reason, "as the test says (status 200)") {
			t.Errorf("reason %q", keys["openai"].Reason)
		}
	})
	inBubble(t, func(r *rig) {
		acks := r.acks("one", nil)
		a, _ := r.ramping(func(o *Options) { o.Acks = acks.Acks })
		pass(time.Second)
		r.ackIs("one", "2 active from active")
		for range 9 {
			a.key.Entries()[0].Version.Failed()
		}
		pass(2 * time.Second)
		r.ackIs("one", "2 rejected from active")
		if keys, _ := r.told("local", "one"); !strings.Contains(keys["openai"].Reason, "requests were refused with this version") {
			t.Errorf("reason %q", keys["openai"].Reason)
		}
	})
}

// What an error says is not trusted to be free of a key, nor to be short.
func TestAReasonIsScrubbedAndShort(t *testing.T) {
	inBubble(t, func(r *rig) {
		a, rec := r.ramping(nil)
		l := New(a.o)
		l.k = rotation.New(nil, 0, 0)
		l.k.Record, l.k.Versions = &rec, []rotation.Version{{ID: rec.To, State: rotation.Rejected}}
		l.why[2] = "the key " + key(1) + strings.Repeat("é", ackReason)
		if got := l.ack().Reason; strings.Contains(got, key(1)) || len(got) > ackReason || !strings.HasPrefix(got, "the key [redacted]é") || strings.Contains(got, "\ufffd") {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	})
}

// Two agents speak for themselves. One that stops takes its entry with it; one
// that is killed leaves it behind, and it grows old.
func TestTwoAgents(t *testing.T) {
	inBubble(t, func(r *rig) {
		first, second := r.acks("one", nil), r.acks("two", nil)
		one, _ := r.ramping(func(o *Options) { o.Acks = first.Acks })
		r.says(key(2), rotation.VerdictUnknown)
		two := r.start(func(o *Options) { o.Acks = second.Acks })
		pass(10 * time.Second)
		r.ackIs("one", "2 active from active")
		r.ackIs("two", "2 pending from active")
		one.stop()
		first.stop()
		if keys, _ := r.told("local", "one"); keys != nil || r.ackWrites(ackRemoved) != 1 {
			t.Errorf("after a clean stop: %+v", keys)
		}
		pass(5 * time.Minute)
		keys, at := r.told("local", "two")
		if len(keys) != 1 || time.Since(at) > time.Minute {
			t.Errorf("the other one: %+v at %v", keys, at)
		}
		r.store.broken("", store.ErrUnavailable) // as for a process that is killed, nothing reaches the store any more
		begun := time.Now()
		two.stop()
		second.stop()
		if took := time.Since(begun); took > ackStop {
			t.Errorf("the stop took %v", took)
		}
		r.store.broken("", nil)
		pass(5 * time.Minute)
		if keys, late := r.told("local", "two"); len(keys) != 1 || !late.Equal(at) && time.Since(late) < 3*time.Minute {
			t.Errorf("after a kill: %+v at %v", keys, late)
		}
	})
}

func TestAStopTakesBackWhatIsToldRightNow(t *testing.T) {
	inBubble(t, func(r *rig) {
		acks := r.acks("one", nil)
		acks.join("openai").say(&Ack{To: rotation.ID{Number: 2}})
		r.store.set(func() { r.store.hang = true })
		pass(time.Second) // the write hangs
		begun := time.Now()
		acks.stop()
		if took := time.Since(begun); took > ackStop {
			t.Errorf("the stop took %v", took)
		}
		if r.logged("others cannot be told") != 0 {
			t.Error("a write that the stop ended is called a failure")
		}
		if r.store.count(ackFolder+"local/one") != 2 {
			t.Errorf("%d calls: it may stand there, and nobody tried to remove it", r.store.count(ackFolder+"local/one"))
		}
	})
}

// While a configuration is replaced two Loops keep one key. The younger one
// speaks, as soon as it knows; the older one's end says nothing.
func TestOfTwoLoopsTheYoungerSpeaks(t *testing.T) {
	inBubble(t, func(r *rig) {
		acks := r.acks("one", nil)
		with := func(o *Options) { o.Acks = acks.Acks }
		older, _ := r.ramping(with)
		pass(2 * time.Second)
		r.store.broken(keyPath, store.ErrUnavailable)
		younger := r.start(func(o *Options) { with(o); o.Poll = time.Second })
		pass(2 * time.Minute)
		r.ackIs("one", "2 active from active") // the younger one does not know yet
		r.says(key(2), rotation.VerdictUnknown)
		r.store.broken(keyPath, nil)
		pass(time.Minute)
		r.ackIs("one", "2 pending from active")
		older.stop()
		pass(2 * time.Second)
		r.ackIs("one", "2 pending from active")
		younger.stop()
		pass(2 * time.Second)
		r.ackIs("one", "nothing")
	})
}

// identified is a store that knows identities.
type identified struct {
	*memory
	entity string
	err    error
}

func (i *identified) Identity(context.Context) (store.Identity, error) {
	i.memory.mu.Lock()
	defer i.memory.mu.Unlock()
	return store.Identity{EntityID: i.entity}, i.err
}

func TestAcksAreKeptByEntity(t *testing.T) {
	inBubble(t, func(r *rig) {
		st := &identified{memory: r.store, entity: "0d3a5d1c"}
		acks := r.acks("one", func(o *AcksOptions) { o.Store = st })
		rep := acks.join("openai")
		rep.say(&Ack{To: rotation.ID{Number: 2}})
		pass(2 * time.Second)
		if keys, _ := r.told("0d3a5d1c", "one"); len(keys) != 1 {
			t.Error("not below its entity")
		}
		r.store.set(func() { st.entity = "../another" }) // as after a login with another role
		pass(2 * time.Minute)
		if keys, _ := r.told("..-another", "one"); len(keys) != 1 {
			t.Error("not below its new entity")
		}
		if keys, _ := r.told("0d3a5d1c", "one"); keys != nil {
			t.Error("below its old entity still")
		}
		r.store.set(func() { st.entity = "" })
		pass(2 * time.Minute)
		if keys, _ := r.told("..-another", "one"); keys != nil {
			t.Error("without an entity there is none")
		}
		pass(time.Hour)
		if n := r.logged("has no entity"); n != 1 || r.logged("level=INFO") != 1 {
			t.Errorf("said %d times", n)
		}
		r.store.set(func() { st.err = store.ErrUnauthenticated })
		pass(time.Hour)
		if r.ackWrites(ackFailed) == 0 || r.logged("kind=unauthenticated") != 1 {
			t.Error("who we are cannot be found out, and nobody was told")
		}
		r.store.set(func() { st.entity, st.err = "0d3a5d1c", nil })
		pass(2 * time.Minute)
		if keys, _ := r.told("0d3a5d1c", "one"); len(keys) != 1 {
			t.Error("not below its entity again")
		}
	})
	inBubble(t, func(r *rig) { // one file, one writer: who that is, is of no importance
		rep := r.acks("one", func(o *AcksOptions) { o.Store, o.Local = &identified{memory: r.store}, true }).join("openai")
		rep.say(&Ack{To: rotation.ID{Number: 2}})
		pass(2 * time.Second)
		if keys, _ := r.told("local", "one"); len(keys) != 1 {
			t.Error("not below local")
		}
	})
}

func TestNamesOfAgents(t *testing.T) {
	var names []string
	for range 100 {
		names = append(names, NewAgentName())
	}
	slices.Sort(names)
	if n := len(slices.Compact(names)); n != 100 {
		t.Errorf("%d different names of 100", n)
	}
	if !regexp.MustCompile(`^[A-Za-z0-9._-]+-[0-9a-f]{8}$`).MatchString(names[0]) {
		t.Errorf("%q", names[0])
	}
	for in, want := range map[string]string{"web-1.corp": "web-1.corp", "a/b\x00c é": "a-b-c--", "..": "-..", "": "-"} {
		if got := pathSafe(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
	if (*Acks)(nil).Agent() != "" || NewAcks(AcksOptions{}).Agent() == "" {
		t.Error("who has no acknowledgements has no name, and every other has one")
	}
}
