package rotation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// threeSteps is 1 % for 30 s, 10 % for 60 s, 50 % for 90 s: three minutes.
var threeSteps = Ramp{{1, 30 * time.Second}, {10, time.Minute}, {50, 90 * time.Second}}

// story plays a store, a provider and an executor around one Key.
type story struct {
	t   *testing.T
	k   Key
	now time.Time

	stored  []Stored
	record  *Record
	halts   []Halt
	verdict map[int]Verdict // by version number; default live
	broken  map[int]bool    // versions whose value can never be used
	mute    bool            // audit entries cannot be written
	deaf    bool            // Load, Probe and Audit stay unanswered
	log     []string        // what was done since the last call of told
}

func begin(t *testing.T, ramp Ramp, grace time.Duration) *story {
	return &story{t: t, k: New(ramp, grace, 0.05), now: epoch, verdict: map[int]Verdict{}, broken: map[int]bool{}}
}

// write stores the next version, created now.
func (s *story) write() ID {
	id := ID{Number: len(s.stored) + 1, Created: s.now}
	s.stored = append(s.stored, Stored{id, true})
	return id
}

func (s *story) id(n int) ID { return s.stored[n-1].ID }

func (s *story) unreadable(n int) { s.stored[n-1].Readable = false }

// observe looks into the store and does whatever follows.
func (s *story) observe() *story {
	s.t.Helper()
	s.do(Observed{Now: s.now, Versions: slices.Clone(s.stored), Record: s.record, Halts: s.halts})
	return s
}

// pass lets time go by, ticking whenever the key asks for it.
func (s *story) pass(d time.Duration) *story {
	s.t.Helper()
	end := s.now.Add(d)
	for {
		w := s.k.Wake(s.now)
		if w.IsZero() || w.After(end) {
			break
		}
		s.now = w
		s.do(Tick{s.now})
	}
	s.now = end
	return s
}

// do gives one event, and answers the actions until nothing is left to do.
func (s *story) do(e Event) {
	s.t.Helper()
	var acts []Action
	s.k, acts = Step(s.k, e)
	for _, a := range acts {
		switch a := a.(type) {
		case Load:
			s.say("load", a.ID)
			switch {
			case s.deaf:
			case s.broken[a.ID.Number]:
				s.do(LoadFailed{Now: s.now, ID: a.ID, Permanent: true})
			default:
				s.do(Loaded{s.now, a.ID})
			}
		case Probe:
			s.say("probe", a.ID)
			if !s.deaf {
				v, ok := s.verdict[a.ID.Number]
				if !ok {
					v = VerdictLive
				}
				s.do(Probed{Now: s.now, ID: a.ID, Verdict: v})
			}
		case Audit:
			s.say("audit", a.ID)
			if !s.deaf {
				s.do(Audited{s.now, a.ID, !s.mute})
			}
		case Retire:
			s.say("retire", a.ID)
		case Discard:
			s.say("discard", a.ID)
		case Veto:
			s.say("veto", a.Halt.To)
		case Note:
			s.say(string(a.Kind), a.ID)
		}
	}
}

func (s *story) say(what string, id ID) {
	s.log = append(s.log, fmt.Sprintf("%s %d", what, id.Number))
}

// told asserts what was done since the last call, in order.
func (s *story) told(want ...string) {
	s.t.Helper()
	if got := strings.Join(s.log, ", "); got != strings.Join(want, ", ") {
		s.t.Errorf("at +%v:\n  did  %s\n  want %s", s.now.Sub(epoch), got, strings.Join(want, ", "))
	}
	s.log = nil
}

// shares asserts the weights, as "2:10 1:90".
func (s *story) shares(want string) {
	s.t.Helper()
	var got []string
	for _, sh := range s.k.Weights(s.now) {
		got = append(got, fmt.Sprintf("%d:%d", sh.ID.Number, sh.Weight))
	}
	if g := strings.Join(got, " "); g != want {
		s.t.Errorf("at +%v: shares %q, want %q", s.now.Sub(epoch), g, want)
	}
}

func (s *story) state(n int, want State) {
	s.t.Helper()
	if v, _ := s.k.Find(s.id(n)); v.State != want {
		s.t.Errorf("at +%v: version %d is %v, want %v", s.now.Sub(epoch), n, v.State, want)
	}
}

// settled is a story with one version that serves, and all that happened forgotten.
func settled(t *testing.T, ramp Ramp, grace time.Duration) *story {
	s := begin(t, ramp, grace)
	s.write()
	s.pass(time.Hour).observe()
	s.shares("1:100")
	s.log = nil
	return s
}
