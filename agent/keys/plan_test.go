package keys

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

var (
	v1 = rotation.ID{Number: 1, Created: noon.Add(-time.Hour)}
	v2 = rotation.ID{Number: 2, Created: noon.Add(time.Second)}
	v3 = rotation.ID{Number: 3, Created: noon.Add(time.Minute)}
)

// seen is a rotation from version 1 to version 2, asked for at noon.
func seen(phase rotation.Phase, change ...func(*situation)) situation {
	s := situation{
		name: "openai", poll: 5 * time.Second, prober: true, denied: map[rotation.ID]string{},
		md: stores(v1, v2),
		r:  &rotation.Record{From: v1, To: v2, Phase: phase, Grace: time.Minute, RequestedAt: noon},
	}
	if phase == rotation.PhaseMigrate || phase == rotation.PhaseRevoke {
		s.r.StartedAt, s.r.Validated = noon.Add(10*time.Second), true
	}
	for _, f := range change {
		f(&s)
	}
	return s
}

func stores(ids ...rotation.ID) *store.Metadata {
	md := &store.Metadata{}
	for _, id := range ids {
		md.Versions = append(md.Versions, store.Version{Number: id.Number, Created: id.Created})
		md.Current = id.Number
	}
	return md
}

func unwritten(s *situation) { s.r.To.Created, s.md = time.Time{}, stores(v1) }

func unnoted(s *situation) { s.r.To.Created = time.Time{} }

func managed(s *situation) { s.r.Managed, s.server, s.issuer = true, true, true }

func heldBy(who string) func(*situation) {
	return func(s *situation) { s.r.Holder, s.r.HeldUntil = who, noon.Add(2*time.Minute) }
}

func agents(list ...Agent) func(*situation) { return func(s *situation) { s.agents = list } }

func says(v rotation.Verdict) func(*situation) {
	return func(s *situation) { s.probed = &provider.Result{Verdict: v, Status: 401, Meaning: "what it says"} }
}

func version(id rotation.ID, f func(*rotation.VersionRecord)) func(*situation) {
	return func(s *situation) { f(s.r.Version(id)) }
}

func TestDecide(t *testing.T) {
	at := func(d time.Duration) time.Time { return noon.Add(d) }
	for _, c := range []struct {
		name string
		s    situation
		now  time.Duration
		move move
		// phase is the last one of a close; text is in the reason or in what is waited for; next is when.
		phase rotation.Phase
		text  string
		next  time.Duration
		late  bool
	}{
		{name: "nothing ever began", s: situation{r: &rotation.Record{}, md: stores(v1)}},
		{name: "closed", s: seen(rotation.PhaseDone, func(s *situation) { s.r.Closed = true })},
		{name: "a phase of the future", s: seen("dance"), text: `phase "dance"`},

		{name: "requested, no server", s: seen(rotation.PhaseRequested, func(s *situation) { s.r.To = rotation.ID{} }), now: 2 * time.Minute, text: "postern server", late: true},
		{name: "requested, server", s: seen(rotation.PhaseRequested, managed, func(s *situation) { s.r.To = rotation.ID{} }), move: moveIssue},
		{name: "requested, no issuer", s: seen(rotation.PhaseRequested, func(s *situation) { s.r.To, s.server = rotation.ID{}, true }), move: moveClose, phase: rotation.PhaseAbandoned, text: "no issuer"},

		{name: "generate, value", s: seen(rotation.PhaseGenerate, unwritten, func(s *situation) { s.value = true }), move: moveWrite},
		{name: "generate, held", s: seen(rotation.PhaseGenerate, unwritten, heldBy("ada")), text: "ada, who is writing version 2", next: 2 * time.Minute},
		{name: "generate, held by us", s: seen(rotation.PhaseGenerate, unwritten, heldBy("ada"), func(s *situation) { s.mine, s.value = true, true }), move: moveWrite},
		{name: "generate, no value", s: seen(rotation.PhaseGenerate, unwritten, heldBy("ada")), now: 4 * time.Minute, text: "postern keys resume openai", late: true},
		{name: "generate, written", s: seen(rotation.PhaseGenerate, unnoted, heldBy("ada")), now: 2 * time.Minute, move: moveWritten},
		{name: "generate, being written", s: seen(rotation.PhaseGenerate, unnoted, heldBy("ada")), text: "ada", next: 2 * time.Minute},
		{name: "generate, older than the request", s: seen(rotation.PhaseGenerate, unnoted, func(s *situation) { s.r.RequestedAt = at(time.Minute) }), move: moveClose, phase: rotation.PhaseAbandoned, text: "version 2 is not what was to be written"},
		{name: "generate, destroyed", s: seen(rotation.PhaseGenerate, unnoted, func(s *situation) { s.md.Versions[1].Destroyed = true }), move: moveClose, phase: rotation.PhaseAbandoned},
		{name: "generate, numbering began anew", s: seen(rotation.PhaseGenerate, unwritten, func(s *situation) { s.r.To.Number = 9 }), move: moveClose, phase: rotation.PhaseAbandoned},
		{name: "generate, ours", s: seen(rotation.PhaseGenerate, unnoted, func(s *situation) { s.wrote, s.began = v2, true }), move: moveWritten},
		{name: "generate, another's", s: seen(rotation.PhaseGenerate, unnoted, func(s *situation) { s.beaten, s.began = true, true }), move: moveClose, phase: rotation.PhaseAbandoned, text: "by hand"},
		{name: "generate, managed elsewhere", s: seen(rotation.PhaseGenerate, unwritten, managed, func(s *situation) { s.issuer = false }), text: "postern server"},
		{name: "generate, managed, taken over", s: seen(rotation.PhaseGenerate, unwritten, managed, heldBy("s-0")), now: 2 * time.Minute, move: moveIssue},
		{name: "generate, managed, failed", s: seen(rotation.PhaseGenerate, unwritten, managed, func(s *situation) {
			v := s.r.Version(s.r.To)
			v.Next, v.Trouble = at(time.Minute), "429"
		}), text: "429", next: time.Minute},
		{name: "given up and written all the same", s: seen(rotation.PhaseAbandoned, unnoted, func(s *situation) { s.r.Closed, s.wrote = true, v2 }), move: moveWritten},

		{name: "validate", s: seen(rotation.PhaseValidate), move: moveProbe},
		{name: "validate, held", s: seen(rotation.PhaseValidate, heldBy("ada")), text: "ada, who is asking the provider", next: 2 * time.Minute},
		{name: "validate, live", s: seen(rotation.PhaseValidate, says(rotation.VerdictLive)), move: moveMigrate},
		{name: "validate, unknown", s: seen(rotation.PhaseValidate, says(rotation.VerdictUnknown)), move: moveMigrate},
		{name: "validate, dead", s: seen(rotation.PhaseValidate, says(rotation.VerdictDead)), move: moveClose, phase: rotation.PhaseRejected, text: "status 401: what it says"},
		{name: "validate, managed and not known yet", s: seen(rotation.PhaseValidate, says(rotation.VerdictDead), managed), move: movePostpone},
		{name: "validate, managed and postponed", s: seen(rotation.PhaseValidate, managed, version(v2, func(v *rotation.VersionRecord) { v.Next = noon.Add(30 * time.Second) })), text: "new credential", next: 30 * time.Second},
		{name: "validate, postponed for ever by somebody", s: seen(rotation.PhaseValidate, managed, version(v2, func(v *rotation.VersionRecord) { v.Next = noon.AddDate(1000, 0, 0) })), move: moveProbe},
		{name: "validate, nobody to ask", s: seen(rotation.PhaseValidate, func(s *situation) { s.prober = false }), move: moveMigrate},
		{name: "validate, may not be read", s: seen(rotation.PhaseValidate, func(s *situation) { s.unread = true }), move: moveMigrate},
		{name: "validate, destroyed", s: seen(rotation.PhaseValidate, func(s *situation) { s.md.Versions[1].Destroyed = true }), move: moveClose, phase: rotation.PhaseAbandoned, text: "destroyed version 2"},
		{name: "validate, halted", s: seen(rotation.PhaseValidate, func(s *situation) { s.halt = &rotation.Halt{To: v2, Reason: "403"} }), move: moveClose, phase: rotation.PhaseRejected, text: "halted: 403"},

		{name: "migrate, before the ramp", s: seen(rotation.PhaseMigrate, func(s *situation) { s.r.Ramp = halfHalf }), text: "0 % of the requests", next: 10 * time.Second},
		{name: "migrate, ramp", s: seen(rotation.PhaseMigrate, func(s *situation) { s.r.Ramp = halfHalf }), now: 90 * time.Second, text: "50 %", next: 190 * time.Second},
		{name: "migrate, grace", s: seen(rotation.PhaseMigrate), now: 30 * time.Second, text: "grace", next: 70 * time.Second},
		{name: "migrate, two polls at least", s: seen(rotation.PhaseMigrate, func(s *situation) { s.r.Grace = 0 }), now: 12 * time.Second, text: "grace", next: 20 * time.Second},
		{name: "migrate, over", s: seen(rotation.PhaseMigrate), now: 70 * time.Second, move: moveRetire},
		{name: "migrate, a live agent waits", s: seen(rotation.PhaseMigrate, agents(Agent{Name: "a", Live: true, To: rotation.Pending, Reason: "no answer"})), now: 70 * time.Second, text: "agent a (no answer) to take version 2", next: 75 * time.Second},
		{name: "migrate, for long", s: seen(rotation.PhaseMigrate, agents(Agent{Name: "a", Live: true})), now: 10 * time.Minute, text: "agent a to take", next: 605 * time.Second, late: true},
		{name: "migrate, an agent that is gone", s: seen(rotation.PhaseMigrate, agents(Agent{Name: "a", To: rotation.Pending})), now: 70 * time.Second, move: moveRetire},
		{name: "migrate, still draining", s: seen(rotation.PhaseMigrate, agents(Agent{Name: "a", Live: true, To: rotation.Active, From: rotation.Draining})), now: 70 * time.Second, text: "agent a to let go of version 1", next: 75 * time.Second},
		{name: "migrate, many", s: seen(rotation.PhaseMigrate, func(s *situation) {
			for range 7 {
				s.agents = append(s.agents, Agent{Name: "a", Live: true})
			}
		}), now: 70 * time.Second, text: "7 agents (a, a, a, a, a …)", next: 75 * time.Second},
		{name: "migrate, rejected", s: seen(rotation.PhaseMigrate, agents(Agent{Name: "a", Live: true, To: rotation.Rejected})), move: moveClose, phase: rotation.PhaseRolledBack, text: "agent a rejected version 2"},
		{name: "migrate, rejected by one that is gone", s: seen(rotation.PhaseMigrate, agents(Agent{Name: "a", To: rotation.Rejected})), text: "grace", next: 70 * time.Second, now: 20 * time.Second},
		{name: "migrate, rejected, nothing else", s: seen(rotation.PhaseMigrate, agents(Agent{Name: "a", Live: true, To: rotation.Rejected}), func(s *situation) { s.md = stores(v2) }), now: 70 * time.Second, text: "to take version 2", next: 75 * time.Second},
		{name: "migrate, halted, the other one revoked", s: seen(rotation.PhaseMigrate, func(s *situation) {
			s.halt = &rotation.Halt{To: v2}
			v := s.r.Version(v1)
			v.State, v.Destroyed = rotation.Compromised, true
		}), now: 20 * time.Second, text: "grace", next: 70 * time.Second},
		{name: "migrate, revoked in an emergency", s: seen(rotation.PhaseMigrate, version(v2, func(v *rotation.VersionRecord) { v.State = rotation.Compromised })), move: moveClose, phase: rotation.PhaseRolledBack, text: "version 2 is compromised"},
		{name: "migrate, a newer one", s: seen(rotation.PhaseMigrate, func(s *situation) { s.md = stores(v1, v2, v3) }), move: moveClose, phase: rotation.PhaseAbandoned, text: "somebody wrote version 3"},
		{name: "migrate, gone", s: seen(rotation.PhaseMigrate, func(s *situation) { s.md = stores(v1) }), move: moveClose, phase: rotation.PhaseAbandoned},
		{name: "migrate, blind", s: seen(rotation.PhaseMigrate, func(s *situation) { s.blind = "forbidden" }), now: 5 * time.Minute, text: "forbidden", late: true},
		{name: "migrate, unproven", s: seen(rotation.PhaseMigrate, func(s *situation) { s.r.Validated = false }), now: 70 * time.Second, move: moveProbe},
		{name: "migrate, unproven and live", s: seen(rotation.PhaseMigrate, says(rotation.VerdictLive), func(s *situation) { s.r.Validated = false }), now: 70 * time.Second, move: moveProven},
		{name: "migrate, unproven and dead", s: seen(rotation.PhaseMigrate, says(rotation.VerdictDead), func(s *situation) { s.r.Validated = false }), now: 70 * time.Second, move: moveClose, phase: rotation.PhaseRolledBack},
		{name: "migrate, unproven, no answer", s: seen(rotation.PhaseMigrate, func(s *situation) {
			s.r.Validated, s.probed = false, &provider.Result{Err: errors.New("no route")}
		}), now: 70 * time.Second, move: movePostpone},
		{name: "migrate, unproven, no way to ask yet", s: seen(rotation.PhaseMigrate, func(s *situation) { s.r.Validated, s.probed = false, &provider.Result{} }), now: 70 * time.Second, text: "an agent to show", next: 75 * time.Second},
		{name: "migrate, unproven, no way to ask", s: seen(rotation.PhaseMigrate, func(s *situation) { s.r.Validated, s.probed = false, &provider.Result{} }), now: 3 * time.Minute, move: moveClose, phase: rotation.PhaseDone},
		{name: "migrate, unproven, nobody asks", s: seen(rotation.PhaseMigrate, func(s *situation) { s.r.Validated, s.prober = false, false }), now: 3 * time.Minute, move: moveClose, phase: rotation.PhaseDone},
		{name: "migrate, unproven, nothing to lose", s: seen(rotation.PhaseMigrate, func(s *situation) { s.r.Validated, s.md = false, stores(v2) }), now: 70 * time.Second, move: moveRetire},
		{name: "migrate, proven by an agent", s: seen(rotation.PhaseMigrate, agents(Agent{Live: true, To: rotation.Active}), func(s *situation) { s.r.Validated = false }), now: 70 * time.Second, move: moveRetire},

		{name: "revoke", s: seen(rotation.PhaseRevoke), move: moveDestroy},
		{name: "revoke, there is no way back", s: seen(rotation.PhaseRevoke, func(s *situation) { s.halt = &rotation.Halt{To: v2} }), move: moveDestroy},
		{name: "revoke, a newer one", s: seen(rotation.PhaseRevoke, func(s *situation) { s.md = stores(v1, v2, v3) }), move: moveDestroy},
		{name: "revoke, but To is gone", s: seen(rotation.PhaseRevoke, func(s *situation) { s.md = stores(v1) }), move: moveClose, phase: rotation.PhaseAbandoned},
		{name: "revoke, but To is revoked", s: seen(rotation.PhaseRevoke, version(v2, func(v *rotation.VersionRecord) { v.State = rotation.Compromised })), move: moveClose, phase: rotation.PhaseRolledBack},
		{name: "revoke, destroyed", s: seen(rotation.PhaseRevoke, func(s *situation) { s.md.Versions[0].Destroyed = true }), move: moveClose, phase: rotation.PhaseDone},
		{name: "revoke, there was none", s: seen(rotation.PhaseRevoke, func(s *situation) { s.r.From, s.md = rotation.ID{}, stores(v2) }), move: moveClose, phase: rotation.PhaseDone},
		{name: "revoke, From is To", s: seen(rotation.PhaseRevoke, func(s *situation) { s.r.From = v2 }), move: moveClose, phase: rotation.PhaseDone},
		{name: "revoke, To was never there", s: seen(rotation.PhaseRevoke, unnoted), move: moveClose, phase: rotation.PhaseAbandoned},
		{name: "held for ever", s: seen(rotation.PhaseValidate, func(s *situation) { s.r.Holder, s.r.HeldUntil = "eve", noon.AddDate(9, 0, 0) }), move: moveProbe},
		{name: "put off for ever", s: seen(rotation.PhaseRevoke, managed, version(v1, func(v *rotation.VersionRecord) { v.ProviderID, v.Next = "x", noon.AddDate(9, 0, 0) })), move: moveRevoke},
		{name: "revoke, denied", s: seen(rotation.PhaseRevoke, func(s *situation) { s.denied[v1] = "policy" }), text: "somebody who may destroy version 1 in the store: policy"},
		{name: "revoke, at the provider", s: seen(rotation.PhaseRevoke, managed, version(v1, func(v *rotation.VersionRecord) { v.ProviderID = "x" })), move: moveRevoke},
		{name: "revoke, at the provider, not here", s: seen(rotation.PhaseRevoke, version(v1, func(v *rotation.VersionRecord) { v.ProviderID = "x" })), text: "postern server"},
		{name: "revoke, at the provider, failed", s: seen(rotation.PhaseRevoke, managed, version(v1, func(v *rotation.VersionRecord) { v.ProviderID, v.Next, v.Trouble = "x", at(time.Minute), "500" })), text: "500", next: time.Minute},
		{name: "revoke, at the provider, done", s: seen(rotation.PhaseRevoke, managed, version(v1, func(v *rotation.VersionRecord) { v.ProviderID, v.Revoked = "x", true })), move: moveDestroy},

		{name: "left over from a revocation", s: seen(rotation.PhaseRolledBack, func(s *situation) {
			s.r.Closed = true
			s.r.Version(v2).State = rotation.Compromised
		}), move: moveDestroy},
		{name: "left over, while agents move", s: seen(rotation.PhaseMigrate, version(rotation.ID{Number: 1, Created: v1.Created}, func(v *rotation.VersionRecord) { v.State = rotation.Compromised })), move: moveDestroy},
		{name: "rejected, and the newest", s: seen(rotation.PhaseRejected, func(s *situation) {
			s.r.Closed = true
			s.r.Version(v2).State = rotation.Rejected
		})},
		{name: "rejected, and not the newest", s: seen(rotation.PhaseRejected, func(s *situation) {
			s.r.Closed, s.md = true, stores(v1, v2, v3)
			s.r.Version(v2).State = rotation.Rejected
		}), move: moveDestroy},
		{name: "kept", s: seen(rotation.PhaseDone, func(s *situation) {
			s.r.Closed = true
			s.r.Version(v1).Trouble = "it stays in the store"
		})},
	} {
		got := decide(c.s, at(c.now))
		if got.move != c.move || got.phase != c.phase || !strings.Contains(got.waiting+got.reason, c.text) || got.late(at(c.now)) != c.late {
			t.Errorf("%s: %+v", c.name, got)
		}
		if want := at(c.next); c.next == 0 && !got.next.IsZero() || c.next != 0 && !got.next.Equal(want) {
			t.Errorf("%s: next %v, want %v", c.name, got.next, want)
		}
		if c.text == "" && got.waiting != "" || got.move != moveNone && got.waiting != "" {
			t.Errorf("%s: waits for %q", c.name, got.waiting)
		}
	}
}
