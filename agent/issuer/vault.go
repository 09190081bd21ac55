package issuer

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Leases is what the vault kind needs of a store: to read a dynamic engine, and
// to end what it gave. A lease that is not there any more is store.ErrNotFound.
type Leases interface {
	ReadPath(ctx context.Context, path string) (*store.Secret, error)
	RevokeLease(ctx context.Context, id string) error
}

// dynamic has a secrets engine of the store make each credential: reading its
// path makes one, under a lease whose end is the credential's. No admin
// credential is needed but the store's own login.
//
// Vault ends a lease with the token that it was given to, so an issued key never
// outlives the server's login; Expires is the earlier of the two.
type dynamic struct {
	leases Leases
	path   string
	field  string
	now    func() time.Time
}

func newVault(o Options) (Issuer, error) {
	p := &dynamic{leases: o.Leases, path: strings.Trim(o.Path, "/"), field: o.Field, now: o.Now}
	if p.field == "" {
		p.field = "api_key"
	}
	switch {
	case p.leases == nil:
		return nil, fail(ErrRefused, "vault: needs store.vault: other stores have no dynamic engines")
	case p.path == "":
		return nil, fail(ErrRefused, "vault: path: is required")
	}
	return p, nil
}

// Create implements Issuer. Engines have no place for a label.
func (p *dynamic) Create(ctx context.Context, _ Request) (*Issued, error) {
	const what = "vault: read path"
	s, err := p.leases.ReadPath(ctx, p.path)
	if err != nil {
		return nil, fromStore(ctx, what, err)
	}
	defer s.Destroy()
	if s.Lease == nil || s.Lease.ID == "" {
		return nil, fail(ErrRefused, "%s: %s gave no lease, so nothing could be revoked: name a dynamic engine's path", what, p.path)
	}
	id, now := s.Lease.ID, p.now()
	var bad error
	if !s.Fields[p.field].Use(func(b []byte) { bad = secret.CheckKey(b) }) {
		bad = errors.New("there is no such field")
	}
	if bad == nil {
		var v *secret.Value
		if v, bad = s.Fields[p.field].Clone(); bad == nil {
			i := &Issued{ID: id, Fields: map[string]*secret.Value{"api_key": v}}
			if s.Lease.Duration > 0 {
				i.Expires = now.Add(s.Lease.Duration).UTC()
			}
			return i, nil
		}
	}
	e := fail(ErrRefused, "%s: field %s of the answer of %s cannot be the key: %v", what, p.field, p.path, bad)
	if err := p.leases.RevokeLease(ctx, id); err != nil {
		e.text += "; its lease stays until it ends"
	}
	return nil, e
}

// Revoke implements Issuer. Only leases of the configured path are ended.
func (p *dynamic) Revoke(ctx context.Context, id string) error {
	if !strings.HasPrefix(id, p.path+"/") {
		return fail(ErrRefused, "vault: the id of the credential is no lease of %s: look at path", p.path)
	}
	err := p.leases.RevokeLease(ctx, id)
	if err == nil || errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return fromStore(ctx, "vault: revoke a lease", err)
}

// Sweep implements Issuer: a lease whose id was lost ends by itself.
func (p *dynamic) Sweep(context.Context, string, []string) error { return nil }
