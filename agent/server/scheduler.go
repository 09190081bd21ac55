package server

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// How often the scheduler looks. The greater the environment, the slower it
// goes round, so that its looks stay a small part of what the store can do.
const (
	listEvery = 30 * time.Second       // for new keys
	idleEvery = 10 * time.Second       // at each key without a rotation, at the least
	idleEach  = 150 * time.Millisecond // for every key there is
	openEvery = 5 * time.Second        // at each rotation under way, at the least
	openEach  = 250 * time.Millisecond // for every rotation under way
	dueEvery  = time.Minute            // at each key's schedule, at the least
	dueEach   = 250 * time.Millisecond // for every key there is
	maxWait   = 10 * time.Minute       // between two looks at anything

	workers  = 8
	lookTime = 150 * time.Second // one look at one key, with what a provider is asked meanwhile
	retry    = 5 * time.Second   // after the first failure; it doubles up to maxWait
	minLook  = 200 * time.Millisecond
)

// scheduler takes the steps of rotations that are due, and begins rotations that
// are. Any number of them, in any number of processes, may work on one
// environment: check-and-set on the rotation's record decides who takes a step.
// All its state can be lost.
type scheduler struct {
	own     *keys.Manager // with the server's rights; its Scope has the environment only
	figures *metrics
	log     *slog.Logger
	rand    func() float64 // in [0,1)

	wake    chan keyName
	results chan look
	keys    map[keyName]*watched
	listed  time.Time // when the next listing may begin
	listing bool
	running int
	wg      sync.WaitGroup
}

// watched is what is known of one key.
type watched struct {
	next     time.Time // when it is looked at again
	running  bool
	again    bool // somebody asked for a look meanwhile
	failures int
	trouble  string
	open     bool
	overdue  bool      // a step could have been taken and was not
	checked  time.Time // its schedule
	due      time.Time // when it is to be rotated; zero: never
	reported bool      // that it is due and nobody makes a new one
}

// look is the outcome of one look at one key, or of a listing.
type look struct {
	keyName
	list     []keyName // of a listing
	isList   bool
	rotation keys.Rotation
	checked  bool // the schedule was looked at
	due      time.Time
	provider string
	begun    bool
	err      error
}

// errMistake: a look at a key went wrong in a way that nobody thought of.
var errMistake = errors.New("a mistake in the server: something in the key's record, or its metadata, is not understood")

func newScheduler(own *keys.Manager, figures *metrics, log *slog.Logger) *scheduler {
	return &scheduler{own: own, figures: figures, log: log, rand: rand.Float64, wake: make(chan keyName, 64), results: make(chan look), keys: map[keyName]*watched{}}
}

// Wake asks for a look at a key soon. It never waits.
func (s *scheduler) Wake(proxyID, name string) {
	select {
	case s.wake <- keyName{proxyID, name}:
	default: // it is found in its turn
	}
}

// Run works until ctx ends, and returns when everything under way has ended.
func (s *scheduler) Run(ctx context.Context) {
	defer s.wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case l := <-s.results:
			s.settle(l)
		case k := <-s.wake:
			s.poke(k)
		}
		s.begin(ctx)
		timer.Reset(s.pause())
	}
}

// poke brings a key's next look forward.
func (s *scheduler) poke(k keyName) {
	w := s.keys[k]
	if w == nil {
		w = &watched{}
		s.keys[k] = w
	}
	w.next, w.again, w.checked = time.Now(), true, time.Time{}
}

// begin starts what is due, the most overdue first, as far as there are workers.
func (s *scheduler) begin(ctx context.Context) {
	now := time.Now()
	if !s.listing && !s.listed.After(now) {
		s.listing = true
		s.start(ctx, func(ctx context.Context) look {
			list, err := s.list(ctx)
			return look{isList: true, list: list, err: err}
		})
	}
	for s.running < workers {
		var first *watched
		var key keyName
		for k, w := range s.keys {
			if !w.running && !w.next.After(now) && (first == nil || w.next.Before(first.next)) {
				first, key = w, k
			}
		}
		if first == nil {
			return
		}
		first.running, first.again = true, false
		s.running++
		check := now.Sub(first.checked) >= max(dueEvery, time.Duration(len(s.keys))*dueEach)
		s.start(ctx, func(ctx context.Context) look { return s.look(ctx, key, check) })
	}
}

func (s *scheduler) start(ctx context.Context, work func(context.Context) look) {
	s.wg.Go(func() {
		limited, cancel := context.WithTimeout(ctx, lookTime)
		defer cancel()
		l := work(limited)
		select {
		case s.results <- l:
		case <-ctx.Done():
		}
	})
}

// pause is how long there is nothing to begin.
func (s *scheduler) pause() time.Duration {
	now, first := time.Now(), time.Time{}
	if !s.listing {
		first = s.listed
	}
	for _, w := range s.keys {
		if !w.running && s.running < workers && (first.IsZero() || w.next.Before(first)) {
			first = w.next
		}
	}
	if first.IsZero() {
		return maxWait // a result ends the wait
	}
	return min(max(first.Sub(now), 0), maxWait)
}

// list finds every key of the environment.
func (s *scheduler) list(ctx context.Context) ([]keyName, error) {
	var all []keyName
	for k, err := range walk(ctx, s.own, "", "") {
		if err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	return all, nil
}

// look takes the steps of a key's rotation that are due. Where none is under
// way it looks at the schedule, and has the key rotated if it is time.
func (s *scheduler) look(ctx context.Context, k keyName, check bool) (l look) {
	defer func() {
		if recover() != nil { // what a panic holds may be anything
			l = look{keyName: k, err: errMistake}
		}
	}()
	m := scoped(s.own, k.proxyID)
	l.keyName = k
	if l.rotation, l.err = m.Advance(ctx, k.name); l.err != nil || !check {
		return l
	}
	info, err := m.Show(ctx, k.name)
	if err != nil {
		l.err = err
		return l
	}
	l.checked, l.provider = true, info.Provider
	due := false
	if l.due, due = keys.Due(info, s.own.Store.Now()); !due || underWay(l.rotation) || !s.canIssue(l.provider) {
		return l
	}
	rot, err := m.Rotate(ctx, k.name, nil, keys.RotateOptions{Managed: true, Reason: "scheduled"})
	if err != nil && !errors.Is(err, keys.ErrOpen) && !errors.Is(err, store.ErrConflict) { // another server was first
		l.err = err
		return l
	}
	if err == nil {
		l.rotation, l.begun = rot, true
	}
	return l
}

func underWay(r keys.Rotation) bool { return r.Phase != rotation.PhaseNone && !r.Closed }

func (s *scheduler) isDue(due time.Time) bool {
	return !due.IsZero() && !s.own.Store.Now().Before(due)
}

func (s *scheduler) canIssue(provider string) bool {
	return s.own.Issuer != nil && s.own.Issuer(provider) != nil
}

// settle takes note of an outcome and says when the next look is.
func (s *scheduler) settle(l look) {
	if l.isList {
		s.settleList(l)
		s.show()
		return
	}
	s.running--
	w := s.keys[l.keyName]
	if w == nil { // its key is gone
		return
	}
	w.running = false
	switch {
	case errors.Is(l.err, store.ErrNotFound):
		s.figures.steps.WithLabelValues("gone").Inc()
		delete(s.keys, l.keyName)
	case l.err != nil:
		s.fail(w, l)
	default:
		s.succeed(w, l)
	}
	if w.again {
		w.next = time.Now()
	}
	s.show()
}

func (s *scheduler) settleList(l look) {
	s.listing = false
	s.listed = time.Now().Add(s.spread(listEvery))
	if l.err != nil {
		s.figures.steps.WithLabelValues("list_failed").Inc()
		s.log.Error("the environment's keys cannot be listed; those that are known are looked after", "error", l.err)
		return
	}
	s.figures.lastSweep.SetToCurrentTime()
	seen := map[keyName]bool{}
	for _, k := range l.list {
		seen[k] = true
		if s.keys[k] == nil { // at first all at random, so that servers that start together do not look together
			s.keys[k] = &watched{next: time.Now().Add(time.Duration(s.rand() * float64(s.idle(len(l.list)))))}
		}
	}
	for k, w := range s.keys {
		if !seen[k] && !w.running {
			delete(s.keys, k)
		}
	}
}

// fail is for a look that ended in an error: the next one waits longer each time.
func (s *scheduler) fail(w *watched, l look) {
	s.figures.steps.WithLabelValues("failed").Inc()
	wait := maxWait
	if w.failures < 7 {
		wait = min(retry<<w.failures, maxWait)
	}
	w.failures++
	w.next = time.Now().Add(s.spread(wait))
	if text := l.err.Error(); w.trouble != text { // the same trouble is told once
		w.trouble = text
		s.log.Error("a key's rotation cannot go on", "proxy_id", l.proxyID, "key", l.name, "next_attempt_in", wait, "error", l.err)
	}
	if l.checked {
		s.figures.begun.WithLabelValues("failed").Inc()
	}
}

func (s *scheduler) succeed(w *watched, l look) {
	s.figures.steps.WithLabelValues("ok").Inc()
	if w.trouble != "" {
		s.log.Info("a key's rotation can go on", "proxy_id", l.proxyID, "key", l.name)
	}
	w.failures, w.trouble = 0, ""
	w.open, w.overdue = underWay(l.rotation), l.rotation.Overdue
	if l.checked {
		w.checked, w.due = time.Now(), l.due
		s.report(w, l)
	}
	switch {
	case l.begun:
		s.figures.begun.WithLabelValues("ok").Inc()
		s.log.Info("a scheduled rotation begins", "proxy_id", l.proxyID, "key", l.name)
		w.next, w.checked = time.Now(), time.Time{}
	case w.open:
		w.next = time.Now().Add(s.untilStep(l.rotation))
	default:
		w.next = time.Now().Add(s.spread(s.idle(len(s.keys))))
	}
}

// untilStep is when to look at a rotation under way again.
func (s *scheduler) untilStep(r keys.Rotation) time.Duration {
	open := 0
	for _, w := range s.keys {
		if w.open {
			open++
		}
	}
	wait := s.spread(max(openEvery, time.Duration(open)*openEach))
	if !r.Next.IsZero() {
		wait = min(wait, max(r.Next.Sub(s.own.Store.Now()), minLook))
	}
	return min(wait, maxWait)
}

// report says once that a key is due and nobody here makes a new one.
func (s *scheduler) report(w *watched, l look) {
	late := s.isDue(w.due) && !w.open && !s.canIssue(l.provider)
	if late && !w.reported {
		s.log.Warn("a key should be rotated by now, and no issuer is configured that makes a new one; `postern keys rotate` takes one",
			"proxy_id", l.proxyID, "key", l.name, "provider", l.provider, "due", w.due)
	}
	w.reported = late
}

// show sets the figures.
func (s *scheduler) show() {
	open, late, longest := 0, 0, time.Duration(0)
	for _, w := range s.keys {
		if w.open {
			open++
		}
		due := s.isDue(w.due) && !w.open
		if due {
			longest = max(longest, s.own.Store.Now().Sub(w.due))
		}
		if due || w.overdue {
			late++
		}
	}
	s.figures.keys.Set(float64(len(s.keys)))
	s.figures.open.Set(float64(open))
	s.figures.late.Set(float64(late))
	s.figures.overdue.Set(longest.Seconds())
}

// idle is how often a key without a rotation is looked at.
func (s *scheduler) idle(keys int) time.Duration {
	return min(max(idleEvery, time.Duration(keys)*idleEach), maxWait)
}

// spread is a time with a fifth of it at random, so that servers do not look together.
func (s *scheduler) spread(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(s.rand()*float64(d)/5)
}
