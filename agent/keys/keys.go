// Package keys is the lifecycle of provider keys over a Store: the one
// implementation that the command line and the management API both call. It
// never returns a key's value.
package keys

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Field is the secret's field that holds the key itself.
const Field = "api_key"

// maxVersions is how many versions a key's path keeps. Vault's default of 10
// would destroy a version that still serves once ten newer ones were written.
const maxVersions = 100

// Custom metadata fields of a provider key.
const (
	metaProvider    = "provider"
	metaLabel       = "label"
	metaEnvironment = "environment"
	metaService     = "service"
)

// nameShape is what providers[].key may be.
var nameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// CheckName says whether a key may have this name. What looks like a key by
// mistake is the caller's to hide.
func CheckName(name string) error {
	if !nameShape.MatchString(name) {
		return fmt.Errorf("key name %q: use 1 to 63 lower-case letters, digits, '_' and '-', beginning with a letter or digit", name)
	}
	return nil
}

// Meta is what is written beside a new key. Empty members take defaults on
// creation and leave what is there on a further version.
type Meta struct {
	Provider string // catalog entry; default: the key's name
	Label    string // default: <environment>-<name>
	Service  string
}

// Added is the outcome of Add.
type Added struct {
	Name    string    `json:"name"`
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	New     bool      `json:"new"` // the key did not exist before
}

// Add stores the next version of a key and creates the key where there is
// none. Other fields of the secret are kept. The value stays the caller's.
func (m *Manager) Add(ctx context.Context, name string, value *secret.Value, meta Meta) (Added, error) {
	if err := CheckName(name); err != nil {
		return Added{}, err
	}
	shape := errors.New("there is none, or it was destroyed")
	value.Use(func(b []byte) { shape = secret.CheckKey(b) })
	if shape != nil {
		return Added{}, fmt.Errorf("the key of %s: %w", name, shape)
	}
	path := m.Scope.Path(name)
	md, err := m.Store.Metadata(ctx, path)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return Added{}, err
	}
	// Metadata without a version is what an Add left that was cut off between the two.
	fresh := md == nil || md.Current == 0
	if err := m.describe(ctx, path, name, md, meta); err != nil {
		return Added{}, err
	}
	fields := map[string]*secret.Value{Field: value}
	var v store.Version
	if fresh {
		v, err = m.Store.Put(ctx, path, fields, 0)
	} else {
		v, err = m.Store.Patch(ctx, path, fields, md.Current)
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDeleted) {
			// Nothing is left to patch: the newest version was deleted, so its other fields are gone too.
			v, err = m.Store.Put(ctx, path, fields, md.Current)
		}
	}
	if errors.Is(err, store.ErrConflict) {
		return Added{}, fmt.Errorf("%s was changed by somebody else at the same time; look at `postern keys show %s` and try again: %w", name, name, err)
	}
	if err != nil {
		return Added{}, err
	}
	return Added{Name: name, Version: v.Number, Created: v.Created, New: fresh}, nil
}

// describe writes the custom metadata where it is new or changed. md is nil for a new key.
func (m *Manager) describe(ctx context.Context, path, name string, md *store.Metadata, meta Meta) error {
	custom := map[string]string{}
	if md != nil {
		for k, v := range md.Custom {
			custom[k] = v
		}
		if env := custom[metaEnvironment]; env != "" && env != m.Scope.Environment {
			return fmt.Errorf("%s belongs to environment %q, not to %q", name, env, m.Scope.Environment)
		}
	}
	changed, keep := false, maxVersions
	if md != nil {
		keep = max(keep, md.MaxVersions) // a lower number would destroy what is beyond it
	}
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
	set(metaLabel, meta.Label, m.Scope.Environment+"-"+name)
	set(metaService, meta.Service, "")
	if !changed && md != nil && md.MaxVersions >= maxVersions {
		return nil
	}
	return m.Store.SetMetadata(ctx, path, custom, keep)
}

// Version is one version of a key, as Show lists it.
type Version struct {
	Number    int       `json:"version"`
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by,omitempty"`
	// State is what the store knows: current, older, deleted or destroyed.
	State string `json:"state"`
}

// Info is a key without its value.
type Info struct {
	Name        string    `json:"name"`
	ID          string    `json:"id"` // <environment>.<proxy_id>.<name>
	Environment string    `json:"environment"`
	ProxyID     string    `json:"proxy_id"`
	Provider    string    `json:"provider,omitempty"`
	Label       string    `json:"label,omitempty"`
	Service     string    `json:"service,omitempty"`
	Versions    []Version `json:"versions"` // newest first
}

// Current is the newest version that can be read; the zero Version if none can.
func (i Info) Current() Version {
	for _, v := range i.Versions {
		if v.State == "current" {
			return v
		}
	}
	return Version{}
}

// Show describes one key.
func (m *Manager) Show(ctx context.Context, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	md, err := m.Store.Metadata(ctx, m.Scope.Path(name))
	if errors.Is(err, store.ErrNotFound) {
		return Info{}, absent{fmt.Sprintf("there is no key %s in %s, %s; `postern keys list` shows what there is", name, m.Scope.Environment, m.Scope.ProxyID)}
	}
	if err != nil {
		return Info{}, err
	}
	info := Info{
		Name: name, ID: m.Scope.Environment + "." + m.Scope.ProxyID + "." + name,
		Environment: m.Scope.Environment, ProxyID: m.Scope.ProxyID,
		Provider: md.Custom[metaProvider], Label: md.Custom[metaLabel], Service: md.Custom[metaService],
	}
	current := false
	for i := len(md.Versions) - 1; i >= 0; i-- {
		v := md.Versions[i]
		state := "older"
		switch {
		case v.Destroyed:
			state = "destroyed"
		case !v.Deleted.IsZero():
			state = "deleted"
		case !current:
			state, current = "current", true
		}
		info.Versions = append(info.Versions, Version{Number: v.Number, Created: v.Created, CreatedBy: v.CreatedBy, State: state})
	}
	return info, nil
}

// absent says that there is no such key. It is a store.ErrNotFound.
type absent struct{ text string }

func (a absent) Error() string        { return a.text }
func (a absent) Is(target error) bool { return target == store.ErrNotFound }

// List describes every key of the scope, by name.
func (m *Manager) List(ctx context.Context) ([]Info, error) {
	names, err := m.Store.List(ctx, m.Scope.folder())
	if err != nil {
		return nil, err
	}
	infos := []Info{}
	for _, n := range names {
		if CheckName(n) != nil {
			continue // a folder, or something that is not ours
		}
		info, err := m.Show(ctx, n)
		if errors.Is(err, store.ErrNotFound) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}
