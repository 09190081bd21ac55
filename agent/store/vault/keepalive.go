package vault

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/postern-proxy/postern/agent/store"
)

// fileCheck is how often a token's file is read again at the latest.
const fileCheck = time.Minute

// step is what keeps a session alive.
type step int

const (
	rest  step = iota // nothing, until the session changes
	renew             // extend the token
	login             // get another token
	look              // read the token's file again
)

// plan says what a session needs next, and when. A token is renewed, or
// replaced where renewing does not help any more, when two thirds of its time
// are over.
func plan(sess *session, file bool) (step, time.Time) {
	after := func(d time.Duration) time.Time {
		return sess.from.Add(d + time.Duration(sess.wobble*float64(d)))
	}
	// Vault counts a batch token's time from the full second before it was made.
	sure := max(sess.ttl-time.Second, sess.ttl/2)
	twoThirds := after(sure * 2 / 3)
	switch {
	case file && (sess.endless() || sure*2/3 > fileCheck):
		return look, after(fileCheck)
	case sess.endless():
		return rest, time.Time{}
	case sess.renewable && !sess.truncated():
		return renew, twoThirds
	case file:
		return look, after(max(sure*2/3, time.Second))
	}
	return login, twoThirds
}

// endless reports whether a token has no end, or none that is known.
func (s *session) endless() bool { return s.ttl == 0 && s.asked == 0 }

// truncated reports whether a renewal granted less than was asked for, beyond what
// rounding explains: the token nears the end that no renewal moves.
func (s *session) truncated() bool { return s.renewed && s.ttl < s.asked*9/10 }

// upkeep is the plan for one session and how it goes.
type upkeep struct {
	sess   *session
	step   step
	at     time.Time
	failed int // renewals, in a row
}

// keepAlive keeps a session, and the session's token alive, until ctx ends.
func (s *Store) keepAlive(ctx context.Context) {
	if s.method.token != nil && !s.method.file {
		return // the caller's own token is the caller's to renew
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()

	var next upkeep
	for ctx.Err() == nil {
		if sess := s.session.Load(); sess != next.sess || sess == nil {
			next = s.upkeep(sess)
		}
		if s.pause(ctx, next) {
			next = s.take(ctx, next)
		}
	}
}

// upkeep plans for a session, or for its absence.
func (s *Store) upkeep(sess *session) upkeep {
	if sess == nil {
		return upkeep{step: login, at: s.gateOpens()}
	}
	step, at := plan(sess, s.method.file)
	return upkeep{sess: sess, step: step, at: at}
}

func (s *Store) gateOpens() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gate.opens
}

// pause waits for a step's time. It returns false if something happened meanwhile that may have changed the plan.
func (s *Store) pause(ctx context.Context, u upkeep) bool {
	var due <-chan time.Time
	if u.step != rest {
		timer := time.NewTimer(u.at.Sub(s.opts.Now()))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-due:
		return true
	case <-s.wake:
	case <-ctx.Done():
	}
	return false
}

// take does a step and returns the next one.
func (s *Store) take(ctx context.Context, u upkeep) upkeep {
	switch u.step {
	case renew:
		return s.takeRenewal(ctx, u)
	case look:
		return s.takeLook(ctx, u)
	}
	if _, err := s.login(ctx, u.sess, false); err != nil {
		u.at = later(s.gateOpens(), s.opts.Now().Add(s.opts.BackoffMin/2))
		return u
	}
	return s.upkeep(s.session.Load())
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// takeRenewal renews. Where Vault is away it tries again until nine tenths of
// the token's time are over; where Vault refuses, only a login helps.
func (s *Store) takeRenewal(ctx context.Context, u upkeep) upkeep {
	renewed, err := s.renew(ctx, u.sess)
	if err == nil {
		if s.session.CompareAndSwap(u.sess, renewed) {
			s.settle(renewed)
		}
		return s.upkeep(s.session.Load())
	}
	if ctx.Err() != nil {
		return u
	}
	var f *failure
	now := s.opts.Now()
	switch {
	case errors.As(err, &f) && f.badToken:
		if _, err := s.replace(ctx, u.sess); err != nil {
			return s.upkeep(s.session.Load())
		}
	case errors.Is(err, store.ErrUnavailable) && now.Before(u.sess.from.Add(u.sess.ttl*9/10)):
		u.failed++
		u.at = now.Add(backoff(s.opts.BackoffMin, s.opts.BackoffMax, u.failed-1, s.opts.Rand))
		if u.failed == 1 {
			s.log.Warn("cannot renew the token for Vault, trying again", "error", err, "expires", u.sess.expires())
		}
		return u
	default:
		s.log.Info("the token for Vault is replaced instead of renewed", "error", err)
		u.step, u.at = login, now
		if s.method.file { // logging in means to read the same file
			u.failed++
			u.step, u.at = look, now.Add(min(fileCheck, max(u.sess.ttl/10, time.Second)))
		}
		return u
	}
	return s.upkeep(s.session.Load())
}

// takeLook reads the token's file again and logs in with what it holds if that is another token.
func (s *Store) takeLook(ctx context.Context, u upkeep) upkeep {
	now := s.opts.Now()
	token, err := s.method.token()
	switch {
	case err != nil:
		s.log.Warn("cannot read the token for Vault again", "error", err)
	case token != u.sess.token:
		u.step, u.at = login, s.gateOpens()
		return u
	case u.sess.renewable && !u.sess.truncated() && u.failed == 0 && !now.Before(u.sess.from.Add(u.sess.ttl*3/5)):
		u.step, u.at = renew, now
		return u
	}
	u.at = now.Add(min(fileCheck, max(u.sess.ttl/10, time.Second)))
	if u.sess.endless() {
		u.at = now.Add(fileCheck)
	}
	return u
}

// renew asks for the time of the login once more.
func (s *Store) renew(ctx context.Context, sess *session) (*session, error) {
	body := []byte(`{"increment":"` + strconv.Itoa(int(sess.asked/time.Second)) + `s"}`)
	r, err := s.do(ctx, &call{op: opRenew, method: http.MethodPost, path: "auth/token/renew-self", body: body}, sess.token)
	if err != nil {
		return nil, err
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return nil, s.malformed(err)
	}
	renewed, err := parseAuth(e.auth, r.sent)
	if err != nil {
		return nil, s.malformed(err)
	}
	renewed.token, renewed.asked, renewed.who, renewed.life = sess.token, sess.asked, sess.who, sess.life
	renewed.renewed, renewed.wobble = true, s.wobble()
	return renewed, nil
}
