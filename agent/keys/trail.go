package keys

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/store"
)

// Trail is the record of operations in a store: an audit.Sink whose entries lie
// below audit/<environment>/, each written once by check-and-set 0. Any number
// of Trails, in any number of processes, append to one chain. It is safe for concurrent use.
//
// Appending needs create and read on the entries, and nothing more. What lies
// where an entry should and is none, whoever put it there, is stepped over: it
// cannot stop the record, and Verify names it.
type Trail struct {
	store       store.Store
	environment string
	boot        string
	end         *trailEnd
}

// trailEnd is what this process remembers of where the record ends.
type trailEnd struct {
	turn chan struct{} // holds one token while somebody appends: goroutines of one process do not race each other

	mu sync.Mutex
	at trailHead
}

// trailHead is a place in the record behind which the next entry goes.
type trailHead struct {
	seq  uint64 // a place that is taken; 0 for none
	hash string // of the newest entry of the chain up to there; "" for none
}

// entryField is the one field of an entry's secret.
const entryField = "entry"

const (
	// appendTries bounds how often an Append goes for a place that somebody else
	// then has. Of 20 processes that write without a pause, one loses as often once in a million times.
	appendTries = 256
	// lastPlace is the greatest number of 12 digits.
	lastPlace = 999_999_999_999
)

// NewTrail returns the record of one environment. Boot names this process in its entries.
func NewTrail(s store.Store, environment, boot string) *Trail {
	return &Trail{store: s, environment: environment, boot: boot, end: &trailEnd{turn: make(chan struct{}, 1)}}
}

// On returns the same record, its place in the chain remembered, written with
// another Store's rights. The Store must be of the same server, mount and prefix.
func (t *Trail) On(s store.Store) *Trail {
	c := *t
	c.store = s
	return &c
}

// path is where an entry lies; 0 means their folder.
func (t *Trail) path(seq uint64) string {
	folder := "audit/" + t.environment + "/"
	if seq == 0 {
		return folder
	}
	return fmt.Sprintf("%s%012d", folder, seq)
}

// Append implements audit.Sink. The event's Environment is the record's. Errors
// wrap a reason of package store or the context's error; after store.ErrForbidden,
// ErrConflict and ErrInvalid the entry is not recorded, after any other it may be.
func (t *Trail) Append(ctx context.Context, e audit.Event) (audit.Head, error) {
	switch {
	case e.Event == "":
		return audit.Head{}, fmt.Errorf("audit event without a name: set Event.Event: %w", store.ErrInvalid)
	case e.Environment != "" && e.Environment != t.environment:
		return audit.Head{}, fmt.Errorf("audit event of environment %q in the record of %q: %w", e.Environment, t.environment, store.ErrInvalid)
	}
	e.Environment = t.environment
	select {
	case t.end.turn <- struct{}{}:
		defer func() { <-t.end.turn }()
	case <-ctx.Done():
		return audit.Head{}, fmt.Errorf("%s: not recorded: %w", t.path(0), ctx.Err())
	}
	head, err := t.append(ctx, e)
	if err != nil {
		return audit.Head{}, fmt.Errorf("%s: %s could not be recorded: %w", t.path(0), e.Event, err)
	}
	return head, nil
}

// append goes for the place after the record's end until it has one.
func (t *Trail) append(ctx context.Context, e audit.Event) (audit.Head, error) {
	at := t.remembered()
	if at.seq == 0 {
		var err error
		if at, err = t.seek(ctx, at); err != nil {
			return audit.Head{}, err
		}
	}
	for lost := 0; lost < appendTries; lost++ {
		if lost > 1 { // others are far ahead, or many
			if err := pause(ctx, lost); err != nil {
				return audit.Head{}, err
			}
			var err error
			if at, err = t.seek(ctx, at); err != nil {
				return audit.Head{}, err
			}
		}
		entry, err := t.next(at, e)
		if err != nil {
			return audit.Head{}, err
		}
		taken, err := t.claim(ctx, entry)
		if err != nil {
			return audit.Head{}, err
		}
		at = at.past(taken)
		t.remember(at)
		if taken.good && taken.entry.Hash == entry.Hash {
			return entry.Head(), nil
		}
	}
	return audit.Head{}, fmt.Errorf("somebody else took the next place %d times in a row; try again: %w", appendTries, store.ErrConflict)
}

// next makes the entry that goes behind at.
func (t *Trail) next(at trailHead, e audit.Event) (audit.Entry, error) {
	if at.seq >= lastPlace {
		return audit.Entry{}, fmt.Errorf("entry %d is the last there can be: %w", at.seq, store.ErrInvalid)
	}
	if at.seq > 0 && at.hash == "" { // nothing but garbage so far
		at.hash = audit.Genesis(t.boot)
	}
	_, entry := audit.Chain{Boot: t.boot, Head: audit.Head{Seq: at.seq, Hash: at.hash}}.Next(e, t.store.Now())
	return entry, nil
}

// claim writes an entry to its place and returns what lies there then: the
// entry, or what somebody else put there before.
func (t *Trail) claim(ctx context.Context, e audit.Entry) (spot, error) {
	_, werr := store.PutText(ctx, t.store, t.path(e.Seq), map[string][]byte{entryField: e.AppendJSON(nil)}, 0)
	if werr == nil {
		return spot{seq: e.Seq, there: true, good: true, entry: e}, nil
	}
	// A policy that lets nobody write twice says 403 where check-and-set says 400.
	refused := errors.Is(werr, store.ErrConflict) || errors.Is(werr, store.ErrForbidden) || errors.Is(werr, store.ErrInvalid)
	if !refused && ctx.Err() != nil {
		return spot{}, werr
	}
	there, rerr := t.look(ctx, e.Seq)
	switch {
	case rerr == nil && there.good && there.entry.Hash == e.Hash:
		return there, nil // written all the same: an answer was lost, or something on the way asked twice
	case !refused:
		return spot{}, werr
	case rerr != nil:
		return spot{}, rerr
	case there.there:
		return there, nil
	case errors.Is(werr, store.ErrForbidden):
		return spot{}, fmt.Errorf("this identity may not append to the record of operations, which every role needs (see `postern policy`): %w", werr)
	}
	return spot{}, werr
}

// past is the head once a place was found taken.
func (h trailHead) past(s spot) trailHead {
	h.seq = s.seq
	if s.good {
		h.hash = s.entry.Hash
	}
	return h
}

func (t *Trail) remembered() trailHead {
	t.end.mu.Lock()
	defer t.end.mu.Unlock()
	return t.end.at
}

func (t *Trail) remember(at trailHead) {
	t.end.mu.Lock()
	defer t.end.mu.Unlock()
	if at.seq > t.end.at.seq {
		t.end.at = at
	}
}

// pause waits a little, at random, so that writers in many processes part.
func pause(ctx context.Context, lost int) error {
	most := min(2*time.Millisecond<<min(lost, 16), 250*time.Millisecond)
	timer := time.NewTimer(rand.N(most))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
