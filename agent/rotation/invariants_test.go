package rotation

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

// tape is a sequence of choices, read from random or fuzzed bytes.
type tape []byte

func (t *tape) next(n int) int {
	if len(*t) == 0 {
		return 0
	}
	b := (*t)[0]
	*t = (*t)[1:]
	return int(b) % n
}

// world drives a Key through whatever a tape says and checks after every step
// what must always hold.
type world struct {
	t    *testing.T
	tape *tape
	k    Key
	now  time.Time

	stored []Stored
	record *Record
	halts  []Halt

	asked   map[int][]string // by version number: actions not answered yet
	loaded  map[int]bool     // by number, as the executor sees it
	audited map[int]bool     // its promotion's entry was asked for and stands
	barred  map[int]bool     // compromised, or halted and so taken out: never again
}

func newWorld(t *testing.T, tp *tape) *world {
	ramps := []Ramp{nil, threeSteps, {{100, time.Second}}, {{0, time.Minute}, {250, -time.Second}}}
	return &world{
		t: t, tape: tp, now: epoch,
		k:     New(ramps[tp.next(len(ramps))], []time.Duration{0, time.Second, 10 * time.Minute}[tp.next(3)], 0.05),
		asked: map[int][]string{}, loaded: map[int]bool{}, audited: map[int]bool{}, barred: map[int]bool{},
	}
}

func (w *world) version() ID {
	if len(w.stored) == 0 {
		return ID{Number: 99, Created: epoch}
	}
	return w.stored[w.tape.next(len(w.stored))].ID
}

// event reads the next event from the tape.
func (w *world) event() Event {
	w.now = w.now.Add([]time.Duration{0, time.Millisecond, time.Second, 7 * time.Second, time.Minute, time.Hour, -time.Second}[w.tape.next(7)])
	switch w.tape.next(16) {
	case 0, 1:
		if len(w.stored) < 12 {
			w.stored = append(w.stored, Stored{ID{len(w.stored) + 1, w.now}, true})
		}
		return w.observed()
	case 2:
		if len(w.stored) > 0 {
			i := w.tape.next(len(w.stored))
			w.stored[i].Readable = !w.stored[i].Readable
		}
		return w.observed()
	case 3:
		w.write()
		return w.observed()
	case 4:
		w.halts = append(w.halts, Halt{To: w.version()})
		return w.observed()
	case 5:
		return Evidence{w.now, w.version(), uint64(w.tape.next(200)), uint64(w.tape.next(20))}
	case 6:
		if w.tape.next(4) == 0 {
			return Compromise{w.now, w.version()}
		}
		return Tick{w.now}
	case 7:
		if w.tape.next(4) == 0 {
			return Expired{w.now, []ID{{}, w.version()}[w.tape.next(2)]}
		}
		return Tick{w.now}
	case 8: // an answer that nobody asked for
		id := w.version()
		return []Event{
			LoadFailed{Now: w.now, ID: id, Permanent: true}, Probed{Now: w.now, ID: id, Verdict: VerdictDead},
			Audited{w.now, id, !slices.Contains(w.asked[id.Number], "audit")}, Vetoed{w.now, Halt{To: id}},
		}[w.tape.next(4)]
	default:
		return w.answer()
	}
}

func (w *world) observed() Observed {
	return Observed{Now: w.now, Versions: slices.Clone(w.stored), Record: w.record, Halts: w.halts}
}

// write changes the rotation record.
func (w *world) write() {
	r := &Record{From: w.version(), To: w.version(), Grace: time.Duration(w.tape.next(3)) * time.Minute, Ramp: threeSteps[:w.tape.next(4)]}
	switch w.tape.next(4) {
	case 0:
		r = nil
	case 1:
		r.StartedAt = w.now.Add(time.Duration(w.tape.next(3)-1) * time.Minute)
		r.Validated = w.tape.next(2) == 0
	case 2:
		r.Closed = true
	case 3:
		r.Versions = []VersionRecord{{ID: w.version(), State: State(w.tape.next(8))}}
	}
	w.record = r
}

// answer answers one of the actions given out, well or badly.
func (w *world) answer() Event {
	for _, s := range w.stored {
		n := s.ID.Number
		if len(w.asked[n]) == 0 {
			continue
		}
		what := w.asked[n][0]
		w.asked[n] = w.asked[n][1:]
		switch luck := w.tape.next(8); what {
		case "load":
			if luck == 0 {
				return LoadFailed{Now: w.now, ID: s.ID, Permanent: w.tape.next(2) == 0}
			}
			w.loaded[n] = true
			return Loaded{w.now, s.ID}
		case "probe":
			return Probed{Now: w.now, ID: s.ID, Verdict: []Verdict{VerdictDead, VerdictUnknown, VerdictLive}[min(luck, 2)]}
		case "audit":
			w.audited[n] = w.audited[n] || luck > 1
			return Audited{w.now, s.ID, luck > 1}
		}
	}
	return Tick{w.now}
}

// step gives one event and checks everything.
func (w *world) step(e Event) {
	t, k := w.t, w.k
	before := k
	before.Versions, before.Installed = slices.Clone(k.Versions), slices.Clone(k.Installed)
	was := k.Weights(e.at())
	next, acts := Step(k, e)
	if !reflect.DeepEqual(k, before) {
		t.Fatalf("%T changed Step's argument", e)
	}
	if again, same := Step(k, e); !reflect.DeepEqual(again, next) || !reflect.DeepEqual(same, acts) {
		t.Fatalf("%T: the same step came out differently", e)
	}
	w.k = next
	removal := w.removes(e)
	if k.Usable() && !next.Usable() && !removal {
		t.Fatalf("%#v took the last usable version", e)
	}
	installed := k.Installed
	for _, a := range acts {
		switch a := a.(type) {
		case Load:
			w.asked[a.ID.Number] = append(w.asked[a.ID.Number], "load")
		case Probe:
			w.asked[a.ID.Number] = append(w.asked[a.ID.Number], "probe")
		case Audit:
			w.asked[a.ID.Number] = append(w.asked[a.ID.Number], "audit")
		case Install:
			installed = a.Shares
		case Veto:
			w.barred[a.Halt.To.Number] = true
		case Discard:
			w.loaded[a.ID.Number], w.audited[a.ID.Number] = false, false
			if v, _ := k.Find(a.ID); v.usable() {
				t.Fatalf("%T discarded version %d, which was usable", e, a.ID.Number)
			}
		case Retire:
			w.retired(e, a, was, installed, removal)
		}
	}
	w.check(e, installed)
}

// removes reports whether the event may take what is usable away.
func (w *world) removes(e Event) bool {
	switch e := e.(type) {
	case Compromise, Expired:
		return true
	case Observed:
		return e.Record != nil && slices.ContainsFunc(e.Record.Versions, func(v VersionRecord) bool { return v.State == Compromised })
	}
	return false
}

func (w *world) retired(e Event, a Retire, was, installed []Share, removal bool) {
	n := a.ID.Number
	if !w.loaded[n] {
		w.t.Fatalf("%T retired version %d, which is not in memory", e, n)
	}
	w.loaded[n], w.audited[n] = false, false
	if slices.ContainsFunc(installed, func(s Share) bool { return s.ID.Equal(a.ID) }) {
		w.t.Fatalf("%T retired version %d before a snapshot without it was installed", e, n)
	}
	if a.State == Compromised || a.State == Rejected {
		w.barred[n] = true
	}
	// A promotion or a changed record may end a ramp at once; nothing else ends a version that has weight.
	_, observed := e.(Observed)
	_, promoted := e.(Audited)
	if a.State == Retired && !removal && !observed && !promoted {
		for _, s := range was {
			if s.ID.Equal(a.ID) && s.Weight > 0 {
				w.t.Fatalf("%T retired version %d at weight %d", e, n, s.Weight)
			}
		}
	}
}

func (w *world) check(e Event, installed []Share) {
	t, k := w.t, w.k
	now := e.at()
	shares := k.Weights(now)
	if !slices.EqualFunc(shares, installed, Share.equal) {
		t.Fatalf("%T: installed %v, but the weights are %v", e, installed, shares)
	}
	sum := 0
	for _, s := range shares {
		sum += s.Weight
		n := s.ID.Number
		v, _ := k.Find(s.ID)
		switch {
		case s.Weight < 0 || s.Weight > 100:
			t.Fatalf("%T: weight %d", e, s.Weight)
		case !v.Loaded || !w.loaded[n]:
			t.Fatalf("%T: version %d is usable and not in memory", e, n)
		case !w.audited[n]:
			t.Fatalf("%T: version %d is usable without its audit entry", e, n)
		case v.Verdict == VerdictDead || v.Halted || w.barred[n]:
			t.Fatalf("%T: version %d is usable: verdict %v, halted %v, barred %v", e, n, v.Verdict, v.Halted, w.barred[n])
		}
	}
	if len(shares) > 0 && sum != 100 || k.Usable() != (len(shares) > 0) {
		t.Fatalf("%T: the weights sum to %d: %v", e, sum, shares)
	}
	if to, _ := k.Find(k.To); k.Usable() && to.State != Active {
		t.Fatalf("%T: usable, but to is %v", e, to.State)
	}
	if from, ok := k.Find(k.From); ok && (!from.usable() || k.From.Equal(k.To)) || !ok && !k.From.Zero() {
		t.Fatalf("%T: from %v is %v, to %v", e, k.From, from.State, k.To)
	}
	if !slices.IsSortedFunc(k.Versions, func(a, b Version) int {
		if a.order.After(b.order) || a.order.Equal(b.order) && a.Number > b.Number {
			return -1
		}
		return 1
	}) {
		t.Fatalf("%T: versions are out of order", e)
	}
	if wake := k.Wake(now); !wake.IsZero() && !wake.After(now) {
		t.Fatalf("%T: wants to be woken in the past", e)
	}
}

// recovers ends every world: once store, provider and audit behave, a version
// written then must take all traffic.
func (w *world) recovers() {
	w.tape = &tape{}
	w.record, w.halts = nil, nil
	for _, s := range w.stored { // the tape's clock runs backwards at times
		if s.ID.Created.After(w.now) {
			w.now = s.ID.Created
		}
	}
	w.now = w.now.Add(time.Second)
	id := ID{len(w.stored) + 1, w.now}
	w.stored = append(w.stored, Stored{id, true})
	w.step(w.observed())
	for range 10000 {
		var e Event
		for _, s := range w.stored {
			if n := s.ID.Number; len(w.asked[n]) > 0 {
				what := w.asked[n][0]
				w.asked[n] = w.asked[n][1:]
				switch what {
				case "load":
					w.loaded[n], e = true, Loaded{w.now, s.ID}
				case "probe":
					e = Probed{Now: w.now, ID: s.ID, Verdict: VerdictLive}
				case "audit":
					w.audited[n], e = true, Audited{w.now, s.ID, true}
				}
				break
			}
		}
		if e == nil {
			wake := w.k.Wake(w.now)
			if wake.IsZero() {
				break
			}
			w.now = wake
			e = Tick{w.now}
		}
		w.step(e)
	}
	if got := w.k.Weights(w.now); len(got) != 1 || !got[0].ID.Equal(id) || got[0].Weight != 100 {
		w.t.Fatalf("everything works again, and the newest version %v does not serve alone: %v", id, got)
	}
}

func drive(t *testing.T, data []byte) {
	tp := tape(data)
	w := newWorld(t, &tp)
	for len(tp) > 0 {
		w.step(w.event())
	}
	w.recovers()
}

func TestWhateverHappens(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7})
		data := make([]byte, 50+seed*7%700)
		r.Read(data)
		drive(t, data)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzStep(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 2, 2, 0, 0, 9, 0, 2, 9, 0, 2, 9, 0, 2, 4, 0, 0, 9, 0, 2, 9, 0, 2, 9, 0, 2, 0, 5, 1, 100, 19})
	f.Add([]byte{0, 0, 0, 0, 0, 9, 2, 0, 9, 2, 0, 9, 2, 4, 7, 0, 0, 0, 0})
	f.Fuzz(drive)
}
