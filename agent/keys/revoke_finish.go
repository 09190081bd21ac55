package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

const (
	providerTime = 30 * time.Second // bounds one request to an issuer
	// troubleFirst is how long it is waited after the first revocation at the provider, or destruction, that failed.
	troubleFirst = time.Minute
)

// unfinished reports whether a revoked version still works somewhere, as far as the record knows.
func unfinished(v *rotation.VersionRecord) bool {
	return v.State == rotation.Compromised && (!v.Destroyed || v.ProviderID != "" && !v.Revoked)
}

// finishRevocations does for Compromised versions what can be done now: revoke
// them at the provider, and destroy them in the store. It changes e, which the caller
// writes if changed; a conflict there is harmless, as both may be done twice. What
// only others can do is said in warnings.
func (m *Manager) finishRevocations(ctx context.Context, name string, e *entry) (changed bool, warnings []string) {
	now := m.Store.Now()
	if !slices.ContainsFunc(e.Versions, func(v rotation.VersionRecord) bool { return unfinished(&v) && !pending(v.Next, now, failMost) }) {
		return false, nil
	}
	md, err := m.Store.Metadata(ctx, m.Scope.Path(name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, []string{fmt.Sprintf("the revocation of %s is not finished: %v", name, err)}
	}
	if md == nil {
		md = &store.Metadata{}
	}
	var destroy []*rotation.VersionRecord
	for i := range e.Versions {
		v := &e.Versions[i]
		if !unfinished(v) || pending(v.Next, now, failMost) {
			continue
		}
		if !v.Destroyed && !has(md, v.ID) {
			v.Destroyed, changed = true, true
		}
		if v.ProviderID != "" && !v.Revoked {
			done, warning := m.tryAtProvider(ctx, providerOf(md, name), name, v)
			changed = changed || done
			warnings = appendText(warnings, warning)
		}
		if !v.Destroyed {
			destroy = append(destroy, v)
		}
	}
	done, warning := m.destroyCompromised(ctx, name, destroy)
	return changed || done, appendText(warnings, warning)
}

// has reports whether the store has a version's data, be it deleted softly. A
// later version of the same number is another one.
func has(md *store.Metadata, id rotation.ID) bool {
	return slices.ContainsFunc(md.Versions, func(v store.Version) bool {
		return v.Number == id.Number && v.Created.Equal(id.Created) && !v.Destroyed
	})
}

func appendText(list []string, s string) []string {
	if s == "" {
		return list
	}
	return append(list, s)
}

// tryAtProvider tries once to revoke a version at the provider. Both what was done and what failed change v.
func (m *Manager) tryAtProvider(ctx context.Context, providerName, name string, v *rotation.VersionRecord) (changed bool, warning string) {
	iss := m.issuerOf(providerName)
	if iss == nil {
		return false, fmt.Sprintf("version %d of %s is not revoked at %s yet: `postern server` does it, if it has an issuer for %s", v.Number, name, providerName, providerName)
	}
	ctx, cancel := context.WithTimeout(ctx, providerTime)
	defer cancel()
	err := m.endAtProvider(ctx, iss, name, v.ProviderID)
	if err == nil {
		v.Revoked, v.Trouble = true, ""
		return true, ""
	}
	failed(v, err.Error(), m.Store.Now(), troubleFirst)
	if errors.Is(err, issuer.ErrUnsupported) || errors.Is(err, issuer.ErrRefused) || errors.Is(err, issuer.ErrForeign) {
		v.Next = m.Store.Now().Add(failMost) // somebody has to do something first
		return true, fmt.Sprintf("version %d of %s is not revoked at %s: %v; revoke it there by hand", v.Number, name, providerName, err)
	}
	return true, fmt.Sprintf("version %d of %s is not revoked at %s yet: %v; `postern server` tries again", v.Number, name, providerName, err)
}

// destroyCompromised destroys the data of versions.
func (m *Manager) destroyCompromised(ctx context.Context, name string, versions []*rotation.VersionRecord) (changed bool, warning string) {
	if len(versions) == 0 {
		return false, ""
	}
	var numbers []int
	for _, v := range versions {
		numbers = append(numbers, v.Number)
	}
	slices.Sort(numbers)
	err := m.Store.Destroy(ctx, m.Scope.Path(name), numbers...)
	switch {
	case err == nil, errors.Is(err, store.ErrNotFound):
		for _, v := range versions {
			v.Destroyed = true
		}
		return true, ""
	case errors.Is(err, store.ErrForbidden): // others may
		return false, fmt.Sprintf("version %s of %s is revoked, and its data is still in the store: %v; who may (Security's role, or `postern server`) destroys it", ranges(numbers), name, err)
	}
	for _, v := range versions {
		failed(v, err.Error(), m.Store.Now(), troubleFirst)
	}
	return true, fmt.Sprintf("version %s of %s is revoked, and its data is still in the store: %v; `postern server` tries again", ranges(numbers), name, err)
}

// carryOut finishes what a revocation began and notes in the record how far that
// came. e ends up as it stands there.
func (m *Manager) carryOut(ctx context.Context, name string, e *entry) (warnings []string) {
	changed, warnings := m.finishRevocations(ctx, name, e)
	for changed {
		err := m.writeRecord(ctx, name, e)
		if err == nil {
			return warnings
		}
		if !errors.Is(err, store.ErrConflict) {
			return append(warnings, "how far the revocation is could not be noted, so it is tried again: "+err.Error())
		}
		now, err := m.readRecord(ctx, name)
		if err != nil {
			return append(warnings, "how far the revocation is could not be noted, so it is tried again: "+err.Error())
		}
		changed = merge(&now.Record, &e.Record)
		*e = *now
	}
	return warnings
}

// merge notes in r what was done about Compromised versions according to done.
func merge(r, done *rotation.Record) (changed bool) {
	for _, d := range done.Versions {
		if d.State != rotation.Compromised {
			continue
		}
		v := r.Version(d.ID)
		was := *v
		v.State = rotation.Compromised
		v.Revoked, v.Destroyed = v.Revoked || d.Revoked, v.Destroyed || d.Destroyed
		if d.Attempts > v.Attempts {
			v.Attempts, v.Next, v.Trouble = d.Attempts, d.Next, d.Trouble
		}
		if v.ProviderID == "" {
			v.ProviderID, v.Expires = d.ProviderID, d.Expires
		}
		if !unfinished(v) {
			v.Next, v.Trouble = time.Time{}, ""
		}
		changed = changed || *v != was
	}
	return changed
}
