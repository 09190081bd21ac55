package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/postern-proxy/postern/agent/audit"
)

// The events of the record of operations.
const (
	EventCreate   = "key.create"   // the first version of a key
	EventAdd      = "key.add"      // a further version, without a rotation of its own
	EventValidate = "key.validate" // the provider was asked about versions
	EventSchedule = "key.schedule" // how often it rotates
	EventRevoke   = "key.revoke"   // an emergency

	EventGenerate = "rotation.generate" // the new version is made or written
	EventProbed   = "rotation.validate" // what the provider says of it
	EventMigrate  = "rotation.migrate"  // agents begin to move
	EventRetire   = "rotation.revoke"   // the old version, at the provider and in the store
	EventHalt     = "rotation.halt"     // an agent's veto against the new version
	EventRollback = "rotation.rollback" // the new version is out again
	EventClose    = "rotation.close"    // nothing is left to be done

	EventDenied = "request.denied" // by the server, or by the store's policy
)

// The outcomes of an event. What grants or extends has an intent first.
const (
	OutcomeIntent = "intent"
	OutcomeOK     = "ok"
	OutcomeFailed = "failed"
	OutcomeDenied = "denied"
)

// intend records that something is about to be granted or extended. Without an
// error the entry stands; with one the caller must do nothing.
func (m *Manager) intend(ctx context.Context, e audit.Event) error {
	e.Outcome = OutcomeIntent
	if err := m.appendEvent(ctx, e); err != nil {
		return fmt.Errorf("nothing was done, because the record of operations could not be written: %w", err)
	}
	return nil
}

// record records what was done or removed. It never keeps anything from being
// done: trouble comes back as a sentence for Warnings, "" if there was none. It
// is written even if ctx has ended meanwhile.
func (m *Manager) record(ctx context.Context, e audit.Event) (warning string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	if err := m.appendEvent(ctx, e); err != nil {
		m.logger().Error("the record of operations lacks an entry",
			"event", e.Event, "key", e.Key, "version", e.Version, "outcome", e.Outcome, "error", err)
		return fmt.Sprintf("the record of operations lacks %s (%s) of %s: %v", e.Event, e.Outcome, e.Key, err)
	}
	return ""
}

var errNoTrail = errors.New("there is no record of operations: set Manager.Audit")

// appendEvent fills in what every entry of this Manager says.
func (m *Manager) appendEvent(ctx context.Context, e audit.Event) error {
	if m.Audit == nil {
		return errNoTrail
	}
	e.Environment, e.ProxyID = m.Scope.Environment, m.Scope.ProxyID
	e.Actor, e.Source = m.Actor.Name, m.Actor.Source
	if m.Actor.Entity != "" {
		e.Detail = maps.Clone(e.Detail)
		if e.Detail == nil {
			e.Detail = map[string]string{}
		}
		e.Detail[audit.DetailEntity] = m.Actor.Entity
	}
	_, err := m.Audit.Append(ctx, e)
	return err
}
