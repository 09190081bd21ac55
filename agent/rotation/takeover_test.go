package rotation

import (
	"slices"
	"testing"
	"time"
)

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
	s.record = &Record{Versions: []VersionRecord{{ID: s.id(1), State: Compromised}, {ID: two, State: Compromised}}}
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
	s.told("load 2")
	s.observe().pass(time.Hour).told()
	s.shares("1:100")
	if !s.k.Open(s.now) {
		t.Error("a rotation waits, but is not open")
	}
	started := *s.record
	started.StartedAt, started.To = s.now.Add(10*time.Second), s.id(2)
	s.record = &started
	s.observe().told("probe 2")
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
	s.record = &Record{Versions: []VersionRecord{{ID: s.id(2), State: Rejected}}}
	s.observe()
	s.told("rolled-back 1", "retire 2")
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

// The store's clock is set back by an hour. What is written then is newer than
// what was written before, whatever the times say: the store numbers in order.
func TestTheStoresClockIsSetBack(t *testing.T) {
	s := settled(t, nil, time.Minute)
	s.now = s.now.Add(-time.Hour)
	s.write()
	s.observe().told("load 2", "probe 2", "audit 2", "promoted 2")
	s.shares("2:100 1:0")
	s.pass(time.Minute).told("retire 1")
	// And forward again, before the next.
	s.now = s.now.Add(2 * time.Hour)
	s.write()
	s.observe()
	s.shares("3:100 2:0")
}
