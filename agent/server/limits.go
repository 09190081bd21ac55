package server

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxLimits bounds how many names a set of limits remembers.
const maxLimits = 4096

// limits is one token bucket for each name. Names come from requests, so that
// only so many are remembered: beyond that, those that are full again are forgotten first.
type limits struct {
	now   func() time.Time
	every rate.Limit
	burst int

	mu     sync.Mutex
	byName map[string]*rate.Limiter
}

func newLimits(now func() time.Time, perSecond float64, burst int) *limits {
	return &limits{now: now, every: rate.Limit(perSecond), burst: burst, byName: map[string]*rate.Limiter{}}
}

// take uses up one place and reports whether there was one.
func (l *limits) take(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.byName[name]
	if b == nil {
		l.makeRoom()
		b = rate.NewLimiter(l.every, l.burst)
		l.byName[name] = b
	}
	return b.AllowN(l.now(), 1)
}

// may reports whether there is a place, and uses none.
func (l *limits) may(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.byName[name]
	return b == nil || b.TokensAt(l.now()) >= 1
}

func (l *limits) makeRoom() {
	if len(l.byName) < maxLimits {
		return
	}
	now := l.now()
	for name, b := range l.byName {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.byName, name)
		}
	}
	for name := range l.byName {
		if len(l.byName) < maxLimits {
			return
		}
		delete(l.byName, name)
	}
}

// denialTime bounds the recording of one denial.
const denialTime = 10 * time.Second

// denials keeps anybody from filling the record: so many of one caller, and so
// many of all, are recorded; the next entry says how many were not.
type denials struct {
	byActor *limits
	all     *rate.Limiter
	now     func() time.Time

	mu   sync.Mutex
	left int // out since the last one that was recorded
}

func newDenials(now func() time.Time) *denials {
	return &denials{byActor: newLimits(now, 1./6, 10), all: rate.NewLimiter(2, 100), now: now}
}

// may reports whether this denial is to be recorded, and if so, how many before it were not.
func (d *denials) may(actor string) (left int, ok bool) {
	ok = d.byActor.take(actor) && d.all.AllowN(d.now(), 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !ok {
		d.left++
		return 0, false
	}
	left, d.left = d.left, 0
	return left, true
}
