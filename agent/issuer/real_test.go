package issuer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/issuer/fake"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/vault"
	"github.com/postern-proxy/postern/agent/upstream"
)

// A dynamic engine of a real Vault: the lease is the credential's, and revoking ends it there.
func TestRealVaultLease(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.Mount("dynamic", "kv", map[string]string{"version": "1", "leased_passthrough": "true"})
	v.Do("PUT", "dynamic/openai", map[string]any{"key": "sk-dynamic-0123456789", "ttl": "300s"})
	v.Policy("server", `
		path "dynamic/*" { capabilities = ["read"] }
		path "sys/leases/renew" { capabilities = ["update"] }
		path "sys/leases/revoke" { capabilities = ["update"] }`)
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(v.Token(vaulttest.TokenOptions{Policies: []string{"server"}, TTL: time.Hour})), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := vault.New(vault.Config{Address: v.Address, Auth: vault.Auth{Token: &vault.TokenAuth{File: tokenFile}}}, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	i, err := issuer.New(issuer.Options{Kind: issuer.Vault, Leases: s, Path: "dynamic/openai", Field: "key"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := i.Create(t.Context(), issuer.Request{Label: "postern prod px_acme openai 1"})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Destroy()
	if !strings.HasPrefix(got.ID, "dynamic/openai/") || time.Until(got.Expires) < 4*time.Minute || time.Until(got.Expires) > 5*time.Minute {
		t.Errorf("%+v", got)
	}
	for range 2 { // the second time it is gone
		if err := i.Revoke(t.Context(), got.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.RenewLease(t.Context(), store.Lease{ID: got.ID, Duration: time.Minute}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the lease lives on: %v", err)
	}
	// A path whose answers have no lease, and one that may not be read.
	v.Mount("plain", "kv", map[string]string{"version": "1"})
	if i, err = issuer.New(issuer.Options{Kind: issuer.Vault, Leases: s, Path: "plain/openai"}); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Create(t.Context(), issuer.Request{}); !errors.Is(err, issuer.ErrRefused) {
		t.Errorf("forbidden: %v", err)
	}
}

// Through the dialler that the server uses: its roots decide, and what it says of a failure is passed on.
func TestThroughTheUpstreamDialler(t *testing.T) {
	vendor, err := fake.New(fake.Options{Kind: "openai", Admin: "sk-admin-0123456789"})
	if err != nil {
		t.Fatal(err)
	}
	defer vendor.Close()
	dialer, err := upstream.New(upstream.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ ca, base, want string }{
		{string(vendor.CAPEM()), vendor.URL(), ""},
		{"", vendor.URL(), "ca_file"},
		{"", "https://169.254.169.254", "169.254.169.254"},
	} {
		transport, err := dialer.Transport(upstream.TransportOptions{CAFile: []byte(c.ca)})
		if err != nil {
			t.Fatal(err)
		}
		defer transport.CloseIdleConnections()
		i, err := issuer.New(issuer.Options{
			Kind: issuer.OpenAI, Transport: transport, BaseURL: c.base, Project: "proj_test",
			Admin: func(context.Context) (map[string]*secret.Value, error) {
				v, err := secret.New([]byte("sk-admin-0123456789"))
				return map[string]*secret.Value{"api_key": v}, err
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := i.Create(t.Context(), issuer.Request{Label: "postern prod px_acme openai 1"})
		got.Destroy()
		if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, issuer.ErrLimited) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.base, err)
		}
	}
	if n := len(vendor.Live()); n != 1 {
		t.Errorf("%d keys", n)
	}
}
