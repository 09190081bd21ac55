package rotation

import (
	"slices"
	"testing"
	"time"
)

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
