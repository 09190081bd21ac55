package keys

import (
	"context"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
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
func (m *Manager) Rotate(ctx context.Context, name string, value *secret.Value, o RotateOptions) (Rotation, error) {
	panic("unwritten")
}

// Resume goes on with a rotation that was interrupted, wherever that was.
func (m *Manager) Resume(ctx context.Context, name string, value *secret.Value) (Rotation, error) {
	panic("unwritten")
}

// Advance takes every step of a key's rotation that is due now and returns how
// far it is. Without an open rotation it does nothing.
func (m *Manager) Advance(ctx context.Context, name string) (Rotation, error) {
	panic("unwritten")
}

// Wait advances until the rotation is closed, ctx ends, or only others can go
// on. Progress is called with every change and about once a second; nil: not at all.
func (m *Manager) Wait(ctx context.Context, name string, progress func(Rotation)) (Rotation, error) {
	panic("unwritten")
}

// Status returns how far a key's rotation is, without taking a step. Phase is
// PhaseNone where there never was one.
func (m *Manager) Status(ctx context.Context, name string) (Rotation, error) {
	panic("unwritten")
}

// Rotations returns Status of every key of the scope that has a record, by name.
func (m *Manager) Rotations(ctx context.Context) ([]Rotation, error) {
	panic("unwritten")
}
