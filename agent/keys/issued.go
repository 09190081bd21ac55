package keys

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/postern-proxy/postern/agent/issuer"
)

// endAtProvider ends a credential of a key. Its id stands in the record, and is
// the word of whoever may write that, while the issuer's admin credential could
// end anybody's: what was not made for this key is issuer.ErrForeign.
func (m *Manager) endAtProvider(ctx context.Context, at issuer.Issuer, name, id string) error {
	if err := m.isOwn(ctx, at, name, id); err != nil {
		return err
	}
	return at.Revoke(ctx, id)
}

// isOwn is issuer.ErrForeign for a credential that is not the key's, as far as
// the provider tells them apart.
func (m *Manager) isOwn(ctx context.Context, at issuer.Issuer, name, id string) error {
	c, ok := at.(issuer.Checker)
	if !ok {
		return nil
	}
	mine := strings.TrimRight(m.label(name, 0), "0") // and a number
	return c.Check(ctx, id, issuer.Owner{
		Label: func(label string) bool { return strings.HasPrefix(label+" ", mine) },
		Stored: func(ctx context.Context, digest string) (bool, error) {
			found, _, err := m.claims(ctx, digest)
			return slices.ContainsFunc(found, func(f Found) bool { return f.ID == m.Scope.ID(name) }), err
		},
	})
}

// replaceable is the id of the credential that a new one is to replace; "" where
// it is not known, or not the key's.
func (u *run) replaceable(ctx context.Context, at issuer.Issuer, id string) (string, error) {
	if id == "" {
		return "", nil
	}
	err := u.isOwn(ctx, at, u.name, id)
	if errors.Is(err, issuer.ErrForeign) {
		u.warn("%v", err)
		return "", nil
	}
	return id, err
}
