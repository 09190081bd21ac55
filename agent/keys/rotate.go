package keys

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// RotateOptions say how a rotation goes. The zero value is as configured.
type RotateOptions struct {
	Ramp   *rotation.Ramp // nil: the Manager's
	Grace  *time.Duration // nil: the Manager's
	Reason string
	// IdempotencyKey: a request with the key of the rotation that is under way,
	// or was last, returns that one and begins none.
	IdempotencyKey string
	// Managed: an issuer makes the new credential; no value is given.
	Managed bool
	// ProviderID is what the provider calls the value's credential, where somebody
	// made it by hand: by it `postern server` ends the credential there. "": it is not known.
	ProviderID string
}

// Rotation is a rotation as far as it is.
type Rotation struct {
	ID          string         `json:"id"` // of the key
	Name        string         `json:"name"`
	Environment string         `json:"environment"`
	ProxyID     string         `json:"proxy_id"`
	Phase       rotation.Phase `json:"phase"`
	Closed      bool           `json:"closed"`
	Managed     bool           `json:"managed"`
	From        int            `json:"from"` // version numbers; 0: none
	To          int            `json:"to"`
	Ramp        rotation.Ramp  `json:"ramp,omitempty"`
	Grace       string         `json:"grace,omitempty"` // as in 10m0s
	RequestedAt time.Time      `json:"requested_at,omitzero"`
	StartedAt   time.Time      `json:"started_at,omitzero"`
	Weight      int            `json:"weight"` // the new version's percentage now
	Actor       string         `json:"actor,omitempty"`
	Reason      string         `json:"reason,omitempty"`
	Agents      []Agent        `json:"agents,omitempty"`
	// Waiting says in a sentence what the rotation waits for; "" once it is closed.
	Waiting string `json:"waiting,omitempty"`
	// Next is when there is something to do at the earliest; zero once it is closed, and where only others can do it.
	Next time.Time `json:"next,omitzero"`
	// Overdue: a step could have been taken and was not.
	Overdue bool `json:"overdue,omitempty"`
	// Warnings are what the caller should be told: a provider that could not be asked, an entry that could not be recorded.
	Warnings []string `json:"warnings,omitempty"`
}

// Agent is what one agent acknowledged.
type Agent struct {
	Name   string         `json:"agent"`
	At     time.Time      `json:"at"`   // when it said so
	Live   bool           `json:"live"` // it said so within ackLife
	To     rotation.State `json:"to"`
	From   rotation.State `json:"from"` // Unknown: it does not hold the old version
	Reason string         `json:"reason,omitempty"`
}

// Rotate begins a rotation and carries it up to the migration: it generates
// (writes value as the next version, or with o.Managed only requests one),
// validates, and starts the ramp. Then Wait, or others, finish it. The value stays the caller's.
//
// Errors that are an outcome come with the Rotation: an *OpenError (ErrOpen) with
// the one that is under way, a *RejectedError (ErrRejected) with the one that ended.
// store.ErrConflict: somebody wrote a version by hand at the same time.
func (m *Manager) Rotate(ctx context.Context, name string, value *secret.Value, o RotateOptions) (Rotation, error) {
	u := m.newRun(name, value)
	if err := u.mayRotate(&o); err != nil {
		return Rotation{}, err
	}
	for {
		rot, done, err := u.begin(ctx, o)
		if done || err != nil && !errors.Is(err, errAgain) {
			return rot, err
		}
		if err != nil {
			continue
		}
		rot, err = u.carry(ctx)
		if err == nil && rot.Closed && rot.Phase != rotation.PhaseDone { // by others, meanwhile
			err = fmt.Errorf("the rotation of %s is over (%s): %s: %w", name, rot.Phase, rot.Reason, store.ErrConflict)
		}
		return rot, err
	}
}

// mayRotate refuses what cannot be meant, before anything is read.
func (u *run) mayRotate(o *RotateOptions) error {
	if err := CheckName(u.name); err != nil {
		return err
	}
	if o.Ramp == nil {
		o.Ramp = &u.Ramp
	}
	if o.Grace == nil {
		o.Grace = &u.Grace
	}
	switch err := o.Ramp.Check(); {
	case err != nil:
		return err
	case *o.Grace < 0:
		return fmt.Errorf("grace: %v is negative", *o.Grace)
	case o.Managed && u.value != nil:
		return fmt.Errorf("the key of %s: a managed rotation takes no value, its issuer makes one", u.name)
	case o.Managed && o.ProviderID != "":
		return fmt.Errorf("the key of %s: a managed rotation takes no provider id, its issuer tells it", u.name)
	case o.Managed:
		return nil
	}
	if err := shaped(u.name, u.value); err != nil {
		return err
	}
	if err := CheckProviderID(o.ProviderID); err != nil {
		return err
	}
	return notIn(u.value, o.Reason, o.IdempotencyKey, o.ProviderID)
}

// begin writes the record of a new rotation. Done: there is nothing to carry on.
func (u *run) begin(ctx context.Context, o RotateOptions) (rot Rotation, done bool, err error) {
	now := u.now() // before anything is read, so that To cannot be older
	s, e, err := u.look(ctx)
	if err != nil {
		return rot, true, err
	}
	if o.IdempotencyKey != "" && e.IdempotencyKey == o.IdempotencyKey {
		if e.Phase == rotation.PhaseGenerate && !e.Managed && !s.held(now) { // whoever sent it first did not come to writing the value
			rot, err = u.Resume(ctx, u.name, u.value)
			return rot, true, err
		}
		return u.describe(s, decide(*s, now), now), true, nil
	}
	if s.blocks() {
		return u.describe(s, decide(*s, now), now), true, openError(u.name, &e.Record)
	}
	from, err := u.inUse(ctx, s)
	if err != nil {
		return rot, true, err
	}
	if err := u.mayBegin(ctx, s, from, o); err != nil {
		return rot, true, err
	}
	n := s.md.Current + 1
	event := audit.Event{Event: EventGenerate, Key: u.name, Version: n, Reason: o.Reason, Detail: map[string]string{"from": strconv.Itoa(from.Number)}}
	if o.Managed {
		event.Detail["managed"] = "true"
	}
	if err := u.intend(ctx, event); err != nil {
		return rot, true, err
	}
	next := &entry{cas: e.cas, Record: rotation.Record{
		From: from, To: rotation.ID{Number: n}, Ramp: *o.Ramp, Grace: *o.Grace, Versions: s.inherit(),
		Phase: rotation.PhaseGenerate, Managed: o.Managed, Actor: u.Actor.Name, Entity: u.Actor.Entity, Reason: o.Reason,
		IdempotencyKey: o.IdempotencyKey, RequestedAt: now, Rest: e.Rest,
	}}
	if o.Managed {
		next.To, next.Phase = rotation.ID{}, rotation.PhaseRequested
	} else {
		next.hold(u.holder, now)
		next.Version(next.To).ProviderID = o.ProviderID
		next.prune()
	}
	if err := u.save(ctx, next); err != nil {
		if !errors.Is(err, errAgain) {
			err = fmt.Errorf("the rotation of %s could not begin: %w", u.name, err)
		}
		event.Outcome, event.Reason = OutcomeFailed, err.Error()
		u.warn("%s", u.record(ctx, event))
		return rot, false, err
	}
	u.since, u.began = now, true
	return rot, false, nil
}

// blocks reports whether a rotation is under way. One that only waits to end a
// version nobody uses any more, and could not, does not keep the next one from beginning.
func (s situation) blocks() bool {
	return s.open() && (s.r.Phase != rotation.PhaseRevoke || s.about(s.r.From).Trouble == "")
}

// mayBegin refuses what must not be rotated.
func (u *run) mayBegin(ctx context.Context, s *situation, from rotation.ID, o RotateOptions) error {
	if err := u.ours(u.name, s.md.Custom); err != nil {
		return err
	}
	if o.Managed {
		if u.Issuer != nil && u.issuerOf(s.provider()) == nil {
			return fmt.Errorf("the server has no issuer for the provider %q of %s; see issuers in its configuration, or rotate with a value", s.provider(), u.name)
		}
		return u.pushesOut(s.md, s.r)
	}
	if from.Zero() {
		if s.md.Current == 0 {
			return absent{fmt.Sprintf("there is no key %s in %s, %s; `postern keys add %s` stores the first version", u.name, u.Scope.Environment, u.Scope.ProxyID, u.name)}
		}
		return absent{fmt.Sprintf("no version of %s is in use that could be replaced; `postern keys add %s` stores the next one", u.name, u.name)}
	}
	if err := u.pushesOut(s.md, s.r); err != nil {
		return err
	}
	found, err := u.digestOf(ctx, u.name, u.value)
	for _, f := range found {
		if f.ID == u.Scope.ID(u.name) && f.Version == from.Number {
			u.warn("the same value was stored as version %d, which it replaces", f.Version)
		}
	}
	return err
}

// Status returns how far a key's rotation is, without taking a step. Phase is
// PhaseNone where there never was one.
func (m *Manager) Status(ctx context.Context, name string) (Rotation, error) {
	if err := CheckName(name); err != nil {
		return Rotation{}, err
	}
	u := m.newRun(name, nil)
	s, _, err := u.look(ctx)
	if err != nil {
		return Rotation{}, err
	}
	now := m.now()
	return u.describe(s, decide(*s, now), now), nil
}
