package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// maxClaims bounds how many versions may hold one value.
const maxClaims = 256

// A value's claims say which versions it was written as, each before it was. They
// lie at digests/<digest>, digests/<digest>-2, and so on, and are created once
// each: nobody needs a right to change one. A claim whose write failed stays.
func claimPath(digest string, slot int) string {
	if slot == 1 {
		return "digests/" + digest
	}
	return "digests/" + digest + "-" + strconv.Itoa(slot)
}

// claims returns the claims of a value, oldest first, and the first slot that holds nothing.
func (m *Manager) claims(ctx context.Context, digest string) (found []Found, free int, err error) {
	for slot := 1; slot <= maxClaims; slot++ {
		f, err := m.readClaim(ctx, claimPath(digest, slot))
		switch {
		case errors.Is(err, store.ErrNotFound):
			return found, slot, nil
		case errors.Is(err, store.ErrDeleted): // by hand; the slot cannot be created again
		case err != nil:
			return nil, 0, err
		default:
			found = append(found, f)
		}
	}
	return nil, 0, fmt.Errorf("%s: the value was stored %d times; give each use a key of its own", claimPath(digest, 1), maxClaims)
}

func (m *Manager) readClaim(ctx context.Context, path string) (Found, error) {
	sec, err := m.Store.Get(ctx, path, 0)
	if err != nil {
		return Found{}, err
	}
	defer sec.Destroy()
	text := func(field string) (s string) {
		sec.Fields[field].Use(func(b []byte) { s = string(b) })
		return s
	}
	s := Scope{text("environment"), text("proxy_id")}
	f := Found{Name: text("name"), Environment: s.Environment, ProxyID: s.ProxyID}
	f.ID = s.ID(f.Name)
	f.Version, err = strconv.Atoi(text("version"))
	if err != nil || f.Version < 1 || f.Environment == "" || f.ProxyID == "" || CheckName(f.Name) != nil {
		return Found{}, fmt.Errorf("%s: is no entry of postern's (environment, proxy_id, name, version)", path)
	}
	return f, nil
}

// checkDigest refuses a value for a key of this scope if it belongs to another
// environment, or is one that was revoked or rejected. It writes nothing.
func (m *Manager) checkDigest(ctx context.Context, name string, value *secret.Value) error {
	_, err := m.digestOf(ctx, name, value)
	return err
}

// digestOf is checkDigest, and returns the claims that it saw.
func (m *Manager) digestOf(ctx context.Context, name string, value *secret.Value) ([]Found, error) {
	found, _, err := m.claims(ctx, value.Digest())
	if err != nil {
		return nil, fmt.Errorf("the key of %s: whether it is in use elsewhere cannot be found out: %w", name, err)
	}
	for _, f := range found {
		if err := m.elsewhere(name, f); err != nil {
			return nil, err
		}
		if state := m.decided(ctx, f); state != rotation.Unknown {
			return nil, fmt.Errorf("the key of %s: this value was version %d of %s/%s, which is %s; make a new one at the provider", name, f.Version, f.ProxyID, f.Name, state)
		}
	}
	return found, ctx.Err()
}

// elsewhere is the one-environment rule.
func (m *Manager) elsewhere(name string, f Found) error {
	if f.Environment == m.Scope.Environment {
		return nil
	}
	return fmt.Errorf("the key of %s: this value is a key of another environment (%s/%s/%s); make one of its own for %s at the provider",
		name, f.Environment, f.ProxyID, f.Name, m.Scope.Environment)
}

// decided is Compromised or Rejected if a record says so of the version, else
// Unknown: a record that cannot be read decides nothing.
func (m *Manager) decided(ctx context.Context, f Found) rotation.State {
	e, err := m.in(f.scope()).readRecord(ctx, f.Name)
	if err != nil {
		return rotation.Unknown
	}
	for _, v := range e.Versions {
		if v.Number == f.Version && barred(v.State) {
			return v.State
		}
	}
	return rotation.Unknown
}

// in is the Manager of another scope.
func (m *Manager) in(s Scope) *Manager {
	o := *m
	o.Scope = s
	return &o
}

// claimDigest enters that the value is about to become this version. Of two
// environments that claim a value at the same time one is refused.
func (m *Manager) claimDigest(ctx context.Context, name string, version int, value *secret.Value) error {
	digest, refused := value.Digest(), 0
	if digest == "" {
		return fmt.Errorf("the key of %s: the value was destroyed", name)
	}
	mine := Found{ID: m.Scope.ID(name), Name: name, Environment: m.Scope.Environment, ProxyID: m.Scope.ProxyID, Version: version}
	for range maxClaims {
		found, free, err := m.claims(ctx, digest)
		if err != nil {
			return fmt.Errorf("the key of %s: whether it is in use elsewhere cannot be found out: %w", name, err)
		}
		for _, f := range found {
			if err := m.elsewhere(name, f); err != nil {
				return err
			}
			if f.same(mine) {
				return nil
			}
		}
		_, err = store.PutText(ctx, m.Store, claimPath(digest, free), map[string][]byte{
			"environment": []byte(mine.Environment), "proxy_id": []byte(mine.ProxyID), "name": []byte(name), "version": []byte(strconv.Itoa(version)),
		}, 0)
		switch {
		case errors.Is(err, store.ErrConflict): // somebody else was first
		case errors.Is(err, store.ErrForbidden) && free != refused: // so says Vault too, to those who may only create
			refused = free
		default:
			return err
		}
	}
	return fmt.Errorf("the key of %s: too many others store the same value at the same time: %w", name, store.ErrConflict)
}

// Found is a key that a value belongs to.
type Found struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Environment string `json:"environment"`
	ProxyID     string `json:"proxy_id"`
	Version     int    `json:"version"`
	// Readable: the store still has the version, as far as it may be asked.
	Readable bool `json:"readable"`
	// Verified: the version was read and is this value. Without the right to read it is what the
	// writer said just before writing, which is wrong if the write then failed and another came in its place.
	Verified bool `json:"verified"`
	// Others are further versions that hold the same value, in whatever scope.
	Others []Found `json:"others,omitempty"`
}

func (f Found) scope() Scope { return Scope{f.Environment, f.ProxyID} }

func (f Found) same(o Found) bool { return f.ID == o.ID && f.Version == o.Version }

// Identify says which key a value is, in whatever scope of the store, by its
// digest. store.ErrNotFound: no key that was stored with postern. Found is the
// version most likely in use, Others are all others.
func (m *Manager) Identify(ctx context.Context, value *secret.Value) (Found, error) {
	digest := value.Digest()
	if digest == "" {
		return Found{}, errors.New("identifying a key: the value was destroyed")
	}
	claimed, _, err := m.claims(ctx, digest)
	if err != nil {
		return Found{}, err
	}
	var found []Found
	for _, f := range slices.Backward(claimed) { // the newest first
		if is, err := m.confirm(ctx, &f, value); err != nil {
			return Found{}, err
		} else if is {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		return Found{}, absent{"this value is no key that was stored with postern"}
	}
	slices.SortStableFunc(found, func(a, b Found) int { return b.rank() - a.rank() })
	found[0].Others = found[1:]
	return found[0], nil
}

func (f Found) rank() (n int) {
	if f.Verified {
		n = 2
	}
	if f.Readable {
		n++
	}
	return n
}

// confirm compares a claim with what the store has, as far as that may be read.
// It reports false if the version is another value, or was never written.
func (m *Manager) confirm(ctx context.Context, f *Found, value *secret.Value) (bool, error) {
	path := f.scope().Path(f.Name)
	md, err := m.Store.Metadata(ctx, path)
	switch {
	case errors.Is(err, store.ErrForbidden): // take the claim as it is
		return true, nil
	case errors.Is(err, store.ErrNotFound): // never written, or removed since
		return false, nil
	case err != nil:
		return false, err
	case f.Version > md.Current:
		return false, nil
	}
	i := slices.IndexFunc(md.Versions, func(v store.Version) bool { return v.Number == f.Version })
	if f.Readable = i >= 0 && md.Versions[i].Readable(); !f.Readable {
		return true, nil
	}
	sec, err := m.Store.Get(ctx, path, f.Version)
	switch {
	case errors.Is(err, store.ErrForbidden), errors.Is(err, store.ErrDeleted), errors.Is(err, store.ErrNotFound):
		return true, nil
	case err != nil:
		return false, err
	}
	defer sec.Destroy()
	f.Verified = sec.Fields[Field].Equal(value)
	return f.Verified, nil
}
