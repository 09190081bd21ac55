package rotation

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"
)

// Record is a rotation as the store keeps it, for all agents. Each member is a
// field of the stored secret; no member is a secret.
type Record struct {
	// From is the version that To replaces. To is zero while it is only
	// wished for; To.Created is zero until the version is written, because its
	// number is known before.
	From, To ID
	Ramp     Ramp
	Grace    time.Duration
	// StartedAt is when the ramp begins. Until then To is made ready but takes no
	// traffic, unless nothing else is usable. While it is zero agents do not even
	// ask the provider about To: whoever rotates does, on behalf of all.
	StartedAt time.Time
	// Validated says that To was probed: agents need not.
	Validated bool
	// Closed says that nothing of this rotation is left to be done.
	Closed bool
	// Versions are what was decided about versions: only Rejected and
	// Compromised change what an agent does.
	Versions []VersionRecord

	// What follows is for those who carry the rotation out; Step does not read it.

	Phase   Phase
	Managed bool   // the new version is made by an issuer
	Actor   string // who asked for it, for people
	Entity  string // the same as the store's own identity; "" where it knows none
	Reason  string // why it was asked for, and, once it is over, why it failed
	// IdempotencyKey names the request that began it.
	IdempotencyKey string
	RequestedAt    time.Time
	// Holder makes the new version at the provider; others leave that to it until HeldUntil.
	Holder    string
	HeldUntil time.Time

	// Rest are members that are not known here. They are carried through.
	Rest map[string]string
}

// Phase is how far a rotation is.
type Phase string

const (
	PhaseNone      Phase = ""          // no rotation ever began
	PhaseRequested Phase = "requested" // an issuer is to make the new version
	PhaseGenerate  Phase = "generate"  // the new version is being made or written
	PhaseValidate  Phase = "validate"  // it is written, and the provider is asked about it
	PhaseMigrate   Phase = "migrate"   // agents move to it
	PhaseRevoke    Phase = "revoke"    // all have moved: the old version is revoked and destroyed
	// With the phases below the record is Closed.
	PhaseDone       Phase = "done"
	PhaseRejected   Phase = "rejected"    // the provider refuses the new version
	PhaseRolledBack Phase = "rolled_back" // a halt stopped it
	PhaseAbandoned  Phase = "abandoned"   // the new version was never written
)

// VersionRecord is what a record says of one version.
type VersionRecord struct {
	ID
	State State `json:"state"` // Unknown: nothing was decided
	// ProviderID is what the provider calls the credential, where an issuer made
	// it; Expires is when it ends there by itself, zero if it does not.
	ProviderID string    `json:"provider_id,omitempty"`
	Expires    time.Time `json:"expires,omitzero"`
	// Revocation at the provider and destruction in the store are tried until they succeed.
	Revoked   bool      `json:"revoked,omitempty"`   // at the provider
	Destroyed bool      `json:"destroyed,omitempty"` // in the store
	Attempts  int       `json:"attempts,omitempty"`  // that failed
	Next      time.Time `json:"next,omitzero"`       // not tried again before
	Trouble   string    `json:"trouble,omitempty"`   // why the last attempt failed
}

// Version returns what the record says of a version, added if it says nothing
// yet. The pointer is valid until another is added.
func (r *Record) Version(id ID) *VersionRecord {
	for i := range r.Versions {
		if r.Versions[i].ID.Equal(id) {
			return &r.Versions[i]
		}
	}
	r.Versions = append(r.Versions, VersionRecord{ID: id})
	return &r.Versions[len(r.Versions)-1]
}

func (r *Record) members() map[string]any {
	return map[string]any{
		"from": &r.From, "to": &r.To, "ramp": &r.Ramp, "grace": (*duration)(&r.Grace), "started_at": &r.StartedAt,
		"validated": &r.Validated, "closed": &r.Closed, "versions": &r.Versions,
		"phase": &r.Phase, "managed": &r.Managed, "actor": &r.Actor, "entity": &r.Entity, "reason": &r.Reason,
		"idempotency_key": &r.IdempotencyKey, "requested_at": &r.RequestedAt, "holder": &r.Holder, "held_until": &r.HeldUntil,
	}
}

// DecodeRecord reads a stored secret's fields: strings without quotes, other
// values as JSON. The error names the member.
func DecodeRecord(fields map[string][]byte) (*Record, error) {
	r := &Record{}
	if err := decode(fields, r.members(), &r.Rest); err != nil {
		return nil, err
	}
	if r.Grace < 0 {
		return nil, fmt.Errorf("grace: %v is negative", r.Grace)
	}
	return r, r.Ramp.Check()
}

// Encode is the inverse of DecodeRecord. Members that are zero are left out.
func (r *Record) Encode() (map[string][]byte, error) { return encode(r.members(), r.Rest) }

// about reports whether the record is about this version's coming in.
func (r *Record) about(id ID) bool {
	return r != nil && !r.To.Zero() && r.To.Number == id.Number && (r.To.Created.IsZero() || r.To.Created.Equal(id.Created))
}

// holds reports whether the record keeps its version from taking traffic yet.
func (r *Record) holds(now time.Time) bool {
	return !r.Closed && (r.StartedAt.IsZero() || now.Before(r.StartedAt))
}

// Halt is a veto against a version, as the store keeps it: it never takes traffic again.
type Halt struct {
	To             ID
	Reason         string
	Served, Failed uint64 // the evidence
	At             time.Time
	Rest           map[string]string
}

func (h *Halt) members() map[string]any {
	return map[string]any{"to": &h.To, "reason": &h.Reason, "served": &h.Served, "failed": &h.Failed, "at": &h.At}
}

// DecodeHalt reads a stored secret's fields as DecodeRecord does.
func DecodeHalt(fields map[string][]byte) (*Halt, error) {
	h := &Halt{}
	if err := decode(fields, h.members(), &h.Rest); err != nil {
		return nil, err
	}
	if h.To.Zero() {
		return nil, errors.New("to: must name a version")
	}
	return h, nil
}

// Encode is the inverse of DecodeHalt.
func (h *Halt) Encode() (map[string][]byte, error) { return encode(h.members(), h.Rest) }

// decode fills members from fields; what members does not name goes to rest.
func decode(fields map[string][]byte, members map[string]any, rest *map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		b := fields[name]
		dst, known := members[name]
		if !known {
			if *rest == nil {
				*rest = map[string]string{}
			}
			(*rest)[name] = string(b)
			continue
		}
		// A string lost its quotes on the way, anything else is JSON still.
		quoted, err := json.Marshal(string(b))
		if err != nil || json.Unmarshal(quoted, dst) != nil {
			if err := json.Unmarshal(b, dst); err != nil {
				return fmt.Errorf("%s: cannot be read as %s", name, reflect.TypeOf(dst).Elem())
			}
		}
	}
	return nil
}

func encode(members map[string]any, rest map[string]string) (map[string][]byte, error) {
	fields := map[string][]byte{}
	for name, text := range rest {
		fields[name] = []byte(text)
	}
	for name, src := range members {
		if reflect.ValueOf(src).Elem().IsZero() {
			continue
		}
		b, err := json.Marshal(src)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		var text string
		if json.Unmarshal(b, &text) == nil {
			b = []byte(text)
		}
		fields[name] = b
	}
	return fields, nil
}
