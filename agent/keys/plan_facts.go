package keys

import (
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// recorded is what the record says of a version.
func recorded(r *rotation.Record, id rotation.ID) rotation.VersionRecord {
	for _, v := range r.Versions {
		if v.ID.Equal(id) {
			return v
		}
	}
	return rotation.VersionRecord{ID: id}
}

func (s situation) about(id rotation.ID) rotation.VersionRecord { return recorded(s.r, id) }

// underWay reports whether a rotation is open. r may be nil.
func underWay(r *rotation.Record) bool {
	return r != nil && r.Phase != rotation.PhaseNone && !r.Closed
}

func idOf(v store.Version) rotation.ID { return rotation.ID{Number: v.Number, Created: v.Created} }

func (s situation) stored(number int) (store.Version, bool) {
	for _, v := range s.md.Versions {
		if v.Number == number {
			return v, true
		}
	}
	return store.Version{}, false
}

func (s situation) readable(id rotation.ID) bool {
	v, ok := s.stored(id.Number)
	return ok && v.Readable() && idOf(v).Equal(id)
}

// newest is the newest readable version.
func (s situation) newest() rotation.ID {
	if i := newestReadable(s.md); i >= 0 {
		return idOf(s.md.Versions[i])
	}
	return rotation.ID{}
}

// others are the versions beside To that agents could use, newest first.
func (s situation) others() (ids []rotation.ID) {
	for _, v := range slices.Backward(s.md.Versions) {
		if id := idOf(v); v.Readable() && !id.Equal(s.r.To) && !barred(s.about(id).State) {
			ids = append(ids, id)
		}
	}
	return ids
}

// weight is the new version's share.
func weight(r *rotation.Record, now time.Time) int {
	switch {
	case r.Phase == rotation.PhaseDone:
		return 100
	case r.Closed || r.StartedAt.IsZero() || now.Before(r.StartedAt):
		return 0
	}
	return r.Ramp.Weight(now.Sub(r.StartedAt))
}

// rampStep is when the share changes next.
func rampStep(r *rotation.Record, now time.Time) time.Time {
	at := r.StartedAt
	for i := range r.Ramp {
		if now.Before(at) {
			break
		}
		at = r.StartedAt.Add(r.Ramp[:i+1].Length())
	}
	return at
}

// barred reports whether a decided state keeps agents from using a version.
func barred(s rotation.State) bool { return s == rotation.Rejected || s == rotation.Compromised }
