package sync

import (
	"context"
	"log/slog"
	"path"
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
)

// Run keeps the key until ctx ends. Then it takes every version out of use,
// waits, not for ever, until each is wiped, and returns. Call it once.
func (l *Loop) Run(ctx context.Context) {
	l.ctx = ctx
	l.report = l.o.Acks.join(path.Base(l.o.Source.Path))
	defer l.report.leave()
	l.o.Metrics.add(l)
	defer l.o.Metrics.remove(l)
	defer l.stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case told := <-l.results:
			l.stopped = ctx.Err() != nil // an error that ctx caused says nothing about the store
			told()
		case <-timer.C:
			l.tick()
		}
		if ctx.Err() != nil {
			return
		}
		l.deliver(&l.records)
		l.deliver(&l.vetoes)
		timer.Reset(l.pause())
	}
}

// beside runs work next to the loop, and what it returns on the loop. Work ends
// with its context; its result is run even if the loop ends meanwhile.
func (l *Loop) beside(limit time.Duration, work func(ctx context.Context) (told func())) {
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(l.ctx, limit)
		defer cancel()
		l.results <- work(ctx)
	})
}

// step gives rotation an event and does what it says.
func (l *Loop) step(e rotation.Event) {
	if l.stopped {
		return
	}
	var actions []rotation.Action
	l.k, actions = rotation.Step(l.k, e)
	for _, a := range actions {
		l.do(a)
	}
	l.hurry()
	l.publish()
}

// hurry brings the next look forward when a rotation has begun.
func (l *Loop) hurry() {
	if soon := time.Now().Add(l.every()); l.failures == 0 && soon.Before(l.nextLook) && l.k.Open(l.now()) {
		l.nextLook = soon
	}
}

// every is the time from one look to the next, jitter included.
func (l *Loop) every() time.Duration {
	every := l.o.Poll
	if l.k.Open(l.now()) {
		every = min(every, openPoll)
	}
	return time.Duration(float64(every) * (0.8 + 0.4*l.o.Rand()))
}

// now is the time that all agents agree on.
func (l *Loop) now() time.Time { return l.o.Store.Now().Round(0).UTC() }

// tick does what time asks for.
func (l *Loop) tick() {
	now := time.Now()
	l.leases = slices.DeleteFunc(l.leases, func(t lease) bool {
		over := !now.Before(t.until)
		if v, _ := l.k.Find(t.id); over && v.Loaded {
			l.expire(t.id, "its lease is over")
		}
		return over
	})
	if l.stales() && now.Sub(l.lastContact) >= l.o.MaxStale {
		l.expire(rotation.ID{}, "the store was out of reach for max_stale")
	}
	l.evidence()
	l.step(rotation.Tick{Now: l.now()})
	if !l.looking && !now.Before(l.nextLook) {
		l.look()
	}
}

// stales reports whether max_stale is running: the store is out of reach, and
// what is served has no lease that says how long it lives.
func (l *Loop) stales() bool { return l.failures > 0 && len(l.leases) == 0 && l.k.Usable() }

func (l *Loop) expire(id rotation.ID, reason string) {
	was := l.k.Usable()
	l.step(rotation.Expired{Now: l.now(), ID: id})
	if was && !l.k.Usable() {
		l.log.Error("no version is usable any more; requests fail until the store answers", "reason", reason)
		l.record(audit.Event{Event: EventExpired, Version: id.Number, Reason: reason})
	}
}

// evidence tells rotation what requests showed about the new version.
func (l *Loop) evidence() {
	if l.k.From.Zero() {
		return
	}
	if h := l.find(l.k.To); h != nil {
		served, failed := h.v.Counts()
		l.step(rotation.Evidence{Now: l.now(), ID: l.k.To, Served: served, Failed: failed})
	}
}

// pause is how long nothing is due. It is never 0, so that clocks which differ
// a little cannot make the loop spin.
func (l *Loop) pause() time.Duration {
	now := time.Now()
	next := now.Add(time.Hour)
	at := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if !l.looking {
		at(l.nextLook)
	}
	shared := l.now()
	if wake := l.k.Wake(shared); !wake.IsZero() {
		at(now.Add(wake.Sub(shared)))
	}
	if l.k.Open(shared) {
		at(now.Add(openPoll)) // evidence
	}
	for _, t := range l.leases {
		at(t.until)
	}
	if l.stales() {
		at(l.lastContact.Add(l.o.MaxStale))
	}
	for _, o := range []*outbox{&l.records, &l.vetoes} {
		if len(o.queue) > 0 && !o.busy {
			at(o.next)
		}
	}
	return max(next.Sub(now), time.Millisecond)
}

// look asks the source what there is.
func (l *Loop) look() {
	vetoable := l.k.Vetoable()
	l.looking = true
	l.beside(readLimit, func(ctx context.Context) func() {
		seen, err := l.src.look(ctx, vetoable)
		return func() {
			l.looking = false
			if l.stopped {
				return
			}
			l.o.Metrics.read(err)
			if err != nil {
				l.revoke(seen.record)
				l.blind(err)
				l.publish()
			} else {
				l.saw(seen)
			}
		}
	})
}

// saw takes in what a look found.
func (l *Loop) saw(seen sight) {
	now := time.Now()
	if l.failures > 0 {
		l.log.Info("the store can be read again", "after", now.Sub(l.outage).Round(time.Millisecond))
	}
	if l.stale {
		l.stale = false
		l.record(audit.Event{Event: EventStale, Outcome: "ended", Reason: "the store can be read again"})
	}
	l.failures, l.outage, l.trouble = 0, time.Time{}, trouble{}
	l.forget(saidLook)
	l.sayNotes(seen.notes)
	l.looked, l.lastContact = true, now
	l.leases = seen.leases
	l.step(rotation.Observed{Now: l.now(), Versions: seen.versions, Record: seen.record, Halts: seen.halts})
	l.nextLook = l.together(now.Add(l.every()))
}

// groups is how often within poll a process looks at most, however many keys it
// has: to wake up for each of a thousand costs more than the look.
const groups = 20

// together is t or the moment next to it at which other Loops of this process
// look. Those of another process look at others.
func (l *Loop) together(t time.Time) time.Time {
	d := t.Sub(l.o.Metrics.made)
	return t.Add(d.Round(l.o.Poll/groups) - d)
}

// revoke ends what a record says is revoked, of a look that failed otherwise.
func (l *Loop) revoke(r *rotation.Record) {
	if r == nil {
		return
	}
	for _, v := range r.Versions {
		if v.State == rotation.Compromised {
			l.step(rotation.Compromise{Now: l.now(), ID: v.ID})
		}
	}
}

// blind takes in that a look failed: what is in memory goes on serving.
func (l *Loop) blind(err error) {
	now := time.Now()
	if l.failures == 0 {
		l.outage = now
	}
	l.trouble = trouble{kindOf(err), err.Error()}
	most := mostBackoff
	if now.Sub(l.outage) <= longOutage {
		most = min(max(l.o.Poll, comeBack), mostBackoff)
	}
	if d := l.o.Poll << min(l.failures, 16); d > 0 { // else shifted out of range
		most = min(most, d)
	}
	l.failures++
	wait := time.Duration(float64(most) * l.o.Rand())
	if now.Sub(l.outage) > longOutage {
		wait += time.Duration(float64(comeBack) * l.o.Rand())
		if !l.stale && l.k.Usable() {
			l.stale = true
			l.record(audit.Event{Event: EventStale, Outcome: "began", Reason: "the store has been out of reach; serving from memory: " + l.trouble.Kind})
		}
	}
	l.nextLook = now.Add(max(wait, leastWait))
	// An outage says the same thing in many words; a key's own trouble is what its text says.
	text := l.trouble.Text
	if l.trouble.Kind == kindUnavailable {
		text = ""
	}
	l.say(saidLook, slog.LevelError, l.trouble.Kind+text, "the key cannot be read from the store", "kind", l.trouble.Kind, "error", l.trouble.Text, "serving", l.k.Usable())
}

// stop takes everything out of use and waits until it is wiped.
func (l *Loop) stop() {
	l.stopped = true
	l.o.Key.Install(nil)
	for len(l.held) > 0 {
		l.end(l.held[0], false)
	}
	done := make(chan struct{})
	go func() {
		l.wg.Wait()
		close(done)
	}()
	if !l.drain(done, stopWait) {
		l.log.Warn("requests still held a version when their time was over; it was wiped under them")
		for _, h := range l.ending {
			h.v.Wipe()
		}
		l.drain(done, time.Second)
	}
	l.src.close()
	l.flush(&l.records)
	l.publish()
}

// drain runs what is still to be told until nothing runs beside the loop any more.
func (l *Loop) drain(done <-chan struct{}, limit time.Duration) bool {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		select {
		case told := <-l.results:
			told()
		case <-done:
			return true
		case <-timeout.C:
			return false
		}
	}
}
