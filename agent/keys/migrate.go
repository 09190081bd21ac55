package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// ask asks the provider about To: with all its fields if they may be read, else with the value in hand.
func (u *run) ask(ctx context.Context, s *situation, e *entry) error {
	fields := map[string]*secret.Value{Field: u.value}
	sec, err := u.Store.Get(ctx, u.Scope.Path(u.name), e.To.Number)
	switch {
	case err == nil:
		defer sec.Destroy()
		if !idOf(sec.Version).Equal(e.To) {
			return errAgain
		}
		fields = sec.Fields
	case !softly(err):
		return err
	case u.value == nil:
		u.unread = true
		return nil
	}
	res := u.Probe(ctx, s.provider(), fields)
	if err := ctx.Err(); err != nil {
		return err
	}
	u.probed = &res
	event := audit.Event{Event: EventProbed, Key: u.name, Version: e.To.Number, Outcome: OutcomeOK, Reason: refusal(res.Meaning, res.Status), Detail: map[string]string{"verdict": res.Verdict.String()}}
	if res.Verdict != rotation.VerdictLive {
		event.Outcome = OutcomeFailed
	}
	u.warn("%s", u.record(ctx, event))
	return nil
}

// migrate lets agents move to To. A ramp begins once all of them can have seen it.
func (u *run) migrate(ctx context.Context, e *entry) error {
	n := e.To.Number
	event := audit.Event{Event: EventMigrate, Key: u.name, Version: n, Detail: detailOf(&e.Record)}
	if err := u.intend(ctx, event); err != nil {
		return err
	}
	e.Phase, e.Validated = rotation.PhaseMigrate, u.probed != nil && u.probed.Verdict == rotation.VerdictLive
	e.StartedAt = u.now()
	if e.Ramp.Length() > 0 {
		e.StartedAt = e.StartedAt.Add(2 * u.poll())
	}
	e.release()
	e.clear(e.To)
	err := u.save(ctx, e)
	if err != nil {
		if !errors.Is(err, errAgain) {
			event.Outcome, event.Reason = OutcomeFailed, err.Error()
			u.warn("%s", u.record(ctx, event))
		}
		return err
	}
	if !e.Validated {
		u.warn("version %d goes to the agents without having been validated (%s); each probes it before it takes it", n, unasked(u.probed))
	}
	event.Outcome = OutcomeOK
	u.warn("%s", u.record(ctx, event))
	return nil
}

// unasked says why the provider's word is missing.
func unasked(res *provider.Result) string {
	switch {
	case res == nil:
		return "the provider could not be asked from here"
	case res.Err != nil:
		return res.Meaning + ": " + res.Err.Error()
	}
	return refusal(res.Meaning, res.Status)
}

// close ends a rotation. Its old version is ended already, or stays.
func (u *run) close(ctx context.Context, s *situation, e *entry, last step) error {
	e.Closed, e.Phase = true, last.phase
	e.release()
	if last.reason != "" {
		e.Reason = last.reason
	}
	switch {
	case last.reject:
		to := e.Version(e.To)
		to.State, to.Attempts, to.Next, to.Trouble = rotation.Rejected, 0, time.Time{}, ""
	case len(last.kept) > 0:
		e.clear(e.To)
		for _, k := range last.kept {
			if s.readable(k.id) {
				e.Version(k.id).Trouble = fmt.Sprintf("it stays in the store, because %s; `postern keys revoke %s --version %d --now` ends it", k.why, u.name, k.id.Number)
			}
		}
	case last.phase == rotation.PhaseDone && !e.From.Zero():
		if from := e.Version(e.From); !barred(from.State) {
			from.State = rotation.Retired
		}
	}
	if err := u.save(ctx, e); err != nil {
		return err
	}
	u.ended(ctx, s, e, last)
	return nil
}

// ended records how a rotation ended, and remembers it for whoever began it.
func (u *run) ended(ctx context.Context, s *situation, e *entry, last step) {
	n := e.To.Number
	event := audit.Event{Event: EventClose, Key: u.name, Version: n, Outcome: OutcomeFailed, Reason: last.reason, Detail: detailOf(&e.Record)}
	event.Detail["phase"] = string(last.phase)
	if last.halted {
		u.warn("%s", u.record(ctx, audit.Event{Event: EventHalt, Key: u.name, Version: n, Outcome: OutcomeOK, Reason: s.halt.Reason}))
	}
	switch last.phase {
	case rotation.PhaseDone:
		event.Outcome = OutcomeOK
	case rotation.PhaseRejected:
		u.failed = &RejectedError{Name: u.name, Version: n, Meaning: last.reason}
		if u.probed != nil && u.probed.Verdict == rotation.VerdictDead {
			u.failed = &RejectedError{Name: u.name, Version: n, Meaning: u.probed.Meaning, Status: u.probed.Status}
		}
	case rotation.PhaseAbandoned:
		if u.failed == nil {
			u.failed = fmt.Errorf("the rotation of %s was given up: %s: %w", u.name, last.reason, store.ErrConflict)
		}
	case rotation.PhaseRolledBack:
		u.failed = fmt.Errorf("version %d of %s was rolled back: %s", n, u.name, last.reason)
		u.warn("%s", u.record(ctx, audit.Event{Event: EventRollback, Key: u.name, Version: n, Outcome: OutcomeOK, Reason: last.reason, Detail: detailOf(&e.Record)}))
	}
	u.warn("%s", u.record(ctx, event))
}

// destroy ends a version in the store for good.
func (u *run) destroy(ctx context.Context, e *entry, id rotation.ID) error {
	event := audit.Event{Event: EventRetire, Key: u.name, Version: id.Number, Outcome: OutcomeOK, Detail: map[string]string{"at": "store"}}
	err := u.Store.Destroy(ctx, u.Scope.Path(u.name), id.Number)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		if !errors.Is(err, store.ErrForbidden) {
			return err
		}
		u.denied[id] = err.Error()
		v := e.Version(id)
		if v.Trouble == err.Error() {
			return nil
		}
		v.Trouble = err.Error() // so that it shows, and holds up no other rotation
		event.Outcome, event.Reason = OutcomeDenied, err.Error()
	} else {
		v := e.Version(id)
		v.Destroyed, v.Attempts, v.Next = true, 0, time.Time{}
		if !strings.HasPrefix(v.Trouble, byHand) && !strings.HasPrefix(v.Trouble, foreign) { // which is no less true now
			v.Trouble = ""
		}
	}
	if err := u.save(ctx, e); err != nil && (event.Outcome == OutcomeOK || !errors.Is(err, store.ErrForbidden)) {
		return err
	}
	u.warn("%s", u.record(ctx, event))
	return nil
}
