package vault

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/postern-proxy/postern/agent/store"
)

// session is a token and what is known about it. It never changes: a renewal
// makes another.
type session struct {
	token string
	// from is when Vault was asked for it, local time; ttl counts from there.
	from time.Time
	ttl  time.Duration
	// asked is the ttl of the login, which every renewal asks for again. Both
	// are 0 where the token has no end or its end is not known.
	asked     time.Duration
	renewable bool
	renewed   bool // it came of a renewal, not of a login
	who       store.Identity
	// wobble moves the next renewal, -0.1 to 0.1 of its time, so that many agents do not renew at once.
	wobble float64
	// life is shared with the sessions that renewals make of this one.
	life *life
}

// life is a token's, from its login through all renewals. Leases end with it.
type life struct {
	born time.Time
	// end is when the token ends as things are; nil if it does not or that is not known.
	end atomic.Pointer[time.Time]
	// name is the token's display name once a lookup told it.
	name atomic.Pointer[string]
}

// remaining is how long the token lives; ok is false if it has no end or that is not known.
func (l *life) remaining(now time.Time) (d time.Duration, ok bool) {
	end := l.end.Load()
	if end == nil {
		return 0, false
	}
	return end.Sub(now), true
}

// expires is when the token ends, zero if it does not or that is not known.
func (s *session) expires() time.Time {
	if s.endless() {
		return time.Time{}
	}
	return s.from.Add(s.ttl)
}

// flight is a login under way, which any number of callers wait for.
type flight struct {
	done chan struct{}
	sess *session
	err  error
}

// gate says when the next login may begin: at most one in each back-off period,
// which grows while logins fail, and while they succeed but their tokens are
// refused soon after.
type gate struct {
	min, max time.Duration
	rand     func() float64

	failures int // logins failed in a row
	rapid    int // logins in a row that replaced a young token
	opens    time.Time
	err      error // why the last login failed
	reported string
}

// closeAfter notes a login that ended now. Rapid: it replaced a token that was
// refused although it was young.
func (g *gate) closeAfter(now time.Time, err error, rapid bool) {
	g.err = err
	switch {
	case err != nil:
		g.failures++
	case rapid:
		g.failures = 0
		g.rapid++
	default:
		g.failures, g.rapid = 0, 0
	}
	g.opens = now.Add(backoff(g.min, g.max, max(g.failures-1, g.rapid), g.rand))
}

// backoff is min doubled n times, at most max, of which half is random.
func backoff(min, max time.Duration, n int, random func() float64) time.Duration {
	d := min
	for ; n > 0 && d < max; n-- {
		d *= 2
	}
	if d > max {
		d = max
	}
	return d/2 + time.Duration(random()*float64(d)/2)
}

// current returns the session, logging in if there is none.
func (s *Store) current(ctx context.Context) (*session, error) {
	if sess := s.session.Load(); sess != nil {
		return sess, nil
	}
	return s.replace(ctx, nil)
}

// replace returns another session than old, whose token Vault has refused (nil
// if there was none). All callers share one login. While the next login may not
// begin yet, it returns why the last one failed.
func (s *Store) replace(ctx context.Context, old *session) (*session, error) {
	return s.login(ctx, s.drop(old), old != nil)
}

// drop ends the session with old's token, which may be a renewal of old, and
// returns it; old itself if another token is in use by now.
func (s *Store) drop(old *session) *session {
	for old != nil {
		sess := s.session.Load()
		if sess == nil || sess.token != old.token {
			break
		}
		if s.session.CompareAndSwap(sess, nil) {
			s.log.Warn("Vault does not know our token any more, logging in again")
			s.metrics.expires(time.Time{})
			s.signal()
			return sess
		}
	}
	return old
}

// login makes a new session unless there is another than old by now. Demanded:
// a request needs it because the old token was refused.
func (s *Store) login(ctx context.Context, old *session, demanded bool) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if sess := s.session.Load(); sess != nil && sess != old {
		s.mu.Unlock()
		return sess, nil
	}
	f := s.flight
	if f == nil {
		if s.closed {
			s.mu.Unlock()
			return nil, fail(store.ErrUnavailable, "the store was closed")
		}
		if wait := s.gate.opens.Sub(s.opts.Now()); wait > 0 {
			err := s.gate.err
			s.mu.Unlock()
			if err == nil {
				err = fail(store.ErrUnauthenticated, "Vault refused the token although it was new; the next login is in %v", wait.Round(time.Millisecond))
			}
			return nil, err
		}
		f = &flight{done: make(chan struct{})}
		s.flight = f
		jitter := s.jitter(old)
		s.wg.Go(func() { s.fly(f, old, demanded, jitter) })
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.sess, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// jitter is how long to wait before a login; s.mu is held.
func (s *Store) jitter(old *session) time.Duration {
	spread := s.opts.StartJitter
	switch {
	case s.gate.failures > 0: // the back-off was random enough
		return 0
	case s.outage.Load():
		spread = s.opts.OutageJitter
	case old != nil || !s.gate.opens.IsZero():
		return 0
	}
	return time.Duration(s.opts.Rand() * float64(max(spread, 0)))
}

// fly is one login on behalf of all who wait for it.
func (s *Store) fly(f *flight, old *session, demanded bool, jitter time.Duration) {
	if sleep(s.ctx, jitter) {
		f.sess, f.err = s.obtain(s.ctx)
	} else {
		f.err = fail(store.ErrUnavailable, "the store was closed")
	}
	s.metrics.login(f.err)

	s.mu.Lock()
	now := s.opts.Now()
	rapid := demanded && old != nil && now.Sub(old.life.born) < s.opts.BackoffMax
	s.gate.closeAfter(now, f.err, rapid)
	news := f.err != nil && s.gate.reported != f.err.Error()
	if f.err == nil {
		s.settle(f.sess)
		s.session.Store(f.sess)
		if s.parent == nil {
			s.layout = nil
		}
		s.gate.reported = ""
	} else {
		s.gate.reported = f.err.Error()
	}
	wait := s.gate.opens.Sub(now)
	s.flight = nil
	s.mu.Unlock()

	switch {
	case f.err == nil:
		s.log.Info("logged in to Vault", "auth", s.method.setting, "ttl", f.sess.ttl, "renewable", f.sess.renewable, "entity", f.sess.who.EntityID)
	case news && s.ctx.Err() == nil: // the same reason is not told at every attempt
		s.log.Error("cannot log in to Vault", "error", f.err, "next_attempt_in", wait.Round(time.Millisecond))
	}
	close(f.done)
	s.signal()
}

// settle notes when the session in use ends.
func (s *Store) settle(sess *session) {
	end := sess.expires()
	s.metrics.expires(end)
	if end.IsZero() {
		sess.life.end.Store(nil)
	} else {
		sess.life.end.Store(&end)
	}
}

func (s *Store) wobble() float64 { return 0.2*s.opts.Rand() - 0.1 }

// obtain gets a token, by logging in or from where it lies, and verifies that
// the server honours the namespace.
func (s *Store) obtain(ctx context.Context) (*session, error) {
	if err := s.connect(); err != nil { // files may have changed
		return nil, fail(store.ErrUnauthenticated, "%v", err)
	}
	var sess *session
	var err error
	if s.method.token != nil {
		sess, err = s.adopt(ctx)
	} else {
		sess, err = s.authenticate(ctx)
	}
	if err != nil {
		return nil, err
	}
	sess.life = &life{born: sess.from}
	sess.wobble = s.wobble()
	if s.cfg.Namespace != "" && !s.verified() {
		if err := s.verifyNamespace(ctx, sess); err != nil {
			return nil, err
		}
	}
	return sess, nil
}

// authenticate logs in with the auth method.
func (s *Store) authenticate(ctx context.Context) (*session, error) {
	body, err := s.method.body()
	if err != nil {
		return nil, fail(store.ErrUnauthenticated, "%v", err)
	}
	defer clear(body)
	r, err := s.do(ctx, &call{op: opLogin, method: http.MethodPost, path: s.method.path, body: body}, "")
	if err != nil {
		return nil, s.method.refused(err)
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return nil, s.malformed(err)
	}
	sess, err := parseAuth(e.auth, r.sent)
	if err != nil {
		return nil, s.malformed(err)
	}
	if sess.token == "" {
		return nil, fail(store.ErrUnauthenticated, "%s: the login wants a second factor, which an agent has not", s.method.setting)
	}
	return sess, nil
}

// adopt takes a token from where it lies and looks up how long it lives. A
// token without the right to look itself up works all the same.
func (s *Store) adopt(ctx context.Context) (*session, error) {
	token, err := s.method.token()
	if err != nil {
		return nil, fail(store.ErrUnauthenticated, "%v", err)
	}
	sess := &session{token: token, from: s.opts.Now()}
	r, err := s.lookup(ctx, token)
	switch {
	case errors.Is(err, store.ErrForbidden):
		return sess, nil
	case err != nil:
		return nil, s.method.refused(err)
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return nil, s.malformed(err)
	}
	if err := parseLookup(e.data, sess); err != nil {
		return nil, s.malformed(err)
	}
	sess.from = r.sent
	return sess, nil
}

func (s *Store) lookup(ctx context.Context, token string) (*reply, error) {
	return s.do(ctx, &call{op: opLookup, method: http.MethodGet, path: "auth/token/lookup-self"}, token)
}

// parseAuth reads a token from the answer to a login or a renewal.
func parseAuth(v []byte, sent time.Time) (*session, error) {
	if isNull(v) {
		return nil, expect("auth")
	}
	sess := &session{from: sent}
	err := members(v, func(name, value []byte) (err error) {
		switch {
		case is(name, "client_token"):
			sess.token, err = text(value)
		case is(name, "lease_duration"):
			sess.ttl, err = seconds(value)
		case is(name, "renewable"):
			sess.renewable, err = boolean(value)
		case is(name, "entity_id"):
			sess.who.EntityID, err = text(value)
		case is(name, "policies"):
			sess.who.Policies, err = parseTexts(value)
		}
		return err
	})
	sess.asked = sess.ttl
	return sess, err
}

// parseLookup completes a session from the answer to a lookup.
func parseLookup(v []byte, sess *session) error {
	err := members(v, func(name, value []byte) (err error) {
		switch {
		case is(name, "ttl"):
			sess.ttl, err = seconds(value)
		case is(name, "creation_ttl"):
			sess.asked, err = seconds(value)
		case is(name, "renewable"):
			sess.renewable, err = boolean(value)
		case is(name, "entity_id"):
			sess.who.EntityID, err = text(value)
		case is(name, "display_name"):
			sess.who.DisplayName, err = text(value)
		case is(name, "policies"):
			sess.who.Policies, err = parseTexts(value)
		}
		return err
	})
	return err
}

// seconds returns a term in whole seconds, of at most a century.
func seconds(v []byte) (time.Duration, error) {
	n, err := integer(v)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > 100*365*24*60*60 {
		return 0, errKind
	}
	return time.Duration(n) * time.Second, nil
}

func parseTexts(v []byte) (all []string, err error) {
	if isNull(v) {
		return nil, nil
	}
	err = elements(v, func(element []byte) error {
		one, err := text(element)
		all = append(all, one)
		return err
	})
	return all, err
}

// signal wakes keepAlive.
func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// sleep waits and reports whether the time has passed, not the context ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
