package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// How often the sessions are looked at: while any works, and otherwise.
const (
	sweepFast = 25 * time.Millisecond
	sweepSlow = time.Second
)

// sweeper keeps the time for all sessions, so that none sets a timer of its
// own for a request: it looks at each every so often and acts on what takes too
// long. It runs while there are sessions.
type sweeper struct {
	conns *registry
	first time.Duration // how long an answer's head may take

	mu      sync.Mutex
	running bool
	wake    chan struct{}
	slow    atomic.Bool
	done    sync.WaitGroup
}

// start sees to it that the sweeper runs.
func (w *sweeper) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running {
		return
	}
	w.running = true
	if w.wake == nil {
		w.wake = make(chan struct{}, 1)
	}
	w.done.Go(w.run)
}

// rouse tells a sweeper that takes its time that a session works.
func (w *sweeper) rouse() {
	if w.slow.Load() && w.slow.CompareAndSwap(true, false) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *sweeper) run() {
	timer := time.NewTimer(sweepFast)
	defer timer.Stop()
	var sessions []*session
	for quiet := 0; ; {
		select {
		case <-timer.C:
		case <-w.wake:
		}
		sessions = w.conns.sessions(sessions[:0])
		if len(sessions) == 0 && w.stopped() {
			return
		}
		now := time.Now()
		quiet++
		for _, c := range sessions {
			if c.sweep(now) {
				quiet = 0
			}
		}
		clear(sessions)
		pause := sweepFast
		if quiet > 4 {
			pause = sweepSlow
		}
		w.slow.Store(pause == sweepSlow)
		timer.Reset(pause)
	}
}

// finish waits for the sweeper's end; no session is left, and none will come.
func (w *sweeper) finish() {
	w.mu.Lock()
	if w.running {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	w.mu.Unlock()
	w.done.Wait()
}

// stopped ends the sweeper, unless a session came meanwhile.
func (w *sweeper) stopped() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns.watched() {
		return false
	}
	w.running = false
	return true
}

// sweep acts on what takes too long. It reports whether the session is at work, or was a moment ago.
func (c *session) sweep(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := now.Sub(c.since)
	switch c.phase {
	case atHead:
		if age > c.patient && c.idle.CompareAndSwap(true, false) {
			c.conn.SetReadDeadline(time.Unix(1, 0)) // closing may wait for the client
		}
	case atBody:
		if age > watchAfter && !c.kicked {
			c.kicked = true
			c.conn.SetReadDeadline(time.Unix(1, 0))
		}
	case atWork:
		if age > watchAfter {
			c.lookAfter()
		}
		if asked := c.asked.Load(); asked != 0 && c.up != nil && now.UnixNano()-asked > int64(c.s.sweeper.first) {
			c.up.SetDeadline(time.Unix(1, 0))
		}
	case away:
		return false
	}
	return age < 4*sweepFast || c.phase == atBody || c.phase == atWork && (c.watch == nil || age < 2*watchAfter)
}
