package vault

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
)

func TestReadPathReadsEveryLayout(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.KVPut("secret/legacy/openai", map[string]string{"key": "of version one"})
	v.KVPut("secret/legacy/openai", map[string]string{"key": "of version two"})
	v.Mount("old", "kv", map[string]string{"version": "1"})
	v.Do("PUT", "old/openai", map[string]any{"key": "of KV one", "port": 8080, "tags": []string{"a", "b"}, "nothing": nil})
	v.Do("PUT", "old/tricky", map[string]any{"data": map[string]any{"a": "b"}, "metadata": map[string]any{"note": "not KV v2's"}})
	s := open(t, withToken(t, v.Address, v.RootToken), quick())

	for path, want := range map[string]struct {
		version int
		fields  map[string]string
	}{
		"secret/data/legacy/openai": {2, map[string]string{"key": "of version two"}},
		"old/openai":                {0, map[string]string{"key": "of KV one", "port": "8080", "tags": `["a","b"]`, "nothing": "null"}},
		"old/tricky":                {0, map[string]string{"data": `{"a":"b"}`, "metadata": `{"note":"not KV v2's"}`}},
	} {
		got, err := s.ReadPath(t.Context(), path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for name, text := range want.fields {
			if reveal(got.Fields[name]) != text {
				t.Errorf("%s: field %s is %q, want %q", path, name, reveal(got.Fields[name]), text)
			}
		}
		if len(got.Fields) != len(want.fields) || got.Version.Number != want.version || got.Lease != nil {
			t.Errorf("%s: %+v", path, got)
		}
		if age := time.Since(got.Version.Created).Abs(); age > time.Minute {
			t.Errorf("%s: created %v ago", path, age)
		}
		got.Destroy()
	}

	for path, want := range map[string]error{
		"old/never": store.ErrNotFound, "secret/data/never": store.ErrNotFound, "nowhere/at/all": store.ErrInvalid,
		"../sys/seal": store.ErrInvalid, "old/../secret": store.ErrInvalid, "": store.ErrInvalid,
	} {
		if _, err := s.ReadPath(t.Context(), path); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
	}
	v.KVDelete("secret/legacy/openai")
	if _, err := s.ReadPath(t.Context(), "secret/data/legacy/openai"); !errors.Is(err, store.ErrDeleted) {
		t.Errorf("deleted: %v", err)
	}
}

// leases mounts an engine whose answers have leases.
func leases(v *vaulttest.Vault) {
	v.Mount("dynamic", "kv", map[string]string{"version": "1", "leased_passthrough": "true"})
	v.Do("PUT", "dynamic/openai", map[string]any{"key": "dynamic", "ttl": "300s"})
	v.Policy("dynamic", `
		path "dynamic/*" { capabilities = ["read"] }
		path "sys/leases/renew" { capabilities = ["update"] }`)
}

func TestLeasesAreReadAndRenewed(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	leases(v)
	s := open(t, withToken(t, v.Address, v.RootToken), quick())
	got, err := s.ReadPath(t.Context(), "dynamic/openai")
	if err != nil {
		t.Fatal(err)
	}
	defer got.Destroy()
	if got.Lease == nil || got.Lease.Duration != 5*time.Minute || !got.Lease.Renewable || !strings.HasPrefix(got.Lease.ID, "dynamic/openai/") {
		t.Fatalf("lease %+v", got.Lease)
	}
	renewed, err := s.RenewLease(t.Context(), *got.Lease)
	if err != nil || renewed.ID != got.Lease.ID || renewed.Duration != 5*time.Minute {
		t.Errorf("renewed %+v, %v", renewed, err)
	}

	v.Do("PUT", "sys/leases/revoke", map[string]any{"lease_id": got.Lease.ID})
	if _, err := s.RenewLease(t.Context(), *got.Lease); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a revoked lease: %v, want ErrNotFound", err)
	}
}

func TestALeaseEndsWithTheTokenThatReadIt(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	leases(v)
	token := v.Token(vaulttest.TokenOptions{Policies: []string{"dynamic"}, TTL: time.Minute})
	tokenFile := file(t, "token", token)
	s := open(t, Config{Address: v.Address, Auth: Auth{Token: &TokenAuth{File: tokenFile}}}, quick())
	got, err := s.ReadPath(t.Context(), "dynamic/openai")
	if err != nil {
		t.Fatal(err)
	}
	defer got.Destroy()
	if d := got.Lease.Duration; d > time.Minute || d < 50*time.Second {
		t.Errorf("a lease of 300 s, read by a token of 60 s, lasts %v", d)
	}

	// Another token renews it: it still ends with the first one.
	rewrite(t, tokenFile, v.Token(vaulttest.TokenOptions{Policies: []string{"dynamic"}, TTL: time.Hour}))
	if _, err := s.login(t.Context(), s.session.Load(), false); err != nil {
		eventually(t, "the gate to open", func() bool {
			_, err := s.login(t.Context(), s.session.Load(), false)
			return err == nil
		})
	}
	got.Lease.Duration = 5 * time.Minute
	renewed, err := s.RenewLease(t.Context(), *got.Lease)
	if err != nil || renewed.Duration > time.Minute {
		t.Errorf("renewed %+v, %v", renewed, err)
	}
	v.RevokeToken(token)
	if _, err := s.RenewLease(t.Context(), renewed); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after the first token's end: %v, want ErrNotFound", err)
	}
}

func TestTheMountMustBeKVTwo(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.Mount("old", "kv", map[string]string{"version": "1"})
	v.Mount("transit", "transit", nil)
	for mount, want := range map[string]string{"old": "kv version 1", "transit": "is transit", "nowhere": "store.vault.mount"} {
		cfg := withToken(t, v.Address, v.RootToken)
		cfg.Mount = mount
		s := open(t, cfg, quick())
		_, err := s.Put(t.Context(), key, fields(t, "k", "v"), 0)
		if !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want ErrInvalid and %q", mount, err, want)
		}
		if _, err := s.List(t.Context(), ""); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: List says %v", mount, err)
		}
	}
	// A token that may see its own path only is not asked for more.
	v.Policy("postern", policy)
	s := open(t, withToken(t, v.Address, v.Token(vaulttest.TokenOptions{Policies: []string{"postern"}, NoDefault: true})), quick())
	if _, err := s.Put(t.Context(), key, fields(t, "k", "v"), 0); err != nil {
		t.Errorf("without the default policy: %v", err)
	}
}

func TestAVersionWithAnEndStillReads(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.Do("POST", "secret/metadata/postern/"+key, map[string]any{"delete_version_after": "1h"})
	s := open(t, withToken(t, v.Address, v.RootToken), quick())
	put, err := s.Put(t.Context(), key, fields(t, "api_key", "the value"), 0)
	if err != nil || !put.Readable() {
		t.Errorf("%+v, %v", put, err)
	}
	got, err := s.Get(t.Context(), key, 0)
	if err != nil || !got.Version.Readable() {
		t.Errorf("%+v, %v", got, err)
	}
	got.Destroy()
	m, err := s.Metadata(t.Context(), key)
	if err != nil || len(m.Versions) != 1 || !m.Versions[0].Readable() {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestMetadataTellsWhoWrote(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	s := open(t, Config{Address: v.Address, Auth: Auth{AppRole: appRole(t, v, nil)}}, quick())
	if _, err := s.Put(t.Context(), key, fields(t, "k", "v"), 0); err != nil {
		t.Fatal(err)
	}
	who, err := s.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Metadata(t.Context(), key)
	if err != nil || len(m.Versions) != 1 || m.Versions[0].CreatedBy == "" || m.Versions[0].CreatedBy != who.EntityID {
		t.Errorf("%+v, %v, want created by %s", m, err, who.EntityID)
	}
}
