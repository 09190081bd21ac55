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

func TestTheFirstVersionServesAfterProbeAndAudit(t *testing.T) {
	s := begin(t, threeSteps, time.Minute)
	s.write()
	s.pass(time.Hour).observe()
	s.told("load 1", "probe 1", "audit 1", "promoted 1")
	s.shares("1:100")
	s.observe().pass(time.Hour)
	s.told()
	if w := s.k.Wake(s.now); !w.IsZero() {
		t.Errorf("an idle key wants to be woken in %v", w.Sub(s.now))
	}
}

func TestTheRampIsAFunctionOfTheCreationTime(t *testing.T) {
	s := settled(t, threeSteps, 10*time.Minute)
	s.write()
	s.pass(5 * time.Second).observe() // the poll was late: the ramp runs since the creation
	s.told("load 2", "probe 2", "audit 2", "promoted 2")
	s.shares("2:1 1:99")
	if w := s.k.Wake(s.now).Sub(s.now); w != 25*time.Second || !s.k.Open(s.now) {
		t.Errorf("wakes in %v, open %v", w, s.k.Open(s.now))
	}
	s.pass(24 * time.Second).shares("2:1 1:99")
	s.pass(time.Second).shares("2:10 1:90") // +30 s
	s.pass(time.Minute).shares("2:50 1:50")
	s.state(1, Active)
	s.pass(90 * time.Second).shares("2:100 1:0")
	s.state(1, Draining)
	s.pass(10*time.Minute - time.Second).shares("2:100 1:0")
	s.told()
	s.pass(time.Second).shares("2:100")
	s.told("retire 1")
	s.state(1, Retired)
	if s.k.Open(s.now) {
		t.Error("the rotation is over and still open")
	}
}

func TestAMissedTickChangesNothing(t *testing.T) {
	s := settled(t, threeSteps, 10*time.Minute)
	s.write()
	s.observe()
	s.log = nil
	s.now = s.now.Add(8 * time.Minute) // nobody ticked
	s.do(Tick{s.now})
	s.shares("2:100 1:0")
	if v, _ := s.k.Find(s.id(1)); !v.Since.Equal(s.id(2).Created.Add(3 * time.Minute)) {
		t.Errorf("grace counts from %v, not from the ramp's end", v.Since.Sub(s.id(2).Created))
	}
}

func TestGraceBeginsWhenTheNewVersionWorks(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.write()
	s.pass(time.Hour).observe() // the agent was cut off all the time
	s.shares("2:100 1:0")
	s.pass(59 * time.Second).shares("2:100 1:0")
	s.pass(time.Second).shares("2:100")
}

func TestADeadVersionIsNeverPromoted(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.verdict[2] = VerdictDead
	s.write()
	s.observe()
	s.told("load 2", "probe 2", "discard 2")
	s.state(2, Rejected)
	if w := s.k.Wake(s.now); !w.IsZero() {
		t.Errorf("wakes in %v for nothing", w.Sub(s.now))
	}
	s.pass(time.Hour).observe()
	s.told()
	s.shares("1:100")
	s.write()
	s.observe()
	s.told("load 3", "probe 3", "audit 3", "promoted 3")
	s.shares("3:100 1:0")
}

func TestAnUnknownVerdictWaitsWhileAnotherVersionWorks(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.verdict[2] = VerdictUnknown
	s.write()
	s.observe()
	s.told("load 2", "probe 2")
	s.pass(5 * time.Second).told("probe 2")
	s.pass(9 * time.Second).told()
	s.pass(time.Second).told("probe 2")
	s.pass(20 * time.Second).told("probe 2")
	s.shares("1:100")
	s.state(2, Pending)
	s.pass(time.Hour)
	s.log = nil
	s.pass(5 * time.Minute).told("probe 2")
	s.verdict[2] = VerdictLive
	s.pass(5*time.Minute).told("probe 2", "audit 2", "promoted 2")
	s.shares("2:100 1:0")
}

func TestAnUnknownVerdictIsGoodEnoughWhereNothingElseWorks(t *testing.T) {
	s := begin(t, nil, time.Minute)
	s.verdict[1] = VerdictUnknown
	s.write()
	s.pass(time.Hour).observe()
	s.told("load 1", "probe 1", "audit 1", "promoted 1")

	s = settled(t, nil, time.Minute)
	s.verdict[2] = VerdictUnknown
	s.write()
	s.observe()
	s.log = nil
	s.do(Compromise{s.now, s.id(1)})
	s.told("retire 1", "audit 2", "promoted 2")
	s.shares("2:100")
}

func TestNothingIsPromotedWithoutItsAuditEntry(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.mute = true
	s.write()
	s.observe()
	s.told("load 2", "probe 2", "audit 2")
	s.pass(time.Second).told("audit 2")
	s.pass(2 * time.Second).told("audit 2")
	s.pass(time.Hour).shares("1:100")
	s.state(2, Pending)
	s.mute, s.log = false, nil
	s.pass(time.Minute).told("audit 2", "promoted 2")

	s = begin(t, nil, time.Minute) // not even the very first one
	s.mute = true
	s.write()
	s.observe().pass(time.Hour).shares("")
}

func TestARemovalNeverWaitsForAudit(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.write()
	s.observe()
	s.mute, s.log = true, nil
	s.pass(time.Minute).told("retire 1")
}

func TestANewerVersionReplacesTo(t *testing.T) {
	s := settled(t, threeSteps, time.Minute)
	s.write()
	s.observe().pass(100 * time.Second)
	s.shares("2:50 1:50")
	s.log = nil
	s.write()
	s.observe()
	s.told("load 3", "probe 3", "audit 3", "promoted 3")
	s.shares("3:1 2:0 1:99") // from stays the last one that had all traffic
	s.state(2, Draining)
	s.pass(time.Minute).told("retire 2")
	s.shares("3:10 1:90")
	s.pass(2 * time.Minute).shares("3:100 1:0")
	s.pass(time.Minute).shares("3:100")
}

func TestAVersionInGraceStaysBesideTheNextRotation(t *testing.T) {
	s := settled(t, threeSteps, 10*time.Minute)
	s.write()
	s.observe().pass(4 * time.Minute)
	s.write()
	s.observe()
	s.shares("3:1 2:99 1:0")
	s.pass(9 * time.Minute).shares("3:100 2:0")
}

func TestAPendingVersionIsDroppedForANewerOne(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.verdict[2] = VerdictUnknown
	s.write()
	s.observe()
	s.log = nil
	s.pass(time.Second).write()
	s.observe()
	s.told("discard 2", "load 3", "probe 3", "audit 3", "promoted 3")
	s.pass(time.Hour).observe()
	s.told("retire 1")
}

func TestAPendingVersionThatIsDeletedIsDropped(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.verdict[2] = VerdictUnknown
	s.write()
	s.observe()
	s.log = nil
	s.unreadable(2)
	s.observe().pass(time.Hour).observe()
	s.told("discard 2")
}

func TestALateAnswerIsHarmless(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.deaf = true
	s.write()
	s.observe()
	s.pass(time.Second).write()
	s.observe()
	s.told("load 2", "load 3")
	s.do(Loaded{s.now, s.id(2)}) // read, but nobody wants it any more
	s.told("discard 2")
	s.do(Loaded{s.now, s.id(3)})
	s.do(Loaded{s.now, s.id(3)}) // twice
	s.told("probe 3")
	s.do(Probed{Now: s.now, ID: s.id(2), Verdict: VerdictDead})
	s.do(Audited{s.now, s.id(3), true}) // not asked for yet
	s.do(LoadFailed{Now: s.now, ID: s.id(3), Permanent: true})
	s.told()
	s.state(3, Pending)
	s.deaf = false
	s.do(Probed{Now: s.now, ID: s.id(3), Verdict: VerdictLive})
	s.told("audit 3", "promoted 3")
	if s.k.Busy() {
		t.Error("version 2 is still on its way")
	}
}

func TestAPromotionThatComesAfterTheRampsUnnoticedEnd(t *testing.T) {
	s := settled(t, threeSteps, 10*time.Minute)
	s.write()
	s.observe()
	s.deaf = true
	s.write()
	s.observe()
	s.do(Loaded{s.now, s.id(3)})
	s.do(Probed{Now: s.now, ID: s.id(3), Verdict: VerdictLive})
	s.now = s.now.Add(5 * time.Minute) // nobody ticked
	s.do(Audited{s.now, s.id(3), true})
	if !s.k.From.Equal(s.id(2)) {
		t.Errorf("comes from %v, but version 2 had all traffic", s.k.From)
	}
}

func TestTheNewestOfWhatIsLeftTakesOver(t *testing.T) {
	s := settled(t, threeSteps, time.Hour)
	s.write()
	s.observe().pass(10 * time.Second)
	s.write()
	s.observe()
	s.shares("3:1 2:0 1:99")
	s.log = nil
	s.do(Compromise{s.now, s.id(3)})
	s.do(Compromise{s.now, s.id(1)})
	s.told("rolled-back 1", "retire 3", "rolled-back 2", "retire 1")
	s.shares("2:100")
	s.state(2, Active)
}

func TestStartDoesNotSearchForEverForAVersionToComeFrom(t *testing.T) {
	s := begin(t, nil, 100*time.Hour)
	for n := range 14 {
		s.pass(time.Hour).write()
		s.verdict[n+1] = VerdictDead
	}
	s.verdict[14] = VerdictLive
	s.observe()
	if n := len(s.log); n != 9*3+4 || s.log[0] != "load 13" || s.log[n-1] != "promoted 14" {
		t.Errorf("%d: %v", n, s.log)
	}
}

func TestARejectionIsNewsOnce(t *testing.T) {
	s := begin(t, nil, time.Minute)
	s.write()
	s.pass(time.Hour).observe()
	s.do(Compromise{s.now, s.id(1)})
	s.verdict[2] = VerdictDead
	s.write()
	for i, again := range []bool{false, true, true} {
		e := Event(Observed{Now: s.now, Versions: slices.Clone(s.stored)})
		if i > 0 {
			e = Tick{s.now}
		}
		for _, next := range []Event{e, Loaded{s.now, s.id(2)}, Probed{Now: s.now, ID: s.id(2), Verdict: VerdictDead}} {
			var acts []Action
			s.k, acts = Step(s.k, next)
			for _, a := range acts {
				if d, ok := a.(Discard); ok && (d.Again != again || !d.Rejected) {
					t.Errorf("rejection %d: %+v", i+1, d)
				}
			}
		}
		s.now = s.k.Wake(s.now)
	}
}

func TestStartInTheMiddleOfARotation(t *testing.T) {
	s := begin(t, threeSteps, time.Minute)
	s.write()
	s.pass(time.Hour).write()
	s.pass(40 * time.Second).observe()
	s.told("load 1", "probe 1", "audit 1", "promoted 1", "load 2", "probe 2", "audit 2", "promoted 2")
	s.shares("2:10 1:90")
}

func TestStartAfterTheRotationLeavesOldVersionsAlone(t *testing.T) {
	s := begin(t, threeSteps, time.Minute)
	s.write()
	s.pass(time.Hour).write()
	s.pass(4 * time.Minute).observe()
	s.told("load 2", "probe 2", "audit 2", "promoted 2")
	s.shares("2:100")
	s.do(Compromise{s.now, s.id(2)})
	s.observe().pass(time.Hour).observe()
	s.told("retire 2") // version 1 is not dug out: fail closed
	s.shares("")
}

func TestStartWithAnOldVersionThatIsDead(t *testing.T) {
	s := begin(t, nil, time.Hour)
	s.verdict[1] = VerdictDead
	s.write()
	s.pass(time.Hour).write()
	s.pass(time.Minute).observe()
	s.told("load 1", "probe 1", "discard 1", "load 2", "probe 2", "audit 2", "promoted 2")
	s.shares("2:100")
}

func TestStartWalksDownFromADeadVersion(t *testing.T) {
	s := begin(t, nil, time.Minute)
	for n := range 14 {
		s.pass(time.Hour).write()
		s.verdict[n+1] = VerdictDead
	}
	s.broken[13] = true
	s.pass(time.Hour).observe()
	s.told("load 14", "probe 14", "discard 14", "load 13", "discard 13", "load 12", "probe 12", "discard 12",
		"load 11", "probe 11", "discard 11", "load 10", "probe 10", "discard 10", "load 9", "probe 9", "discard 9",
		"load 8", "probe 8", "discard 8", "load 7", "probe 7", "discard 7", "load 6", "probe 6", "discard 6",
		"load 5", "probe 5", "discard 5") // ten, and no further
	s.shares("")
}

func TestRejectedVersionsAreTriedAgainOnceNothingIsUsable(t *testing.T) {
	s := begin(t, nil, time.Minute)
	s.verdict[1] = VerdictDead
	s.write()
	s.pass(time.Hour).observe()
	s.told("load 1", "probe 1", "discard 1")
	s.pass(30*time.Second).told("load 1", "probe 1", "discard 1")
	s.pass(59 * time.Second).told()
	s.pass(time.Second).told("load 1", "probe 1", "discard 1")
	s.pass(20 * time.Minute)
	s.log = nil
	s.pass(5*time.Minute).told("load 1", "probe 1", "discard 1")
	s.verdict[1] = VerdictLive
	s.pass(5*time.Minute).told("load 1", "probe 1", "audit 1", "promoted 1")
	s.shares("1:100")
}

func TestARejectedVersionIsTriedAgainWhenTheOldOneFalls(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.verdict[2] = VerdictDead
	s.write()
	s.observe()
	s.verdict[2] = VerdictLive
	s.pass(time.Hour)
	s.log = nil
	s.do(Compromise{s.now, s.id(1)})
	s.told("retire 1", "load 2", "probe 2", "audit 2", "promoted 2")
}

func TestLoadingIsTriedAgain(t *testing.T) {
	s := begin(t, nil, time.Minute)
	s.deaf = true
	s.write()
	s.pass(time.Hour).observe()
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		s.told("load 1")
		s.do(LoadFailed{Now: s.now, ID: s.id(1)})
		s.pass(wait*time.Second - 1).told()
		s.pass(1)
	}
}

func TestDeletedVersionsKeepServing(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.unreadable(1)
	s.observe()
	s.told("missing 1")
	if !s.k.Flagged {
		t.Error("not flagged")
	}
	s.observe().pass(time.Hour)
	s.stored = nil // the whole path is gone
	s.observe()
	s.told()
	s.shares("1:100")
	s.write() // numbering starts at 1 again
	s.observe()
	s.told("found 1", "load 1", "probe 1", "audit 1", "promoted 1")
	if s.k.Flagged || !s.k.To.Equal(s.id(1)) || len(s.k.Weights(s.now)) != 2 {
		t.Errorf("the path was written anew: to %v, flagged %v, %v", s.k.To, s.k.Flagged, s.k.Weights(s.now))
	}
	s.pass(time.Minute).told("retire 1")
	s.shares("1:100")
}

func TestAPathThatIsEmptyIsFlagged(t *testing.T) {
	s := begin(t, nil, time.Minute)
	s.observe()
	s.told("missing 0")
	s.write()
	s.observe()
	s.told("found 0", "load 1", "probe 1", "audit 1", "promoted 1")
}

func TestEvidenceRollsBack(t *testing.T) {
	for name, early := range map[string]bool{"in the ramp": true, "in grace": false} {
		t.Run(name, func(t *testing.T) {
			s := settled(t, threeSteps, time.Hour)
			s.write()
			s.observe().pass(40 * time.Second)
			if !early {
				s.pass(time.Hour / 2)
			}
			s.log = nil
			s.do(Evidence{s.now, s.id(2), 100, 4})
			s.do(Evidence{s.now, s.id(2), 100, 5}) // not above 5 %
			s.do(Evidence{s.now, s.id(1), 100, 50})
			s.told()
			s.do(Evidence{s.now, s.id(2), 100, 6})
			s.told("rolled-back 1", "retire 2", "veto 2")
			s.shares("1:100")
			s.state(2, Rejected)
			s.state(1, Active)
			s.pass(100 * time.Hour).observe() // no grace runs for version 1, and 2 never comes back
			s.told()
			s.shares("1:100")
			s.write()
			s.observe().shares("3:1 1:99")
		})
	}
}

func TestOneAgentsHaltStopsAll(t *testing.T) {
	s := settled(t, threeSteps, time.Hour)
	s.write()
	s.observe()
	s.log = nil
	s.halts = []Halt{{To: s.id(2), Reason: "refused"}}
	s.observe().observe()
	s.told("rolled-back 1", "retire 2")
	s.shares("1:100")
}

func TestAHaltMetWhileLoading(t *testing.T) {
	s := begin(t, nil, time.Minute)
	s.deaf = true
	s.write()
	s.pass(time.Hour).write()
	s.pass(time.Hour).observe()
	s.told("load 2")
	s.deaf = false
	s.do(Vetoed{s.now, Halt{To: s.id(2)}})
	s.told("discard 2", "load 1", "probe 1", "audit 1", "promoted 1")
	s.do(Compromise{s.now, s.id(1)})
	if w := s.k.Wake(s.now); !w.IsZero() {
		t.Errorf("wakes in %v for nothing", w.Sub(s.now))
	}
	s.pass(time.Hour).observe()
	s.told("retire 1") // a halted version never comes back, not even where nothing is left
	all := s.stored
	s.stored = nil
	s.observe()
	s.stored = all // a standby was behind
	s.observe().pass(time.Hour)
	s.told("missing 1", "found 1")
}

func TestEvidenceAgainstTheOnlyVersionSaysNothing(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.do(Evidence{s.now, s.id(1), 10, 10})
	s.told()
}

func TestAHaltOfTheOnlyVersionIsIgnored(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.halts = []Halt{{To: s.id(1)}}
	s.observe().observe()
	s.told("halt-ignored 1")
	s.shares("1:100")
	s.write()
	s.observe() // now there is another one
	s.log = nil
	s.observe()
	s.told("retire 1")
	s.shares("2:100")
}

func TestCompromise(t *testing.T) {
	s := settled(t, threeSteps, time.Hour)
	s.write()
	s.observe().pass(40 * time.Second)
	s.log = nil
	var acts []Action
	s.k, acts = Step(s.k, Compromise{s.now, s.id(2)})
	i := slices.IndexFunc(acts, func(a Action) bool { _, ok := a.(Install); return ok })
	j := slices.IndexFunc(acts, func(a Action) bool { r, ok := a.(Retire); return ok && r.Now && r.State == Compromised })
	if i < 0 || j < i {
		t.Errorf("the wiping comes at %d, the snapshot without the version at %d", j, i)
	}
	s.shares("1:100")
	s.do(Compromise{s.now, s.id(1)})
	s.shares("") // fail closed
	s.log = nil
	s.pass(time.Hour).observe()
	s.told()
	s.state(2, Compromised)
	s.write()
	s.observe().shares("3:100")
}

func TestCompromiseByRecord(t *testing.T) {
	s := settled(t, nil, time.Hour)
	two := s.write()
	s.record = &Record{Versions: []VersionRecord{{s.id(1), Compromised}, {two, Compromised}}}
	s.observe().observe()
	s.told("retire 1") // version 2 was never loaded
	s.shares("")
	s.record = nil
	s.observe().pass(time.Hour).observe() // for good
	s.told()
}

func TestExpiredStartsAfresh(t *testing.T) {
	s := settled(t, threeSteps, time.Hour)
	s.verdict[3] = VerdictUnknown
	s.write()
	s.observe().pass(10 * time.Second)
	s.write()
	s.observe()
	s.log = nil
	s.do(Expired{Now: s.now})
	s.told("retire 2", "retire 1", "discard 3")
	s.shares("")
	s.pass(2 * time.Hour).told()
	s.verdict[3] = VerdictLive
	s.observe()
	s.told("load 3", "probe 3", "audit 3", "promoted 3")
	s.shares("3:100")
}

func TestOneLeaseEnds(t *testing.T) {
	s := settled(t, threeSteps, time.Hour)
	s.write()
	s.observe()
	s.log = nil
	s.do(Expired{s.now, s.id(1)})
	s.told("retire 1")
	s.shares("2:100")
	s.do(Expired{s.now, s.id(2)})
	s.told("retire 2")
	s.shares("")
	s.pass(2 * time.Hour).observe()
	s.told("load 2", "probe 2", "audit 2", "promoted 2")
}

func TestARecordHoldsItsVersionUntilItStarts(t *testing.T) {
	s := settled(t, nil, time.Second)
	s.record = &Record{From: s.id(1), To: ID{Number: 2}, Grace: time.Hour, Ramp: Ramp{{20, time.Minute}}}
	s.write()
	s.observe()
	s.told("load 2", "probe 2")
	s.observe().pass(time.Hour).told()
	s.shares("1:100")
	if !s.k.Open(s.now) {
		t.Error("a rotation waits, but is not open")
	}
	started := *s.record
	started.StartedAt, started.To = s.now.Add(10*time.Second), s.id(2)
	s.record = &started
	s.observe().told()
	s.pass(10*time.Second).told("audit 2", "promoted 2")
	s.shares("2:20 1:80")
	s.pass(time.Minute).shares("2:100 1:0")
	now := started // the operator is in a hurry
	now.Grace = time.Minute
	s.record = &now
	s.observe().pass(time.Minute).shares("2:100")
}

func TestARecordThatHoldsTheOnlyVersion(t *testing.T) {
	s := begin(t, nil, time.Hour)
	s.record = &Record{To: ID{Number: 1}}
	s.write()
	s.observe()
	s.told("load 1", "probe 1", "audit 1", "promoted 1")
}

func TestARecordThatSaysValidatedSparesTheProbe(t *testing.T) {
	s := settled(t, nil, time.Hour)
	s.write()
	s.record = &Record{From: s.id(1), To: s.id(2), StartedAt: s.now, Validated: true}
	s.observe()
	s.told("load 2", "audit 2", "promoted 2", "retire 1") // and it asks for no grace
	s.shares("2:100")
}

func TestARecordNamesTheVersionToStartFrom(t *testing.T) {
	s := begin(t, nil, time.Hour)
	s.write()
	s.pass(time.Hour).write() // given up, but still there
	s.pass(time.Hour).write()
	s.record = &Record{From: s.id(1), To: s.id(3), StartedAt: s.now, Ramp: Ramp{{30, time.Hour}}, Grace: time.Hour}
	s.pass(time.Minute).observe()
	s.shares("3:30 1:70")
}

func TestARecordRejectsAVersion(t *testing.T) {
	s := settled(t, nil, time.Hour)
	s.write()
	s.observe()
	s.log = nil
	s.record = &Record{Versions: []VersionRecord{{s.id(2), Rejected}}}
	s.observe()
	s.told("rolled-back 1", "retire 2")
}

func TestInstallOnlyWhenSharesChange(t *testing.T) {
	s := settled(t, threeSteps, time.Hour)
	for range 3 {
		var acts []Action
		if s.k, acts = Step(s.k, Tick{s.now}); len(acts) > 0 {
			t.Fatalf("an idle tick did %v", acts)
		}
	}
	s.write()
	s.observe()
	installs := 0
	for range 400 {
		s.now = s.now.Add(time.Second)
		var acts []Action
		s.k, acts = Step(s.k, Tick{s.now})
		for _, a := range acts {
			if _, ok := a.(Install); ok {
				installs++
			}
		}
	}
	if installs != 3 {
		t.Errorf("%d installs in a ramp of three steps", installs)
	}
}

func TestRepeatedProbesAreSpread(t *testing.T) {
	s := settled(t, nil, time.Hour)
	s.deaf = true
	s.write()
	s.observe()
	var spreads []time.Duration
	give := func(e Event) {
		var acts []Action
		s.k, acts = Step(s.k, e)
		for _, a := range acts {
			if p, ok := a.(Probe); ok {
				spreads = append(spreads, p.Spread)
			}
		}
	}
	give(Loaded{s.now, s.id(2)})
	for range 2 {
		give(Probed{Now: s.now, ID: s.id(2)})
		s.now = s.k.Wake(s.now)
		give(Tick{s.now})
	}
	if want := []time.Duration{0, 1250 * time.Millisecond, 2500 * time.Millisecond}; !slices.Equal(spreads, want) {
		t.Errorf("spread %v, want %v", spreads, want)
	}
}

func TestWhatHaltsCountAgainst(t *testing.T) {
	s := settled(t, threeSteps, time.Minute)
	numbers := func() (out []int) {
		for _, id := range s.k.Vetoable() {
			out = append(out, id.Number)
		}
		return out
	}
	if got := numbers(); got != nil || s.k.Busy() {
		t.Errorf("a version that serves alone can be halted: %v", got)
	}
	s.verdict[2] = VerdictUnknown
	s.write()
	s.observe()
	if got := numbers(); !slices.Equal(got, []int{2}) || !s.k.Busy() {
		t.Errorf("pending: %v", got)
	}
	s.log = nil
	s.halts = []Halt{{To: s.id(2)}} // another agent was quicker, and sorry
	s.observe().told("discard 2")
	s.pass(time.Hour).told()
	s.halts = nil
	s.write()
	s.observe()
	if got := numbers(); !slices.Equal(got, []int{3}) || s.k.Busy() {
		t.Errorf("in its ramp: %v", got)
	}
}
