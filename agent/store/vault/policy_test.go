package vault

import (
	"errors"
	"sync"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
)

// Appending to a log means check-and-set 0 with a policy that may create only.
func TestCreateOnlyPathsAreWrittenOnce(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.Policy("append", `path "secret/data/postern/audit/*" { capabilities = ["create", "read"] }`)
	s := open(t, withToken(t, v.Address, v.Token(vaulttest.TokenOptions{Policies: []string{"append"}})), quick())
	for _, path := range []string{"audit/prod/000000000001", "audit/prod/000000000002"} {
		entry := fields(t, "entry", "what happened")
		errs := make([]error, 8)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { _, errs[i] = s.Put(t.Context(), path, entry, 0) })
		}
		wg.Wait()
		written := 0
		for _, err := range errs {
			switch {
			case err == nil:
				written++
			case !errors.Is(err, store.ErrForbidden) && !errors.Is(err, store.ErrConflict):
				t.Errorf("%s: %v, want ErrForbidden or ErrConflict", path, err)
			}
		}
		if written != 1 {
			t.Errorf("%s: %d of %d appends succeeded", path, written, len(errs))
		}
		if _, err := s.Put(t.Context(), path, entry, 0); !errors.Is(err, store.ErrForbidden) {
			t.Errorf("%s, once more: %v, want ErrForbidden", path, err)
		}
	}
}

// Rotating needs patch on data and read on metadata, not the right to read.
func TestPatchWorksWithoutTheRightToRead(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.KVPut("secret/postern/"+key, map[string]string{"api_key": "the old value", "organization": "org"})
	v.Policy("rotate", `
		path "secret/data/postern/*" { capabilities = ["patch"] }
		path "secret/metadata/postern/*" { capabilities = ["read"] }`)
	s := open(t, withToken(t, v.Address, v.Token(vaulttest.TokenOptions{Policies: []string{"rotate"}})), quick())
	if made, err := s.Patch(t.Context(), key, fields(t, "api_key", "the new value"), 1); err != nil || made.Number != 2 {
		t.Errorf("%+v, %v", made, err)
	}
	if _, err := s.Get(t.Context(), key, 0); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("Get: %v, want ErrForbidden", err)
	}
	if _, err := s.Put(t.Context(), key, fields(t, "api_key", "x"), 2); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("Put: %v, want ErrForbidden", err)
	}
	root := open(t, withToken(t, v.Address, v.RootToken), quick())
	got, err := root.Get(t.Context(), key, 0)
	if err != nil || reveal(got.Fields["api_key"]) != "the new value" || reveal(got.Fields["organization"]) != "org" {
		t.Errorf("%+v, %v", got, err)
	}
	got.Destroy()
}
