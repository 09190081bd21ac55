package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/store"
)

// window is how many entries are held at once while a record is read.
const window = 16 * readers

// TrailFilter chooses entries; zero members choose all.
type TrailFilter struct {
	Since, Until time.Time // entries at or after, and before
	Key, Actor   string    // exactly
	Event        string    // exactly
	After        uint64    // entries with greater sequence numbers
	Before       uint64    // entries with smaller ones: the first that was returned, to page back
	Limit        int       // the newest so many
}

func (f TrailFilter) match(e audit.Entry) bool {
	return audit.Filter{Since: f.Since, Until: f.Until, Event: f.Event, Key: f.Key, Actor: f.Actor}.Match(e)
}

// Entries returns the entries that the filter chooses, oldest first. It reads
// from the newest back, as far as the filter needs, and leaves out what is no
// entry: judging is Verify's. Needs read on the entries.
func (t *Trail) Entries(ctx context.Context, f TrailFilter) ([]audit.Entry, error) {
	end, err := t.seek(ctx, t.remembered())
	if err != nil {
		return nil, err
	}
	last := end.seq
	if f.Before > 0 {
		last = min(last, f.Before-1)
	}
	found := []audit.Entry{}
	// Stores limit their requests: the first look takes what may be enough.
	for part := min(max(readers, f.Limit), window); last > f.After; part = min(2*part, window) {
		n := min(uint64(part), last-f.After)
		spots := make([]spot, n)
		err := each(len(spots), func(i int) (err error) {
			spots[i], err = t.look(ctx, last-uint64(i))
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, s := range spots {
			if s.good && f.match(s.entry) {
				found = append(found, s.entry)
			}
			if f.Limit > 0 && len(found) == f.Limit {
				slices.Reverse(found)
				return found, nil
			}
		}
		// The times of entries are their writers' word. Those of the store grow
		// from place to place, but for what its machines' clocks differ.
		if oldest := spots[n-1].created; !oldest.IsZero() && oldest.Before(f.Since.Add(-time.Hour)) {
			break
		}
		last -= n
	}
	slices.Reverse(found)
	return found, nil
}

// Verify reads the whole record and reports every edit, gap, reordering,
// truncation against an anchor, entry out of place and forged actor. An entry
// whose actor claims another entity (Detail "entity_id") than the store itself
// recorded is forged.
//
// Needs list on the folder and read on the entries; and read on their metadata,
// where Vault says who wrote them: without it the report says that writers
// could not be compared. It costs two reads an entry, several at a time: a store
// that limits its requests is better opened with a greater limit for it.
func (t *Trail) Verify(ctx context.Context, anchors ...audit.Head) (audit.Report, error) {
	names, err := t.store.List(ctx, t.path(0))
	if err != nil {
		return audit.Report{}, err
	}
	record := audit.NewRecord(t.environment, anchors...)
	var seqs []uint64
	for _, name := range names {
		seq, err := strconv.ParseUint(name, 10, 64)
		if err != nil || seq == 0 || seq > lastPlace || fmt.Sprintf("%012d", seq) != name {
			record.Stray(name)
			continue
		}
		seqs = append(seqs, seq)
	}
	in := inspector{t: t}
	for part := range slices.Chunk(seqs, window) {
		places := make([]audit.Place, len(part))
		err := each(len(part), func(i int) (err error) {
			places[i], err = in.inspect(ctx, part[i])
			return err
		})
		if err != nil {
			return audit.Report{}, err
		}
		for _, p := range places {
			record.Place(p)
		}
	}
	return record.Report(), nil
}

// inspector reads everything that a store tells about places.
type inspector struct {
	t *Trail
	// blind: metadata may not be read, which is the same for every place.
	blind atomic.Bool
}

func (in *inspector) inspect(ctx context.Context, seq uint64) (audit.Place, error) {
	s, err := in.t.look(ctx, seq)
	if err != nil {
		return audit.Place{}, err
	}
	p := audit.Place{Seq: seq, Line: s.line, Versions: s.versions, Created: s.created}
	if in.blind.Load() {
		return p, nil
	}
	md, err := in.t.store.Metadata(ctx, in.t.path(seq))
	switch {
	case errors.Is(err, store.ErrForbidden):
		in.blind.Store(true)
		return p, nil
	case errors.Is(err, store.ErrNotFound): // removed since it was listed
		p.WriterKnown = true
		return p, nil
	case err != nil:
		return audit.Place{}, err
	}
	p.Versions, p.WriterKnown = md.Current, true
	if len(md.Versions) > 0 { // of a place written once, the one; else the oldest that is left
		p.Writer, p.Created = md.Versions[0].CreatedBy, md.Versions[0].Created
	}
	return p, nil
}
