package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// maxVersions is how many versions a key's path keeps. Vault's default of 10
// would destroy a version that still serves once ten newer ones were written.
const maxVersions, defaultVersions = 100, 10

// Meta is what is written beside a new key. Empty members take defaults on
// creation and leave what is there on a further version.
type Meta struct {
	Provider string // catalog entry; default: the key's name
	// Label follows CheckLabel; default: <environment>-<name>. No two keys of a scope have the same.
	Label string
	// Service is what the key is for. A second key of one service in a scope wants a label with a suffix.
	Service string
	// ProviderID is what the provider calls the credential; see RotateOptions.
	ProviderID string
	// LooseLabel takes a label that breaks these rules, with a warning.
	LooseLabel bool
}

// Added is the outcome of Add.
type Added struct {
	Name     string    `json:"name"`
	Version  int       `json:"version"`
	Created  time.Time `json:"created"`
	New      bool      `json:"new"` // the key did not exist before
	Warnings []string  `json:"warnings,omitempty"`
}

// adding is what Add found before it wrote anything.
type adding struct {
	path string
	md   *store.Metadata // nil: the path is new
	// fresh: the key has no version. Metadata may be there, which an Add left that was cut off.
	fresh    bool
	next     int // the number that the version will have
	warnings []string
}

// Add stores the next version of a key and creates the key where there is
// none. Other fields of the secret are kept. The value stays the caller's.
// Agents take the version as they take one that was written by hand; while a
// rotation is under way Add refuses. Nothing is written without an entry in the record
// of operations.
func (m *Manager) Add(ctx context.Context, name string, value *secret.Value, meta Meta) (Added, error) {
	a, err := m.mayAdd(ctx, name, value, meta)
	if err != nil {
		return Added{}, err
	}
	event := audit.Event{Event: EventAdd, Key: name, Version: a.next}
	if a.fresh {
		event.Event = EventCreate
	}
	if err := m.intend(ctx, event); err != nil {
		return Added{}, err
	}
	v, err := m.storeNext(ctx, name, value, meta, a)
	if err != nil {
		event.Outcome, event.Reason = OutcomeFailed, err.Error()
		m.record(ctx, event)
		return Added{}, err
	}
	if err := m.noteProviderID(ctx, name, idOf(v), meta.ProviderID); err != nil {
		a.warnings = append(a.warnings, fmt.Sprintf("what the provider calls version %d could not be noted, so it can only be ended there by hand: %v", v.Number, err))
	}
	event.Outcome, event.Version = OutcomeOK, v.Number
	if v.RequestID != "" {
		event.Detail = map[string]string{"vault_request_id": v.RequestID}
	}
	if w := m.record(ctx, event); w != "" {
		a.warnings = append(a.warnings, w)
	}
	return Added{Name: name, Version: v.Number, Created: v.Created, New: a.fresh, Warnings: a.warnings}, nil
}

// mayAdd refuses what must not be added, before anything is written.
func (m *Manager) mayAdd(ctx context.Context, name string, value *secret.Value, meta Meta) (*adding, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := shaped(name, value); err != nil {
		return nil, err
	}
	if err := CheckProviderID(meta.ProviderID); err != nil {
		return nil, err
	}
	if err := notIn(value, meta.Label, meta.Provider, meta.Service, meta.ProviderID); err != nil {
		return nil, err
	}
	a := &adding{path: m.Scope.Path(name), next: 1}
	md, err := m.Store.Metadata(ctx, a.path)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	var had map[string]string
	if md != nil {
		a.md, a.next, had = md, md.Current+1, md.Custom
	}
	a.fresh = a.next == 1
	if err := m.ours(name, had); err != nil {
		return nil, err
	}
	if a.warnings, err = m.checkMeta(ctx, name, had, meta); err != nil {
		return nil, err
	}
	r, err := m.openRecord(ctx, name, a)
	if err != nil {
		return nil, err
	}
	if md != nil {
		after := *md
		after.MaxVersions = max(md.MaxVersions, maxVersions) // as writeMeta is about to write
		if err := m.pushesOut(&after, r); err != nil {
			return nil, err
		}
	}
	found, err := m.digestOf(ctx, name, value)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if f.ID == m.Scope.ID(name) && f.Version >= a.next {
			continue // an Add that was cut off
		}
		a.warnings = append(a.warnings, "the same value was stored as version "+strconv.Itoa(f.Version)+" of "+f.ProxyID+"/"+f.Name+" before; revoking one of them at the provider ends both")
	}
	return a, nil
}

// ours refuses a key whose metadata names another environment.
func (m *Manager) ours(name string, custom map[string]string) error {
	if env := custom[metaEnvironment]; env != "" && env != m.Scope.Environment {
		return fmt.Errorf("%s belongs to environment %q, not to %q", name, env, m.Scope.Environment)
	}
	return nil
}

// openRecord refuses while a rotation is under way, and returns the record.
func (m *Manager) openRecord(ctx context.Context, name string, a *adding) (*rotation.Record, error) {
	e, err := m.readRecord(ctx, name)
	if errors.Is(err, store.ErrForbidden) {
		a.warnings = append(a.warnings, "whether a rotation of "+name+" is under way could not be seen: "+err.Error())
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if (situation{r: &e.Record}).blocks() {
		return nil, fmt.Errorf("no version of %s can be added: %w; `postern keys rotate %s` takes a new key once it is over", name, openError(name, &e.Record), name)
	}
	return &e.Record, nil
}

func orSomebody(actor string) string {
	if actor == "" {
		return "somebody"
	}
	return actor
}

// storeNext describes the key, claims the value and stores it, in this order: what
// is cut off in between leaves nothing that serves.
func (m *Manager) storeNext(ctx context.Context, name string, value *secret.Value, meta Meta, a *adding) (v store.Version, err error) {
	if err := m.writeMeta(ctx, name, meta, a); err != nil {
		return v, err
	}
	if err := m.claimDigest(ctx, name, a.next, value); err != nil {
		return v, err
	}
	fields := map[string]*secret.Value{Field: value}
	if a.fresh {
		v, err = m.Store.Put(ctx, a.path, fields, 0)
	} else {
		v, err = m.Store.Patch(ctx, a.path, fields, a.next-1)
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDeleted) {
			// Nothing is left to patch: the newest version was deleted, so its other fields are gone too.
			v, err = m.Store.Put(ctx, a.path, fields, a.next-1)
		}
	}
	if errors.Is(err, store.ErrConflict) {
		return v, fmt.Errorf("%s was changed by somebody else at the same time; look at `postern keys show %s` and try again: %w", name, name, err)
	}
	return v, err
}

// writeMeta writes the custom metadata where it is new or changed.
func (m *Manager) writeMeta(ctx context.Context, name string, meta Meta, a *adding) error {
	custom, keep := map[string]string{}, maxVersions
	if a.md != nil {
		custom = maps.Clone(a.md.Custom)
		keep = max(keep, a.md.MaxVersions) // a lower number would destroy what is beyond it
	}
	if custom == nil {
		custom = map[string]string{}
	}
	changed := false
	set := func(k, given, def string) {
		if given == "" && custom[k] == "" {
			given = def
		}
		if given != "" && custom[k] != given {
			custom[k], changed = given, true
		}
	}
	set(metaEnvironment, m.Scope.Environment, "")
	set(metaProvider, meta.Provider, name)
	set(metaLabel, meta.Label, m.defaultLabel(name))
	set(metaService, meta.Service, "")
	if !changed && a.md != nil && a.md.MaxVersions >= maxVersions {
		return nil
	}
	return m.Store.SetMetadata(ctx, a.path, custom, keep)
}

// pushesOut refuses if the write of one more version would make the store drop
// one that is in use: the newest readable one, or either one of an open rotation. r may be nil.
func (m *Manager) pushesOut(md *store.Metadata, r *rotation.Record) error {
	most := md.MaxVersions
	if most == 0 {
		most = defaultVersions
	}
	last := md.Current + 1 - most // this one and what is older would go
	newest := true
	for i := len(md.Versions) - 1; i >= 0; i-- {
		v := md.Versions[i]
		if !v.Readable() {
			continue
		}
		used := newest || underWay(r) && (names(r.From, idOf(v)) || names(r.To, idOf(v)))
		newest = false
		if used && v.Number <= last {
			return fmt.Errorf("the store keeps %d versions of this key, and one more would destroy version %d, which is in use; raise max_versions (an Add does, with the right to write metadata)", most, v.Number)
		}
	}
	return nil
}

// names reports whether a record's id is this version's. Before a version is
// written only its number is known.
func names(recorded, id rotation.ID) bool {
	return !recorded.Zero() && recorded.Number == id.Number && (recorded.Created.IsZero() || recorded.Created.Equal(id.Created))
}
