package rotation

import (
	"cmp"
	"slices"
	"time"
)

func (e Observed) at() time.Time   { return e.Now }
func (e Loaded) at() time.Time     { return e.Now }
func (e LoadFailed) at() time.Time { return e.Now }
func (e Vetoed) at() time.Time     { return e.Now }
func (e Probed) at() time.Time     { return e.Now }
func (e Audited) at() time.Time    { return e.Now }
func (e Tick) at() time.Time       { return e.Now }
func (e Evidence) at() time.Time   { return e.Now }
func (e Compromise) at() time.Time { return e.Now }
func (e Expired) at() time.Time    { return e.Now }

func (e Observed) apply(s *step) {
	s.list(e.Versions)
	s.Record = e.Record
	if !s.From.Zero() {
		s.Plan = s.planOf(s.To)
	}
	for _, h := range e.Halts {
		s.veto(h.To, "halted: "+h.Reason)
	}
	if e.Record != nil {
		for _, v := range e.Record.Versions {
			switch v.State {
			case Compromised:
				s.compromise(v.ID)
			case Rejected:
				if known := s.find(v.ID); known != nil {
					known.decided = true
				}
				s.veto(v.ID, "rejected by the rotation record")
			}
		}
	}
	s.flag()
}

// list takes over what the store lists. What it no longer has is forgotten,
// except what is in use and what must never come in again.
func (s *step) list(stored []Stored) {
	for i := range s.Versions {
		s.Versions[i].Readable = false
	}
	orders := ordered(stored)
	for _, o := range stored {
		if o.ID.Zero() {
			continue
		}
		v := s.find(o.ID)
		if v == nil {
			s.Versions = append(s.Versions, Version{ID: o.ID})
			v = &s.Versions[len(s.Versions)-1]
		}
		v.Readable, v.order = o.Readable, orders[o.ID]
		if v.State == Retired && !v.Halted && s.To.Zero() { // everything expired: start afresh
			*v = Version{ID: v.ID, Readable: v.Readable, order: v.order}
		}
	}
	s.Versions = slices.DeleteFunc(s.Versions, func(v Version) bool {
		return !v.Readable && !v.Loaded && !v.Halted && v.State != Compromised
	})
	s.sort()
}

// ordered says when the versions of one listing were created, such that none is
// older than one of a lower number: the store numbers in order, its clock may be set back.
func ordered(stored []Stored) map[ID]time.Time {
	byNumber := slices.SortedFunc(slices.Values(stored), func(a, b Stored) int { return cmp.Compare(a.ID.Number, b.ID.Number) })
	orders := make(map[ID]time.Time, len(stored))
	var last time.Time
	for _, o := range byNumber {
		if o.ID.Created.After(last) {
			last = o.ID.Created
		}
		orders[o.ID] = last
	}
	return orders
}

// newer reports whether v came after the version of this ID.
func (s *step) newer(v *Version, id ID) bool {
	at := id.Created
	if o := s.find(id); o != nil {
		at = o.order
	}
	return cmp.Or(v.order.Compare(at), cmp.Compare(v.Number, id.Number)) > 0
}

// flag notes when the store lost what is being served without putting anything newer in its place.
func (s *step) flag() {
	missing := true
	for i := range s.Versions {
		v := &s.Versions[i]
		if v.Readable && (s.To.Zero() || v.ID.Equal(s.To) || s.newer(v, s.To)) {
			missing = false
		}
	}
	switch {
	case missing && !s.Flagged:
		s.notes = append(s.notes, Note{Kind: NoteMissing, ID: s.To})
	case !missing && s.Flagged:
		s.notes = append(s.notes, Note{Kind: NoteFound, ID: s.To})
	}
	s.Flagged = missing
}

func (e Loaded) apply(s *step) {
	v := s.find(e.ID)
	switch {
	case v != nil && v.busy && v.task == toLoad:
		v.enter(Pending, s.now)
		v.Loaded, v.Verdict, v.probed = true, VerdictUnknown, false
	case v == nil || !v.Loaded: // not wanted any more
		s.begun = append(s.begun, Discard{ID: e.ID, Reason: "not wanted any more"})
	}
}

func (e LoadFailed) apply(s *step) {
	v := s.find(e.ID)
	switch {
	case v == nil || !v.busy || v.task != toLoad:
	case e.Permanent:
		s.reject(v, e.Reason)
	default:
		v.failed(s.now, loadFirst, loadMost)
	}
}

func (e Vetoed) apply(s *step) { s.veto(e.Halt.To, "halted: "+e.Halt.Reason) }

func (e Probed) apply(s *step) {
	v := s.find(e.ID)
	if v == nil || v.State != Pending {
		return
	}
	v.Verdict, v.probed = e.Verdict, true
	if v.task == toProbe {
		v.failed(s.now, probeFirst, probeMost) // until it says live
	}
	if e.Verdict == VerdictDead {
		s.reject(v, e.Reason)
	}
}

func (e Audited) apply(s *step) {
	v := s.find(e.ID)
	switch {
	case v == nil || v.State != Pending || !v.busy || v.task != toAudit:
	case !e.OK:
		v.failed(s.now, auditFirst, auditMost)
	case s.task(v) == toAudit: // it still is what stands between
		s.promote(v)
	}
}

func (e Tick) apply(*step) {}

func (e Evidence) apply(s *step) {
	if !e.ID.Equal(s.To) || s.From.Zero() || e.Failed < minFailures || float64(e.Failed) <= s.RejectRatio*float64(e.Served) {
		return
	}
	h := Halt{
		To: e.ID, Served: e.Served, Failed: e.Failed, At: s.now,
		Reason: "requests were refused with this version and not with the other one",
	}
	if s.veto(e.ID, h.Reason) {
		s.begun = append(s.begun, Veto{h})
	}
}

func (e Compromise) apply(s *step) { s.compromise(e.ID) }

func (e Expired) apply(s *step) {
	for i := range s.Versions {
		v := &s.Versions[i]
		if !e.ID.Zero() && !v.ID.Equal(e.ID) {
			continue
		}
		switch {
		case v.usable():
			s.retire(v, Retired, "its lease is over, or the store was out of reach for too long")
		case v.State == Pending:
			v.enter(Unknown, s.now)
			s.discard(v, "its lease is over, or the store was out of reach for too long")
		}
		v.Readable = false // until the store says so again
	}
	if !s.Usable() {
		s.To, s.From, s.Plan = ID{}, ID{}, Plan{}
	}
}
