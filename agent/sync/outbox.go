package sync

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
)

// Events of the audit trail.
const (
	EventLoaded     = "key.loaded"          // a version is usable for the first time, or again
	EventStale      = "key.stale"           // the store is out of reach; outcome began or ended
	EventExpired    = "key.expired"         // nothing is usable any more: a lease or max_stale is over
	EventMissing    = "key.missing"         // the store lost the version that serves
	EventPromoted   = "version.promoted"    // outcome intent, then ok
	EventRejected   = "version.rejected"    // it does not work and never served
	EventHalted     = "key.halted"          // a version served, and evidence or a halt was against it; detail: what this agent saw
	EventVetoed     = "halt.written"        // a halt stands for all agents; detail: the evidence; outcome ok, or exists: another one's
	EventRolledBack = "version.rolled_back" // an older version takes over again
	EventRetired    = "version.retired"     // its time was over
	EventRevoked    = "version.revoked"     // in an emergency
)

// outbox is what must be done, in order, and is tried until it succeeds.
type outbox struct {
	what     string
	limit    time.Duration
	queue    []job
	busy     bool
	failures int
	next     time.Time
}

// job is one thing to do. What do returns is run on the loop once do succeeded; it may be nil.
type job func(context.Context) (done func(), err error)

const (
	outboxFirst = time.Second
	outboxMost  = time.Minute
)

func (l *Loop) later(o *outbox, j job) { o.queue = append(o.queue, j) }

// deliver tries the first job, if its time has come. The loop calls it after everything that it did.
func (l *Loop) deliver(o *outbox) {
	if o.busy || len(o.queue) == 0 || time.Now().Before(o.next) {
		return
	}
	o.busy = true
	do := o.queue[0]
	l.beside(o.limit, func(ctx context.Context) func() {
		done, err := do(ctx)
		return func() { l.delivered(o, done, err) }
	})
}

func (l *Loop) delivered(o *outbox, done func(), err error) {
	o.busy = false
	if err == nil {
		o.queue, o.failures, o.next = o.queue[1:], 0, time.Time{}
		l.forget(o.what)
		if done != nil {
			done()
		}
		return
	}
	if l.stopped {
		return
	}
	pause := min(outboxFirst<<min(o.failures, 16), outboxMost)
	o.next = time.Now().Add(pause + time.Duration(float64(pause)*l.o.Rand()/4))
	o.failures++
	l.say(o.what, slog.LevelError, err.Error(), "not written yet, tried again: "+o.what, "waiting", len(o.queue), "error", err.Error())
}

// flush tries every job that is left once more, now.
func (l *Loop) flush(o *outbox) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), o.limit)
	defer cancel()
	for _, do := range o.queue {
		if _, err := do(ctx); err != nil {
			l.log.Error("never written: "+o.what, "lost", len(o.queue), "error", err.Error())
			return
		}
		o.queue = o.queue[1:]
	}
}

// record writes down what was done: as soon as it can be, and nothing waits for it.
func (l *Loop) record(e audit.Event) {
	if e.Outcome == "" {
		e.Outcome = "ok"
	}
	e = l.event(e)
	l.later(&l.records, func(ctx context.Context) (func(), error) {
		_, err := l.o.Audit.Append(ctx, e)
		return nil, err
	})
}

func (l *Loop) event(e audit.Event) audit.Event {
	e.Actor, e.Environment, e.ProxyID, e.Key = "agent", l.o.Environment, l.o.ProxyID, l.o.Name
	return e
}

// What say tells apart.
const (
	saidLook  = "look"
	saidLoad  = "load"
	saidAudit = "audit"
	saidNote  = "note "
)

// say logs a message unless the last one of its kind had the same text.
func (l *Loop) say(kind string, level slog.Level, text, msg string, attrs ...any) {
	if last, ok := l.said[kind]; ok && last == text {
		return
	}
	l.said[kind] = text
	l.log.Log(l.ctx, level, msg, attrs...)
}

// forget makes the next message of a kind news again.
func (l *Loop) forget(kind string) { delete(l.said, kind) }

// sayNotes says what is done without, once, and forgets what is in order again.
func (l *Loop) sayNotes(notes map[string]string) {
	for _, at := range slices.Sorted(maps.Keys(notes)) {
		l.say(saidNote+at, slog.LevelWarn, notes[at], "done without what cannot be read", "path", at, "error", notes[at])
	}
	for kind := range l.said {
		if at, ok := strings.CutPrefix(kind, saidNote); ok && notes[at] == "" {
			l.forget(kind)
		}
	}
}
