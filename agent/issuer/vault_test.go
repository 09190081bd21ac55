package issuer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// lender is a dynamic engine.
type lender struct {
	fields   map[string]string
	lease    *store.Lease
	read     error
	revoke   error
	gave     []*store.Secret
	returned []string
}

func (l *lender) ReadPath(_ context.Context, path string) (*store.Secret, error) {
	if l.read != nil {
		return nil, fmt.Errorf("%s: %w", path, l.read)
	}
	s := &store.Secret{Fields: map[string]*secret.Value{}, Lease: l.lease}
	for name, text := range l.fields {
		v, err := secret.New([]byte(text))
		if err != nil {
			return nil, err
		}
		s.Fields[name] = v
	}
	l.gave = append(l.gave, s)
	return s, nil
}

func (l *lender) RevokeLease(_ context.Context, id string) error {
	l.returned = append(l.returned, id)
	return l.revoke
}

const leaseID = "openai/creds/checkout/Abc123"

func newDynamic(t *testing.T, l *lender, field string) Issuer {
	t.Helper()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	i, err := New(Options{Kind: Vault, Leases: l, Path: "/openai/creds/checkout/", Field: field, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestVaultLeases(t *testing.T) {
	l := &lender{fields: map[string]string{"api_key": "sk-dynamic-0123456789", "name": "v-1"}, lease: &store.Lease{ID: leaseID, Duration: time.Hour}}
	i := newDynamic(t, l, "")
	got, err := i.Create(t.Context(), Request{Label: label})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Destroy()
	if got.ID != leaseID || reveal(got.Fields["api_key"]) != "sk-dynamic-0123456789" || len(got.Fields) != 1 || !got.Expires.Equal(time.Date(2026, 1, 2, 4, 4, 5, 0, time.UTC)) {
		t.Errorf("%+v", got)
	}
	for name, v := range l.gave[0].Fields {
		if v.Use(func([]byte) {}) {
			t.Errorf("%s of the answer was not destroyed", name)
		}
	}
	if err := i.Revoke(t.Context(), got.ID); err != nil || strings.Join(l.returned, " ") != leaseID {
		t.Errorf("%v, returned %v", err, l.returned)
	}
	l.revoke = fmt.Errorf("lease: %w", store.ErrNotFound)
	if err := i.Revoke(t.Context(), got.ID); err != nil {
		t.Errorf("gone already: %v", err)
	}
	if err := i.Sweep(t.Context(), label, nil); err != nil {
		t.Error(err)
	}
}

func TestVaultRefusesWhatItCannotRevoke(t *testing.T) {
	const good = "sk-dynamic-0123456789"
	for name, c := range map[string]struct {
		l     lender
		field string
		want  string
		gives bool
	}{
		"no lease":        {l: lender{fields: map[string]string{"api_key": good}}, want: "no lease"},
		"a lease unnamed": {l: lender{fields: map[string]string{"api_key": good}, lease: &store.Lease{Duration: time.Hour}}, want: "no lease"},
		"another field":   {l: lender{fields: map[string]string{"token": good}, lease: &store.Lease{ID: leaseID}}, want: "field api_key", gives: true},
		"not a key":       {l: lender{fields: map[string]string{"token": "canary"}, lease: &store.Lease{ID: leaseID}}, field: "token", want: "field token", gives: true},
	} {
		i := newDynamic(t, &c.l, c.field)
		_, err := i.Create(t.Context(), Request{Label: label})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		clean(t, err, good)
		if (len(c.l.returned) == 1) != c.gives {
			t.Errorf("%s: returned %v", name, c.l.returned)
		}
		for _, s := range c.l.gave {
			for _, v := range s.Fields {
				if v.Use(func([]byte) {}) {
					t.Errorf("%s: the answer was not destroyed", name)
				}
			}
		}
	}
}

// A record that somebody forged has no lease revoked that is not this engine's.
func TestVaultRevokesItsOwnLeasesOnly(t *testing.T) {
	l := &lender{}
	i := newDynamic(t, l, "")
	for _, id := range []string{"", "auth/kubernetes/login/abc", "openai/creds/checkout", "openai/creds/checkout-2/abc", "database/creds/app/abc"} {
		if err := i.Revoke(t.Context(), id); !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if len(l.returned) != 0 {
		t.Errorf("revoked %v", l.returned)
	}
}

func TestVaultErrors(t *testing.T) {
	for reason, want := range map[error]error{
		store.ErrUnavailable: ErrLimited, store.ErrUnauthenticated: ErrLimited, store.ErrForbidden: ErrRefused, store.ErrNotFound: ErrRefused, store.ErrInvalid: ErrRefused,
	} {
		i := newDynamic(t, &lender{read: reason, revoke: reason}, "")
		_, err := i.Create(t.Context(), Request{Label: label})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "openai/creds/checkout") {
			t.Errorf("create: %v is %v", reason, err)
		}
		if err := i.Revoke(t.Context(), leaseID); reason != store.ErrNotFound && !errors.Is(err, want) {
			t.Errorf("revoke: %v is %v", reason, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := i.Create(ctx, Request{}); !errors.Is(err, context.Canceled) || errors.Is(err, ErrLimited) {
			t.Errorf("cancelled: %v", err)
		}
	}
	(*Issued)(nil).Destroy()
}
