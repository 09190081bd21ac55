package keys

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

const (
	minEvery  = time.Hour
	mostAhead = time.Hour // by which a key is due before its time, so that not all are due at once
	dueSlack  = 10 * time.Minute
)

// Schedule makes a key rotate every so often, at least an hour; 0 ends that.
// `postern server` does it for keys that an issuer makes.
func (m *Manager) Schedule(ctx context.Context, name string, every time.Duration) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if every != 0 && every < minEvery {
		return fmt.Errorf("rotating %s every %v: give %v or more, as in 720h, or 0 to end it", name, every, minEvery)
	}
	md, err := m.mustMetadata(ctx, name)
	if err != nil {
		return err
	}
	if err := m.ours(name, md.Custom); err != nil {
		return err
	}
	custom := maps.Clone(md.Custom)
	if custom == nil {
		custom = map[string]string{}
	}
	if custom[metaEvery] = every.String(); every == 0 {
		delete(custom, metaEvery)
	}
	if maps.Equal(custom, md.Custom) {
		return nil
	}
	event := audit.Event{Event: EventSchedule, Key: name, Detail: map[string]string{metaEvery: every.String()}}
	if err := m.intend(ctx, event); err != nil {
		return err
	}
	event.Outcome = OutcomeOK
	if err = m.Store.SetMetadata(ctx, m.Scope.Path(name), custom, 0); err != nil {
		event.Outcome, event.Reason = OutcomeFailed, err.Error()
	}
	m.record(ctx, event)
	return err
}

// schedule fills in what is scheduled.
func (i *Info) schedule(md *store.Metadata, r *rotation.Record) {
	if n := len(md.Versions); n > 0 {
		i.LastRotated = md.Versions[n-1].Created
	}
	if r.Phase == rotation.PhaseDone && r.StartedAt.After(i.LastRotated) {
		i.LastRotated = r.StartedAt
	}
	text := md.Custom[metaEvery]
	if text == "" {
		return
	}
	every, err := time.ParseDuration(text)
	if err != nil || every < minEvery {
		i.Notes = append(i.Notes, fmt.Sprintf("%s %q in the metadata is no duration of %v or more, as in 720h: nothing is scheduled", metaEvery, text, minEvery))
		return
	}
	i.RotateEvery = every.String()
	i.NextDue, _ = Due(*i, time.Time{})
}

// Due is when the next scheduled rotation of a key is due, and whether it is by
// now: a period after the last one, less up to a tenth of it and an hour, always the same for a key.
// However many were missed, one is due. The time is zero where nothing is scheduled; while a
// rotation is under way none is due.
func Due(i Info, now time.Time) (at time.Time, due bool) {
	every, err := time.ParseDuration(i.RotateEvery)
	if err != nil || every < minEvery || i.LastRotated.IsZero() {
		return time.Time{}, false
	}
	at = i.LastRotated.Add(every - ahead(i.ID, every))
	return at, i.Rotation == nil && !now.Before(at)
}

// ahead spreads keys with one period over its end.
func ahead(id string, every time.Duration) time.Duration {
	h := fnv.New64a()
	h.Write([]byte(id))
	share := mix(h.Sum64()) >> 33 // 31 bits
	most := min(every/10, mostAhead)
	return time.Duration(share) * (most / time.Millisecond) >> 31 * time.Millisecond
}

// mix makes every bit depend on every other: FNV leaves similar names close together.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
