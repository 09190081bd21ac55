package keys

import (
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// picture is what the store says about a key at one time, from which follow its
// versions' states, as they follow for every agent.
type picture struct {
	md     *store.Metadata
	record *rotation.Record
	halts  []rotation.Halt
	ramp   rotation.Ramp // of versions that no record speaks of
	now    time.Time
}

func (p *picture) id(n int) rotation.ID { return idOf(p.md.Versions[n]) }

// verdict is Rejected or Compromised where that was decided, with the reason.
func (p *picture) verdict(id rotation.ID) (state rotation.State, reason string) {
	if v := recorded(p.record, id); barred(v.State) {
		if p.record.Closed && names(p.record.To, id) {
			reason = p.record.Reason
		}
		return v.State, reason
	}
	for _, h := range p.halts {
		if names(h.To, id) {
			return rotation.Rejected, h.Reason
		}
	}
	return rotation.Unknown, ""
}

// usable reports whether agents could take a version.
func (p *picture) usable(n int) bool {
	state, _ := p.verdict(p.id(n))
	return state == rotation.Unknown && p.md.Versions[n].Readable()
}

// newest is the index of the newest usable version, -1 if there is none.
func (p *picture) newest() int { return p.before(len(p.md.Versions)) }

// before is the index of the newest usable version before the one at n.
func (p *picture) before(n int) int {
	for n--; n >= 0; n-- {
		if p.usable(n) {
			return n
		}
	}
	return -1
}

// versions lists all, newest first.
func (p *picture) versions() []Version {
	all := make([]Version, len(p.md.Versions))
	for n, v := range p.md.Versions {
		r := recorded(p.record, p.id(n))
		state, reason := p.verdict(p.id(n))
		out := Version{
			Number: v.Number, Created: v.Created, CreatedBy: v.CreatedBy, Readable: v.Readable(), State: StateOlder, Reason: reason,
			ProviderID: r.ProviderID, Expires: r.Expires, Revoked: r.Revoked,
		}
		switch {
		case state != rotation.Unknown:
			out.State = state.String()
		case v.Destroyed:
			out.State = StateDestroyed
		case !v.Deleted.IsZero():
			out.State = StateDeleted
		case r.State == rotation.Retired:
			out.State = r.State.String()
		}
		all[len(all)-1-n] = out
	}
	p.share(func(n int, state rotation.State, weight int) {
		v := &all[len(all)-1-n]
		v.State, v.Weight = state.String(), weight
	})
	return all
}

// share says what the two versions are that a takeover is between: the newest
// usable one, and the one it takes over from.
func (p *picture) share(set func(n int, state rotation.State, weight int)) {
	to := p.newest()
	if to < 0 {
		return
	}
	// A rotation that was over before it began says nothing about a version that got its number.
	about := names(p.record.To, p.id(to)) && (underWay(p.record) || !p.record.StartedAt.IsZero())
	from := p.from(to, about)
	start, ramp := p.md.Versions[to].Created, p.ramp
	if about && !p.record.StartedAt.IsZero() {
		start, ramp = p.record.StartedAt, p.record.Ramp
	}
	held := about && !p.record.Closed && (p.record.StartedAt.IsZero() || p.now.Before(start))
	if held && from >= 0 {
		set(to, rotation.Pending, 0)
		set(from, rotation.Active, 100)
		return
	}
	weight := ramp.Weight(p.now.Sub(start))
	if from < 0 {
		weight = 100
	}
	set(to, rotation.Active, weight)
	switch {
	case from < 0:
	case weight < 100:
		set(from, rotation.Active, 100-weight)
	case !about: // how long it is kept is each agent's configuration
	case p.now.Before(start.Add(ramp.Length()).Add(p.record.Grace)):
		set(from, rotation.Draining, 0)
	default:
		set(from, rotation.Retired, 0)
	}
}

// from is the index of the version that the one at to takes over from, -1 if that is not usable.
func (p *picture) from(to int, about bool) int {
	if about && !p.record.From.Zero() {
		for n := range p.md.Versions {
			if names(p.record.From, p.id(n)) && p.usable(n) {
				return n
			}
		}
	}
	if about && p.record.Closed { // and From is gone
		return -1
	}
	return p.before(to)
}
