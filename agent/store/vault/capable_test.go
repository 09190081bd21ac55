package vault

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
)

func TestAPIPathIsWhatPoliciesName(t *testing.T) {
	for _, tt := range []struct{ mount, prefix, kind, path, want string }{
		{"", "", "data", "provider-keys/prod/px/openai", "secret/data/postern/provider-keys/prod/px/openai"},
		{"kv/team", "/a/b/", "metadata", "audit/+/", "kv/team/metadata/a/b/audit/+/"},
		{"", "", "destroy", "", "secret/destroy/postern"},
	} {
		s := open(t, Config{Address: "http://127.0.0.1:1", Token: value(t, "t"), Mount: tt.mount, Prefix: tt.prefix}, quick())
		if got := s.APIPath(tt.kind, tt.path); got != tt.want {
			t.Errorf("APIPath(%q, %q) = %q, want %q", tt.kind, tt.path, got, tt.want)
		}
	}
}

func TestCapabilitiesAreThoseOfTheToken(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.Policy("lead", `
		path "secret/data/postern/provider-keys/*" { capabilities = ["patch"] }
		path "secret/metadata/postern/provider-keys/*" { capabilities = ["read", "list"] }
		path "secret/destroy/postern/provider-keys/*" { capabilities = ["deny"] }`)
	root := open(t, withToken(t, v.Address, v.RootToken), quick())
	s := root.As(value(t, v.Token(vaulttest.TokenOptions{Policies: []string{"lead"}})))
	defer s.Close()

	data, meta := s.APIPath("data", "provider-keys/prod/px/openai"), s.APIPath("metadata", "provider-keys/prod/px/")
	destroy := s.APIPath("destroy", "provider-keys/prod/px/openai")
	want := map[string][]string{data: {"patch"}, meta: {"list", "read"}, destroy: {"deny"}, "nowhere": {"deny"}}
	got, err := s.Capabilities(t.Context(), data, meta, destroy, "nowhere")
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	for path, may := range want {
		slices.Sort(got[path])
		if !slices.Equal(got[path], may) {
			t.Errorf("%s: %v, want %v", path, got[path], may)
		}
	}
	// One path alone: the answer then has a member named capabilities too.
	if got, err := root.Capabilities(t.Context(), data); err != nil || len(got) != 1 || !slices.Equal(got[data], []string{"root"}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := s.Capabilities(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("of nothing: %v, %v", got, err)
	}
	for _, path := range []string{"", "/", "a/../b", "a\nb"} {
		if _, err := s.Capabilities(t.Context(), path); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", path, err)
		}
	}
	mute := root.As(value(t, v.Token(vaulttest.TokenOptions{Policies: []string{"lead"}, NoDefault: true})))
	defer mute.Close()
	if _, err := mute.Capabilities(t.Context(), data); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("without the default policy: %v, want ErrForbidden", err)
	}
}

func TestVersionsTellVaultsRequest(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	s := open(t, withToken(t, v.Address, v.RootToken), quick())
	seen := map[string]string{}
	note := func(what string, got store.Version, err error) {
		t.Helper()
		if err != nil || len(got.RequestID) != 36 {
			t.Errorf("%s: request id %q, %v", what, got.RequestID, err)
		}
		if other := seen[got.RequestID]; other != "" {
			t.Errorf("%s and %s have one request id", what, other)
		}
		seen[got.RequestID] = what
	}
	made, err := s.Put(t.Context(), key, fields(t, "k", "v"), 0)
	note("put", made, err)
	made, err = s.Patch(t.Context(), key, fields(t, "k", "w"), 1)
	note("patch", made, err)
	got, err := s.Get(t.Context(), key, 0)
	note("get", got.Version, err)
	got.Destroy()
	m, err := s.Metadata(t.Context(), key)
	note("metadata", m.Versions[0], err)
	if m.Versions[1].RequestID != m.Versions[0].RequestID {
		t.Error("one answer has two request ids")
	}
	other, err := s.ReadPath(t.Context(), "secret/data/postern/"+key)
	note("read path", other.Version, err)
	other.Destroy()
	v.Mount("old", "kv", map[string]string{"version": "1"})
	v.Do("PUT", "old/openai", map[string]any{"key": "of KV one"})
	other, err = s.ReadPath(t.Context(), "old/openai")
	note("read path of another engine", other.Version, err)
	other.Destroy()
}

func TestALeaseIsRevoked(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	leases(v)
	f := vaulttest.NewFront(t, v)
	s := open(t, withToken(t, f.URL, v.RootToken), quick())
	got, err := s.ReadPath(t.Context(), "dynamic/openai")
	if err != nil {
		t.Fatal(err)
	}
	got.Destroy()
	var revoker store.LeaseRevoker = s

	// The engine fails: Vault says 400, and trying again helps.
	f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/v1/sys/leases/revoke") {
			return false
		}
		if body, err := io.ReadAll(r.Body); err != nil || !strings.Contains(string(body), `"sync":true`) {
			t.Errorf("Vault is not asked to wait for the engine: %s, %v", body, err)
		}
		w.WriteHeader(http.StatusBadRequest)
		w.Write([]byte(`{"errors":["failed to revoke entry: the provider is away"]}`))
		return true
	})
	err = revoker.RevokeLease(t.Context(), got.Lease.ID)
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "the provider is away") || !strings.Contains(err.Error(), got.Lease.ID) {
		t.Errorf("the engine fails: %v, want ErrUnavailable with its reason and the lease", err)
	}
	f.Intercept(nil)

	for _, id := range []string{got.Lease.ID, got.Lease.ID, "dynamic/openai/never-was"} {
		if err := revoker.RevokeLease(t.Context(), id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if _, err := s.RenewLease(t.Context(), store.Lease{ID: got.Lease.ID, Duration: time.Minute}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a revoked lease is renewed: %v", err)
	}
	if err := revoker.RevokeLease(t.Context(), ""); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("no lease: %v, want ErrInvalid", err)
	}
	mute := s.As(value(t, v.Token(vaulttest.TokenOptions{Policies: []string{"dynamic"}})))
	defer mute.Close()
	if err := mute.RevokeLease(t.Context(), got.Lease.ID); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("without the right to: %v, want ErrForbidden", err)
	}
}
