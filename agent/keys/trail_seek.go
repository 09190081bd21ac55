package keys

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/store"
)

const (
	// readers is how many entries are read at once.
	readers = 16
	// garbageRun is how much garbage in a row is searched for the entry before
	// it. Behind more, the chain begins anew, which Verify names.
	garbageRun = 128
)

// spot is what lies at one place of the record.
type spot struct {
	seq      uint64
	there    bool // taken, by whatever
	good     bool // by an entry of the chain
	entry    audit.Entry
	line     []byte    // as first written; nil if it cannot be read
	versions int       // how often the place was written, as far as reading tells
	created  time.Time // by the store's clock
}

// look reads a place.
func (t *Trail) look(ctx context.Context, seq uint64) (spot, error) {
	s := spot{seq: seq}
	fields, v, err := t.read(ctx, seq, 0)
	if err == nil && v.Number > 1 { // somebody wrote over it: what was first is what counts
		s.versions = v.Number
		if first, v1, ferr := t.read(ctx, seq, 1); ferr == nil {
			fields, v = first, v1
		} else if !errors.Is(ferr, store.ErrDeleted) && !errors.Is(ferr, store.ErrNotFound) && !errors.Is(ferr, store.ErrTooLarge) {
			return s, ferr
		}
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return s, nil
	case errors.Is(err, store.ErrDeleted):
		s.there = true
		return s, nil
	case errors.Is(err, store.ErrTooLarge): // no entry is
		s.there, s.line = true, []byte{}
		return s, nil
	case errors.Is(err, store.ErrForbidden):
		return s, fmt.Errorf("this identity may not read the record of operations, which whoever appends to it must: %w", err)
	case err != nil:
		return s, err
	}
	s.there, s.created, s.versions = true, v.Created, max(s.versions, v.Number)
	s.line = append([]byte{}, fields[entryField]...)
	if len(fields) != 1 {
		s.line = []byte{}
	}
	s.entry, err = audit.ParseAt(s.line, t.environment, seq)
	s.good = err == nil
	return s, nil
}

// read reads one version of a place; 0 is the newest.
func (t *Trail) read(ctx context.Context, seq uint64, version int) (map[string][]byte, store.Version, error) {
	sec, err := t.store.Get(ctx, t.path(seq), version)
	if err != nil {
		return nil, store.Version{}, err
	}
	defer sec.Destroy()
	fields := make(map[string][]byte, len(sec.Fields))
	for name, v := range sec.Fields {
		v.Use(func(b []byte) { fields[name] = append([]byte{}, b...) })
	}
	return fields, sec.Version, nil
}

// each calls f for 0 to n-1, several at once, and returns the first error,
// after which it begins no more.
func each(n int, f func(i int) error) error {
	var (
		mu    sync.Mutex
		next  int
		first error
		wg    sync.WaitGroup
	)
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= n && first == nil
	}
	for range min(n, readers) {
		wg.Go(func() {
			for i, ok := take(); ok; i, ok = take() {
				if err := f(i); err != nil {
					mu.Lock()
					defer mu.Unlock()
					if first == nil {
						first = err
					}
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}

// seek finds the record's end at or after a head, and remembers it.
//
// Places are taken one after the other, so it gallops ahead and then bisects,
// reading a few places only. Somebody who may append can take a place far ahead,
// so where it ends up, the places before are looked at too, in steps that
// double: one that is free means that what lies behind it was put there out of
// turn, and the end is before. To mislead that takes as many entries as the
// gap they leave has places; Verify names the gap in any case.
func (t *Trail) seek(ctx context.Context, from trailHead) (trailHead, error) {
	p := &prober{t: t, seen: map[uint64]spot{}}
	lo, hi, err := p.gallop(ctx, from.seq)
	if err != nil {
		return trailHead{}, err
	}
	for ahead := true; ahead; {
		if lo, err = p.bisect(ctx, lo, hi); err != nil {
			return trailHead{}, err
		}
		var behind []uint64
		for step := uint64(1); lo > from.seq+step; step *= 2 {
			behind = append(behind, lo-step)
		}
		slices.Reverse(behind)
		if lo, hi, ahead, err = p.narrow(ctx, from.seq, lo, behind); err != nil {
			return trailHead{}, err
		}
	}
	at := from
	at.seq = lo
	if lo > from.seq {
		if at.hash, err = p.hashBefore(ctx, from, lo); err != nil {
			return trailHead{}, err
		}
	}
	t.remember(at)
	return at, nil
}

// prober reads places, each once.
type prober struct {
	t    *Trail
	seen map[uint64]spot
}

func (p *prober) look(ctx context.Context, seqs []uint64) error {
	seqs = slices.DeleteFunc(slices.Clone(seqs), func(seq uint64) bool { _, known := p.seen[seq]; return known })
	spots := make([]spot, len(seqs))
	err := each(len(seqs), func(i int) (err error) {
		spots[i], err = p.t.look(ctx, seqs[i])
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range spots {
		p.seen[s.seq] = s
	}
	return nil
}

// narrow looks at ascending places between lo, which is taken, and what follows:
// it returns the last taken place before the first free one, and that. If none
// is free, it returns last, which is taken, in place of both.
func (p *prober) narrow(ctx context.Context, lo, last uint64, seqs []uint64) (taken, free uint64, found bool, err error) {
	if err := p.look(ctx, seqs); err != nil {
		return 0, 0, false, err
	}
	for _, seq := range seqs {
		if !p.seen[seq].there {
			return lo, seq, true, nil
		}
		lo = seq
	}
	return last, last, false, nil
}

// gallop returns a taken place (or from) and a free one after it. Where it looks
// is left to chance: somebody who may append could take the places that are known
// to be looked at, and then nobody would find an end. One free place may be what
// somebody removed; the end it is where a second one near it is free too.
func (p *prober) gallop(ctx context.Context, from uint64) (lo, hi uint64, err error) {
	lo = from
	step := uint64(1)
	for batch := 1; ; batch = min(2*batch, 8) {
		var spans, seqs []uint64
		for range batch {
			if from+step > lastPlace {
				break
			}
			spans = append(spans, step)
			seqs = append(seqs, within(from, step))
			step *= 2
		}
		if len(seqs) == 0 {
			return lo, lastPlace + 1, nil // where nothing can be
		}
		if err := p.look(ctx, seqs); err != nil {
			return 0, 0, err
		}
		for i, seq := range seqs {
			if !p.seen[seq].there {
				near := seq
				if step := spans[i]; step > 1 {
					near = min(from+step+(seq-from-step+1+rand.N(step-1))%step, lastPlace)
				}
				if err := p.look(ctx, []uint64{near}); err != nil {
					return 0, 0, err
				}
				if !p.seen[near].there {
					return lo, seq, nil
				}
				seq = near
			}
			lo = seq
		}
	}
}

// within is one of the step places from from+step on.
func within(from, step uint64) uint64 { return min(from+step+rand.N(step), lastPlace) }

// bisect returns the taken place before a free one, between one that is taken and one that is free.
func (p *prober) bisect(ctx context.Context, lo, hi uint64) (uint64, error) {
	for hi-lo > 1 {
		var seqs []uint64
		const parts = 4 // three reads at once are as quick as one
		for i := uint64(1); i < parts; i++ {
			if seq := lo + (hi-lo)*i/parts; seq > lo && !slices.Contains(seqs, seq) {
				seqs = append(seqs, seq)
			}
		}
		taken, free, found, err := p.narrow(ctx, lo, seqs[len(seqs)-1], seqs)
		if err != nil {
			return 0, err
		}
		lo = taken
		if found {
			hi = free
		}
	}
	return lo, nil
}

// hashBefore is the hash of the newest entry up to a place, "" if there is none
// within garbageRun.
func (p *prober) hashBefore(ctx context.Context, from trailHead, last uint64) (string, error) {
	for searched := uint64(0); searched < garbageRun; {
		var seqs []uint64
		batch := uint64(readers)
		if searched == 0 {
			batch = 1
		}
		for range batch {
			if seq := last - searched; seq > from.seq && searched < last {
				seqs = append(seqs, seq)
				searched++
			}
		}
		if err := p.look(ctx, seqs); err != nil {
			return "", err
		}
		for _, seq := range seqs {
			if s := p.seen[seq]; s.good {
				return s.entry.Hash, nil
			}
		}
		if last-searched <= from.seq {
			return from.hash, nil
		}
	}
	return "", nil
}
