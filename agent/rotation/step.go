package rotation

import (
	"cmp"
	"slices"
	"time"
)

// Times and counts of the machine. The executor adds what jitter it wants.
const (
	loadFirst, loadMost     = time.Second, 30 * time.Second
	probeFirst, probeMost   = 5 * time.Second, 5 * time.Minute
	auditFirst, auditMost   = time.Second, time.Minute
	rejectFirst, rejectMost = 30 * time.Second, 5 * time.Minute

	minFailures = 5  // pairs of requests, below which evidence says nothing
	maxTried    = 10 // readable versions, counted from the newest, that are ever tried
)

// step is one Step under way: the changed copy, and what is to be done.
type step struct {
	Key
	now time.Time

	notes, ended, begun []Action // before the Install, after it, and last
}

// Step is the life of a key: what happened changes what is known, and what is
// known says what to do. It has no other input; k is not changed.
func Step(k Key, e Event) (Key, []Action) {
	s := &step{Key: k, now: e.at()}
	s.Versions = slices.Clone(k.Versions)
	s.elapse()
	e.apply(s)
	s.elapse()
	s.advance()

	actions := s.notes
	if shares := s.Weights(s.now); !slices.EqualFunc(shares, s.Installed, Share.equal) {
		s.Installed = shares
		actions = append(actions, Install{shares})
	}
	return s.Key, slices.Concat(actions, s.ended, s.begun)
}

func (a Share) equal(b Share) bool { return a.ID.Equal(b.ID) && a.Weight == b.Weight }

// elapse does what time alone does: after it To is Active if anything is
// usable, From is Active as long as it has a share, and no grace is overdue.
func (s *step) elapse() {
	s.settle()
	if from := s.find(s.From); from != nil {
		if end := s.drained(); s.now.Before(end) {
			from.enter(Active, s.now)
		} else {
			from.enter(Draining, end)
			from.Since = end // the plan may have changed
		}
	}
	for i := range s.Versions {
		v := &s.Versions[i]
		if v.State == Draining && !s.now.Before(v.Since.Add(s.Plan.Grace)) {
			s.retire(v, Retired, "a newer version took over and grace is over")
			if v.ID.Equal(s.From) {
				s.From = ID{}
			}
		}
	}
}

// settle puts a usable version into To's place if To is not usable any more:
// From, else the newest. If there is none To stays, and only newer ones may follow.
func (s *step) settle() {
	if from := s.find(s.From); from == nil || !from.usable() {
		s.From = ID{}
	}
	if to := s.find(s.To); to != nil && to.usable() {
		return
	}
	heir := s.find(s.From)
	if i := slices.IndexFunc(s.Versions, Version.usable); heir == nil && i >= 0 {
		heir = &s.Versions[i]
	}
	if heir == nil {
		return
	}
	s.notes = append(s.notes, Note{Kind: NoteRolledBack, ID: heir.ID, From: s.To})
	heir.enter(Active, s.now)
	s.To, s.From = heir.ID, ID{}
}

// advance brings the candidate one step nearer to Active and lets go of every
// other version that was on its way; answers about those are not expected any more.
func (s *step) advance() {
	c := s.candidate()
	for i := range s.Versions {
		v := &s.Versions[i]
		if v == c || v.usable() {
			continue
		}
		v.wait()
		if v.State == Pending {
			v.enter(Unknown, s.now)
			s.discard(v, "a newer version came, or the store has it no more")
		}
	}
	if c == nil {
		return
	}
	if t := s.task(c); t != c.task {
		c.wait()
		c.task = t
	}
	if c.task == toWait || c.busy || s.now.Before(c.next) {
		return
	}
	c.busy = true
	switch c.task {
	case toLoad:
		s.begun = append(s.begun, Load{c.ID, c.overruled && !c.decided})
	case toProbe:
		var spread time.Duration
		if c.attempts > 0 {
			spread = backoff(probeFirst, probeMost, c.attempts-1) / 4
		}
		s.begun = append(s.begun, Probe{c.ID, spread})
	case toAudit:
		s.begun = append(s.begun, Audit{c.ID})
	}
}

// candidate is the version to bring in: the newest readable one that is newer
// than To. While nothing is usable it may also be one that was rejected before.
func (s *step) candidate() *Version {
	usable := s.Usable()
	var again, last *Version
	tried := 0
	for i := range s.Versions {
		v := &s.Versions[i]
		if !v.Readable {
			continue
		}
		if tried++; tried > maxTried {
			break
		}
		newer := s.To.Zero() || s.newer(v, s.To)
		switch {
		case v.State == Unknown && newer, v.State == Pending && (newer || !usable):
			return s.base(v)
		case v.State == Rejected && !usable && !v.Halted && !s.now.Before(v.retry) && again == nil:
			again = v
		case last == nil && s.last(*v) && !s.now.Before(v.retry):
			last = v
		}
	}
	if again == nil && last != nil {
		last.Halted, last.overruled = false, true
		last.enter(Unknown, s.now)
		s.notes = append(s.notes, Note{Kind: NoteHaltIgnored, ID: last.ID})
		return last
	}
	return again
}

// base is the version that has to be brought in before v at the very beginning:
// the one that v is still taking over from, else v itself.
func (s *step) base(v *Version) *Version {
	if !s.To.Zero() || !s.held(v.ID, s.now) && !s.planOf(v.ID).open(s.now) {
		return v
	}
	if s.Record.about(v.ID) {
		if from := s.find(s.Record.From); from != nil && from.fresh() {
			return from
		}
	}
	tried := 0
	for i := range s.Versions {
		o := &s.Versions[i]
		if !o.Readable || !s.newer(v, o.ID) {
			continue
		}
		if tried++; o.fresh() && tried < maxTried {
			return o
		}
	}
	return v
}

// fresh reports whether the version can be brought in for the first time.
func (v *Version) fresh() bool { return v.Readable && (v.State == Unknown || v.State == Pending) }

// task is what stands between a version and Active.
func (s *step) task(v *Version) task {
	usable := s.Usable()
	live := v.Verdict == VerdictLive || s.Record.about(v.ID) && s.Record.Validated
	switch {
	case !v.Loaded:
		return toLoad
	case usable && s.Record.about(v.ID) && !s.Record.Closed && s.Record.StartedAt.IsZero():
		return toWait // whoever rotates asks the provider, on behalf of all agents
	case !live && (usable || !v.probed):
		return toProbe
	case usable && s.held(v.ID, s.now):
		return toWait
	default: // live, or nothing else is usable
		return toAudit
	}
}

// promote makes v the version that takes the traffic, from the last one that had all of it.
func (s *step) promote(v *Version) {
	old := s.find(s.To)
	from := s.find(s.From)
	switch {
	case old == nil || !old.usable(): // nothing to come from; settle left From empty
	case from != nil && from.State == Active: // the ramp was not at its end: v takes its place
		old.enter(Draining, s.now)
	default:
		s.From = s.To
	}
	v.wait()
	v.enter(Active, s.now)
	s.To, s.Plan = v.ID, s.planOf(v.ID)
	s.notes = append(s.notes, Note{Kind: NotePromoted, ID: v.ID, From: s.From})
}

// reject puts a version away that does not work. It is tried again only once nothing is usable.
func (s *step) reject(v *Version, reason string) {
	v.enter(Rejected, s.now)
	v.retry = s.now.Add(backoff(rejectFirst, rejectMost, v.rejections))
	s.begun = append(s.begun, Discard{ID: v.ID, Rejected: true, Again: v.rejections > 0, Reason: reason})
	v.Loaded = false
	v.rejections++
}

// veto puts a version away for good, unless it is the only one that is usable.
func (s *step) veto(id ID, reason string) (done bool) {
	v := s.find(id)
	if v == nil || v.Halted || v.State == Compromised {
		return false
	}
	if (v.usable() || v.overruled && !v.decided) && !slices.ContainsFunc(s.Versions, func(o Version) bool { return o.usable() && !o.ID.Equal(id) }) {
		if !v.overruled {
			v.overruled = true
			s.notes = append(s.notes, Note{Kind: NoteHaltIgnored, ID: id})
		}
		return false
	}
	v.Halted = true
	switch {
	case v.usable():
		s.retire(v, Rejected, reason)
	case v.State != Retired:
		s.reject(v, reason)
		v.retry = s.now // if there is nothing else, it need not wait
	}
	return true
}

// compromise puts a version away at once and for good.
func (s *step) compromise(id ID) {
	if id.Zero() {
		return
	}
	v := s.find(id)
	if v == nil { // it must not come in later either
		s.Versions = append(s.Versions, Version{ID: id, order: id.Created})
		s.sort()
		v = s.find(id)
	}
	if v.State == Compromised {
		return
	}
	s.retire(v, Compromised, "revoked in an emergency")
}

// retire ends a version; there is something to be done about it only if it is in memory.
func (s *step) retire(v *Version, state State, reason string) {
	if v.Loaded {
		s.ended = append(s.ended, Retire{ID: v.ID, State: state, Now: state == Compromised, Reason: reason})
	}
	v.enter(state, s.now)
	v.Loaded = false
}

func (s *step) discard(v *Version, reason string) {
	s.begun = append(s.begun, Discard{ID: v.ID, Reason: reason})
	v.Loaded = false
}

// enter changes the state; staying in it changes nothing.
func (v *Version) enter(state State, now time.Time) {
	if v.State != state {
		v.State, v.Since = state, now
	}
}

// wait forgets what was being tried. An answer that still comes is not expected any more.
func (v *Version) wait() { v.task, v.busy, v.attempts, v.next = toWait, false, 0, time.Time{} }

// failed notes an answer that led nowhere, and when to try again.
func (v *Version) failed(now time.Time, first, most time.Duration) {
	v.busy = false
	v.next = now.Add(backoff(first, most, v.attempts))
	v.attempts++
}

func backoff(first, most time.Duration, n int) time.Duration {
	return min(first<<min(n, 16), most)
}

func (s *step) sort() {
	slices.SortStableFunc(s.Versions, func(a, b Version) int {
		return cmp.Or(b.order.Compare(a.order), cmp.Compare(b.Number, a.Number))
	})
}
