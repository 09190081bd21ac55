package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// makeTime bounds what is asked of a provider for one version: less than
// holdTime, so that nobody takes over what is still being made.
const makeTime = holdTime - 30*time.Second

// storeTime bounds the writing of a credential that was made already, even if
// the caller has gone: unwritten it would have to be made again.
const storeTime = 20 * time.Second

// label names the attempt at one version for the provider.
func (m *Manager) label(name string, n int) string {
	return fmt.Sprintf("postern %s %s %s %d", m.Scope.Environment, m.Scope.ProxyID, name, n)
}

// issue claims a managed rotation, makes its credential and stores it. Cut off
// anywhere, the next one to claim it sweeps away what the provider made of this version.
func (u *run) issue(ctx context.Context, s *situation, e *entry) error {
	at := u.issuerOf(s.provider())
	old := e.To
	n := s.md.Current + 1
	event := audit.Event{Event: EventGenerate, Key: u.name, Version: n, Reason: e.Reason, Detail: map[string]string{"managed": "true", "label": u.label(u.name, n)}}
	if err := u.intend(ctx, event); err != nil {
		return err
	}
	from, err := u.inUse(ctx, s)
	if err != nil {
		return err
	}
	e.From = from
	e.move(rotation.ID{Number: n})
	e.Phase = rotation.PhaseGenerate
	e.hold(u.holder, u.now())
	if err := u.save(ctx, e); err != nil {
		return err
	}
	issued, err := u.make(ctx, at, e, old.Number)
	if err != nil {
		return u.notMade(ctx, s, e, event, err)
	}
	defer issued.Destroy()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	made := e.Version(e.To)
	made.ProviderID, made.Expires = issued.ID, issued.Expires
	if err := u.save(ctx, e); err != nil {
		return u.unmake(ctx, at, issued, err)
	}
	v, err := u.store(ctx, s, n, issued.Fields)
	switch {
	case errors.Is(err, store.ErrConflict):
		return u.outrun(ctx, s, e, at, issued)
	case err != nil:
		return u.notMade(ctx, s, e, event, fmt.Errorf("the credential was made and could not be stored: %w", err))
	}
	u.wrote = idOf(v)
	u.generated(ctx, v, event.Detail)
	u.value, err = issued.Fields[Field].Clone()
	if err != nil { // then it is read, or left to the agents
		u.value = nil
		return nil
	}
	u.own = u.value
	return nil
}

// make removes what earlier attempts left at the provider and makes the credential.
func (u *run) make(ctx context.Context, at issuer.Issuer, e *entry, before int) (*issuer.Issued, error) {
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	var keep []string
	for _, v := range e.Versions {
		if v.ProviderID != "" && !v.Revoked && !v.ID.Equal(e.To) {
			keep = append(keep, v.ProviderID)
		}
	}
	for _, n := range slices.Compact([]int{before, e.To.Number}) {
		if n == 0 {
			continue
		}
		if err := at.Sweep(ctx, u.label(u.name, n), keep); err != nil && !errors.Is(err, issuer.ErrUnsupported) {
			return nil, fmt.Errorf("what an earlier attempt left could not be removed: %w", err)
		}
	}
	current, err := u.replaceable(ctx, at, recorded(&e.Record, e.From).ProviderID)
	if err != nil {
		return nil, err
	}
	issued, err := at.Create(ctx, issuer.Request{Label: u.label(u.name, e.To.Number), Current: current})
	if err != nil {
		return nil, err
	}
	if issued.Fields[Field].Len() == 0 {
		issued.Destroy()
		return nil, fmt.Errorf("the issuer returned no %s: %w", Field, issuer.ErrRefused)
	}
	return issued, nil
}

// notMade notes why there is no credential yet, and gives up where trying again is of no use.
func (u *run) notMade(ctx context.Context, s *situation, e *entry, event audit.Event, reason error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	event.Outcome, event.Reason = OutcomeFailed, reason.Error()
	u.warn("%s", u.record(ctx, event))
	e.release()
	if errors.Is(reason, issuer.ErrRefused) || errors.Is(reason, issuer.ErrUnsupported) {
		return u.close(ctx, s, e, closing(rotation.PhaseAbandoned, "the provider made no credential: %v", reason))
	}
	e.fail(e.To, reason.Error(), u.now())
	return u.save(ctx, e)
}

// unmake ends a credential that cannot be used, because reason kept it from
// being noted. What fails here is swept away by the next attempt.
func (u *run) unmake(ctx context.Context, at issuer.Issuer, issued *issuer.Issued, reason error) error {
	if err := at.Revoke(ctx, issued.ID); err != nil {
		u.logger().Warn("a credential that is not used could not be revoked at the provider", "key", u.name, "provider_id", issued.ID, "error", err)
	}
	return reason
}

// outrun ends a managed rotation whose version somebody wrote by hand.
func (u *run) outrun(ctx context.Context, s *situation, e *entry, at issuer.Issuer, issued *issuer.Issued) error {
	made := e.Version(e.To)
	made.State = rotation.Retired
	if err := at.Revoke(ctx, issued.ID); err != nil && !errors.Is(err, issuer.ErrUnsupported) {
		e.fail(e.To, err.Error(), u.now())
	} else {
		made.Revoked = true
	}
	return u.close(ctx, s, e, closing(rotation.PhaseAbandoned, "somebody wrote version %d by hand at the same time", e.To.Number))
}

// What is said of a credential that only a person can end begins with one of these.
const (
	byHand  = "the provider has no request that ends "
	foreign = "nothing was ended at the provider: "
)

// revokeAtProvider ends the provider's side of a version.
func (u *run) revokeAtProvider(ctx context.Context, s *situation, e *entry, id rotation.ID) error {
	at := u.issuerOf(s.provider())
	v := e.Version(id)
	event := audit.Event{Event: EventRetire, Key: u.name, Version: id.Number, Outcome: OutcomeOK, Detail: map[string]string{"at": "provider", "provider_id": v.ProviderID}}
	err := u.endAtProvider(ctx, at, u.name, v.ProviderID)
	switch {
	case ctx.Err() != nil && err != nil:
		return err
	case errors.Is(err, issuer.ErrForeign):
		v.Trouble = foreign + err.Error()
		v.ProviderID, v.Attempts, v.Next = "", 0, time.Time{}
		event.Outcome, event.Reason = OutcomeFailed, v.Trouble
	case errors.Is(err, issuer.ErrUnsupported):
		v.Trouble = byHand + v.ProviderID + ": do it there by hand"
		v.ProviderID, v.Attempts, v.Next = "", 0, time.Time{}
		event.Outcome, event.Reason = OutcomeFailed, v.Trouble
	case err != nil:
		e.fail(id, err.Error(), u.now())
		event.Outcome, event.Reason = OutcomeFailed, err.Error()
	default:
		v.Revoked = true
		e.clear(id)
	}
	if err := u.save(ctx, e); err != nil {
		return err
	}
	u.warn("%s", u.record(ctx, event))
	return nil
}

// inUse is the version that a new one is to replace: the newest one that can be
// read and is neither rejected, revoked nor halted. Zero: there is none.
func (u *run) inUse(ctx context.Context, s *situation) (rotation.ID, error) {
	tried := 0
	for _, v := range slices.Backward(s.md.Versions) {
		id := idOf(v)
		if !v.Readable() || barred(s.about(id).State) {
			continue
		}
		if tried++; tried > maxTried {
			break
		}
		h, err := u.readHalt(ctx, u.name, id)
		if err != nil && !softly(err) {
			return rotation.ID{}, err
		}
		if h == nil {
			return id, nil
		}
	}
	return rotation.ID{}, nil
}

// maxTried is how many readable versions agents ever try, from the newest.
const maxTried = 10
