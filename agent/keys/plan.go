package keys

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

const (
	// overdueAfter is how long a step may stay undone before it shows.
	overdueAfter = time.Minute
	// unclaimed is how long a request waits for a server before it may be given up.
	unclaimed = 10 * time.Minute
	// skew is what two readings of the store's clock may differ by.
	skew = 5 * time.Second
	// settleTime is how long a provider may refuse a credential that it made itself
	// a moment ago: some tell their own servers about a new one only by and by.
	settleTime = 2 * time.Minute
	// proofPolls is for how many looks into the store an agent may still show that a
	// version works of which the provider cannot be asked from here.
	proofPolls = 10
	// maxProofs is how often a provider that does not answer is asked about a
	// version that no agent uses yet, before the old one is kept.
	maxProofs = 6
)

// situation is all that is known of a key's rotation at one moment.
type situation struct {
	name string
	r    *rotation.Record
	md   *store.Metadata // of the key; without versions if there is none
	halt *rotation.Halt  // against exactly r.To
	// agents that acknowledged anything about the key; blind says why that could not be read.
	agents []Agent
	blind  string
	poll   time.Duration

	// What whoever asks can do.
	server bool // it makes credentials at providers
	issuer bool // at this key's
	prober bool // it can ask the provider

	// What whoever asks is in the middle of.
	value  bool             // it has the value that To is to get, or got
	mine   bool             // the hold is its own
	began  bool             // it began this rotation: a version that it did not write is not the rotation's
	beaten bool             // it tried to write To, and there was a version already
	wrote  rotation.ID      // what it wrote
	probed *provider.Result // what the provider said of To
	unread bool             // To may not be read
	denied map[rotation.ID]string
}

// move is what is to be done next.
type move string

const (
	moveNone     move = ""         // wait
	moveWrite    move = "write"    // the value in hand becomes version To
	moveIssue    move = "issue"    // the issuer makes the value, which becomes version To
	moveWritten  move = "written"  // To is there: go on to validate
	moveProbe    move = "probe"    // ask the provider about To
	moveMigrate  move = "migrate"  // agents may move
	movePostpone move = "postpone" // the provider said nothing about To: ask again later
	moveProven   move = "proven"   // the provider said that To works
	moveRetire   move = "retire"   // all have moved: the end of From begins
	moveRevoke   move = "revoke"   // at the provider
	moveDestroy  move = "destroy"  // in the store
	moveClose    move = "close"    // nothing is left to be done, or it failed
)

// step is the outcome of decide.
type step struct {
	move    move
	version rotation.ID // moveRevoke, moveDestroy

	phase  rotation.Phase // moveClose: the last one
	reject bool           // moveClose: To must never be used
	halted bool           // moveClose: because of a halt
	kept   []keep         // moveClose: what stays in the store
	reason string         // moveClose

	waiting string    // moveNone: for what, as a sentence
	next    time.Time // moveNone: look again; zero: only others can go on
	due     time.Time // since when it could have been done; zero: it is not late
}

// keep is a version that nobody ends, and why.
type keep struct {
	id  rotation.ID
	why string
}

// late reports whether somebody should have done something long ago.
func (s step) late(now time.Time) bool { return !s.due.IsZero() && now.Sub(s.due) > overdueAfter }

// decide says what is to be done about a rotation. It has no other input, and no effect.
func decide(s situation, now time.Time) step {
	next := s.main(now)
	if next.move != moveNone {
		return next
	}
	if l, ok := s.leftover(now); ok {
		return l
	}
	return next
}

func (s situation) open() bool { return underWay(s.r) }

func (s situation) main(now time.Time) step {
	r := s.r
	if !s.open() {
		if r.Closed && r.Phase == rotation.PhaseAbandoned && s.wrote.Number != 0 && s.wrote.Number == r.To.Number && r.To.Created.IsZero() {
			return step{move: moveWritten} // it was given up while its version was being written
		}
		return step{}
	}
	if next, ok := s.verdict(); ok {
		return next
	}
	switch r.Phase {
	case rotation.PhaseRequested:
		return s.requested(now)
	case rotation.PhaseGenerate:
		return s.generating(now)
	case rotation.PhaseValidate:
		return s.validating(now)
	case rotation.PhaseMigrate:
		return s.migrating(now)
	case rotation.PhaseRevoke:
		return s.revoking(now)
	}
	return step{waiting: fmt.Sprintf("somebody who knows phase %q: this version of postern does not", r.Phase)}
}

func closing(phase rotation.Phase, format string, args ...any) step {
	return step{move: moveClose, phase: phase, reason: fmt.Sprintf(format, args...)}
}

// verdict ends a rotation whose new version must not, or cannot, be used.
func (s situation) verdict() (step, bool) {
	r := s.r
	if r.Phase == rotation.PhaseRequested || r.Phase == rotation.PhaseGenerate { // nobody can have judged it
		return step{}, false
	}
	n, back := r.To.Number, rotation.PhaseRolledBack
	if r.StartedAt.IsZero() { // no request carried it
		back = rotation.PhaseRejected
	}
	for _, v := range r.Versions {
		if v.ID.Equal(r.To) && barred(v.State) {
			return closing(rotation.PhaseRolledBack, "version %d is %s", n, v.State), true
		}
	}
	if !s.readable(r.To) {
		return closing(rotation.PhaseAbandoned, "somebody deleted or destroyed version %d meanwhile", n), true
	}
	if r.Phase == rotation.PhaseRevoke { // there is no way back
		return step{}, false
	}
	if newest := s.newest(); newest.Number > n {
		next := closing(rotation.PhaseAbandoned, "somebody wrote version %d meanwhile, which agents use instead of version %d", newest.Number, n)
		next.kept = []keep{{r.From, next.reason}, {r.To, next.reason}}
		return next, true
	}
	if len(s.others()) == 0 { // a veto against all there is helps nobody
		return step{}, false
	}
	if s.halt != nil {
		next := closing(back, "halted: %s", s.halt.Reason)
		if s.halt.Served > 0 {
			next.reason += fmt.Sprintf(" (%d of %d requests)", s.halt.Failed, s.halt.Served)
		}
		next.reject, next.halted = true, true
		return next, true
	}
	for _, a := range s.agents {
		if a.Live && a.To == rotation.Rejected {
			next := closing(back, "agent %s rejected version %d: %s", a.Name, n, orUnknown(a.Reason))
			next.reject = true
			return next, true
		}
	}
	return step{}, false
}

func orUnknown(reason string) string {
	if reason == "" {
		return "it gave no reason"
	}
	return reason
}

// requested is a managed rotation that nobody has taken up.
func (s situation) requested(now time.Time) step {
	switch {
	case !s.server:
		return step{waiting: "`postern server`, which makes the new credential at the provider", due: s.r.RequestedAt}
	case !s.issuer:
		return closing(rotation.PhaseAbandoned, "the server has no issuer for the provider of %s; see issuers in its configuration", s.name)
	}
	return s.issuing(now)
}

// issuing is a managed rotation whose credential is to be made here.
func (s situation) issuing(now time.Time) step {
	if v := s.about(s.r.To); pending(v.Next, now, failMost) {
		return step{waiting: "another try at the provider at " + clock(v.Next) + ", because the last one failed: " + v.Trouble, next: v.Next}
	}
	return step{move: moveIssue}
}

// generating: To's number is known, and perhaps the version is there.
func (s situation) generating(now time.Time) step {
	r := s.r
	n := r.To.Number
	stored, there := s.stored(n)
	switch {
	case there && s.wrote.Equal(idOf(stored)):
		return step{move: moveWritten}
	case there && s.beaten && s.began:
		return closing(rotation.PhaseAbandoned, "somebody wrote version %d by hand at the same time", n)
	case s.held(now):
		return s.hold()
	case there && stored.Readable() && !stored.Created.Before(r.RequestedAt.Add(-skew)):
		return step{move: moveWritten, due: r.HeldUntil}
	case r.Managed && !s.issuer:
		return step{waiting: "`postern server`, which makes the new credential at the provider", due: r.HeldUntil}
	case r.Managed:
		return s.issuing(now)
	case s.md.Current != n-1:
		return closing(rotation.PhaseAbandoned, "somebody changed the versions of %s at the same time: version %d is not what was to be written", s.name, n)
	case s.value:
		return step{move: moveWrite}
	}
	return step{
		waiting: fmt.Sprintf("the value of version %d, which was never written: `postern keys resume %s` goes on with the value, and gives up without", n, s.name),
		due:     r.HeldUntil,
	}
}

// held reports whether somebody else said that he is at it.
func (s situation) held(now time.Time) bool {
	return !s.mine && s.r.Holder != "" && pending(s.r.HeldUntil, now, holdTime)
}

// pending reports whether a time that a record names is still to come. One further
// away than anybody sets is none: it would hold a rotation up for ever.
func pending(at, now time.Time, most time.Duration) bool {
	return now.Before(at) && at.Sub(now) <= most+skew
}

func (s situation) hold() step {
	what := "writing"
	if s.r.Managed {
		what = "making"
	}
	if s.r.Phase == rotation.PhaseValidate {
		what = "asking the provider about"
	}
	return step{waiting: fmt.Sprintf("%s, who is %s version %d", s.r.Holder, what, s.r.To.Number), next: s.r.HeldUntil}
}

// validating: To is written and takes no traffic yet.
func (s situation) validating(now time.Time) step {
	v := s.about(s.r.To)
	switch {
	case s.held(now):
		return s.hold()
	case pending(v.Next, now, failMost):
		return step{waiting: fmt.Sprintf("the provider to know its new credential (%s); it is asked again at %s", v.Trouble, clock(v.Next)), next: v.Next}
	case s.probed == nil && s.prober && (s.value || !s.unread):
		return step{move: moveProbe, due: s.r.HeldUntil}
	case s.refused() && s.r.Managed && now.Before(s.r.To.Created.Add(settleTime)):
		return step{move: movePostpone}
	case s.refused():
		next := closing(rotation.PhaseRejected, "%s", refusal(s.probed.Meaning, s.probed.Status))
		next.reject = true
		return next
	}
	return step{move: moveMigrate, due: s.r.HeldUntil}
}

// refused reports whether the provider said that To does not work.
func (s situation) refused() bool {
	return s.probed != nil && s.probed.Verdict == rotation.VerdictDead
}

// migrating: agents move, as the ramp says, and then the old version's grace runs.
func (s situation) migrating(now time.Time) step {
	r := s.r
	n := r.To.Number
	if s.refused() && len(s.others()) > 0 {
		next := closing(rotation.PhaseRolledBack, "%s", refusal(s.probed.Meaning, s.probed.Status))
		next.reject = true
		return next
	}
	if s.probed != nil && s.probed.Verdict == rotation.VerdictLive && !r.Validated {
		return step{move: moveProven}
	}
	end := r.StartedAt.Add(r.Ramp.Length())
	if now.Before(end) {
		return step{waiting: fmt.Sprintf("the ramp: version %d has %d %% of the requests until %s", n, weight(r, now), clock(rampStep(r, now))), next: rampStep(r, now)}
	}
	if s.blind != "" {
		return step{waiting: "somebody who may read what agents acknowledge: " + s.blind, due: end}
	}
	if late := s.waitsFor(func(a Agent) bool { return a.To != rotation.Active }); late != "" {
		return step{waiting: fmt.Sprintf("%s to take version %d", late, n), next: now.Add(s.poll), due: end.Add(2 * s.poll)}
	}
	due := end.Add(max(r.Grace, 2*s.poll))
	if now.Before(due) {
		return step{waiting: "the grace of the version before, until " + clock(due), next: due}
	}
	if late := s.waitsFor(func(a Agent) bool { return a.From.Usable() }); late != "" {
		return step{waiting: fmt.Sprintf("%s to let go of version %d", late, r.From.Number), next: now.Add(s.poll), due: due.Add(2 * s.poll)}
	}
	if r.Validated || !s.readable(r.From) || slices.ContainsFunc(s.agents, func(a Agent) bool { return a.Live && a.To == rotation.Active }) {
		return step{move: moveRetire, due: due}
	}
	return s.proving(now, due)
}

// proving: neither an agent nor the provider has shown that the new version
// works, so the old one is not ended before that was tried.
func (s situation) proving(now, due time.Time) step {
	v := s.about(s.r.To)
	can := s.prober && (s.value || !s.unread)
	switch {
	case pending(v.Next, now, failMost):
		return step{waiting: fmt.Sprintf("the provider to say whether version %d works (%s); it is asked again at %s", s.r.To.Number, v.Trouble, clock(v.Next)), next: v.Next}
	case can && s.probed == nil:
		return step{move: moveProbe, due: due}
	case can && v.Attempts < maxProofs && (s.probed.Err != nil || s.probed.Status != 0):
		return step{move: movePostpone}
	}
	if last := due.Add(proofPolls * s.poll); now.Before(last) {
		return step{waiting: fmt.Sprintf("an agent to show that version %d works", s.r.To.Number), next: now.Add(s.poll), due: last}
	}
	next := closing(rotation.PhaseDone, "")
	next.kept = []keep{{s.r.From, fmt.Sprintf("neither an agent nor the provider has shown that version %d works", s.r.To.Number)}}
	return next
}

// revoking: nobody uses From any more. There is no way back from here.
func (s situation) revoking(now time.Time) step {
	from := s.about(s.r.From)
	if !s.r.From.Zero() && !s.r.From.Equal(s.r.To) {
		if next, more := s.end(from, now); more {
			return next
		}
	}
	return closing(rotation.PhaseDone, "")
}

// end is the next step in ending a version for good, at the provider and then in
// the store. A rejected one that is the newest stays in the store: the next version
// is written over it, and takes its other fields.
func (s situation) end(v rotation.VersionRecord, now time.Time) (step, bool) {
	atProvider := v.ProviderID != "" && !v.Revoked
	inStore := !v.Destroyed && has(s.md, v.ID) && (v.State != rotation.Rejected || v.Number < s.md.Current)
	switch {
	case !atProvider && !inStore:
		return step{}, false
	case atProvider && !s.issuer:
		return step{waiting: fmt.Sprintf("`postern server`, which revokes version %d at the provider%s", v.Number, because(v.Trouble)), due: v.Next}, true
	case pending(v.Next, now, failMost):
		return step{waiting: fmt.Sprintf("another try to end version %d at %s%s", v.Number, clock(v.Next), because(v.Trouble)), next: v.Next}, true
	case atProvider:
		return step{move: moveRevoke, version: v.ID, due: v.Next}, true
	case s.denied[v.ID] != "":
		return step{waiting: fmt.Sprintf("somebody who may destroy version %d in the store: %s", v.Number, s.denied[v.ID])}, true
	}
	return step{move: moveDestroy, version: v.ID, due: v.Next}, true
}

func because(trouble string) string {
	if trouble == "" {
		return ""
	}
	return " (the last try failed: " + trouble + ")"
}

// leftover is a step in ending versions that earlier rotations and revocations left.
func (s situation) leftover(now time.Time) (step, bool) {
	for _, v := range s.r.Versions {
		if !s.ended(v) {
			continue
		}
		if next, more := s.end(v, now); more && next.move != moveNone {
			return next, true
		}
	}
	return step{}, false
}

// ended reports whether a version is to be ended apart from the rotation under way.
func (s situation) ended(v rotation.VersionRecord) bool {
	switch v.State {
	case rotation.Compromised, rotation.Rejected:
		return true
	case rotation.Retired:
		return !s.open() || !v.ID.Equal(s.r.From) && !v.ID.Equal(s.r.To)
	}
	return false
}

// warnings are what does not show in what the rotation waits for.
func (s situation) warnings() (w []string) {
	for _, v := range s.r.Versions {
		switch {
		case v.Trouble == "" || s.open() && (v.ID.Equal(s.r.From) || v.ID.Equal(s.r.To)):
		case s.ended(v) && v.ProviderID != "" && !v.Revoked:
			w = append(w, fmt.Sprintf("version %d is not revoked at the provider: %s", v.Number, v.Trouble))
		default:
			w = append(w, fmt.Sprintf("version %d: %s", v.Number, v.Trouble))
		}
	}
	if s.open() && s.halt != nil && s.r.Phase != rotation.PhaseRequested && s.r.Phase != rotation.PhaseGenerate {
		w = append(w, fmt.Sprintf("an agent halted version %d (%s), but there is no other version to go back to", s.r.To.Number, s.halt.Reason))
	}
	return w
}

// waitsFor names the live agents of which something is true.
func (s situation) waitsFor(f func(Agent) bool) string {
	var names []string
	for _, a := range s.agents {
		if !a.Live || !f(a) {
			continue
		}
		name := a.Name
		if a.Reason != "" {
			name += " (" + a.Reason + ")"
		}
		names = append(names, name)
	}
	switch n := len(names); {
	case n == 0:
		return ""
	case n == 1:
		return "agent " + names[0]
	case n > 5:
		return fmt.Sprintf("%d agents (%s …)", n, strings.Join(names[:5], ", "))
	}
	return "agents " + strings.Join(names, ", ")
}
