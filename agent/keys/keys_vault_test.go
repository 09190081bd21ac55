package keys

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/postern-proxy/postern/agent/store"
)

// officerPolicy is what whoever adds and revokes has: the value itself cannot be
// read, and what a value was can be said once.
const officerPolicy = `
path "secret/data/postern/provider-keys/+/+/+" { capabilities = ["create", "patch", "update"] }
path "secret/metadata/postern/provider-keys/+/+/+" { capabilities = ["create", "read", "update"] }
path "secret/metadata/postern/provider-keys/+/+/" { capabilities = ["list"] }
path "secret/metadata/postern/provider-keys/+/" { capabilities = ["list"] }
path "secret/destroy/postern/provider-keys/+/+/+" { capabilities = ["update"] }
path "secret/data/postern/rotations/+/+/+" { capabilities = ["create", "read", "update"] }
path "secret/metadata/postern/rotations/+/+/+" { capabilities = ["read"] }
path "secret/data/postern/halts/+/+/+" { capabilities = ["read"] }
path "secret/data/postern/digests/+" { capabilities = ["create", "read"] }
`

// viewerPolicy lets somebody look at keys and at nothing that was decided about them.
const viewerPolicy = `
path "secret/metadata/postern/provider-keys/+/+/+" { capabilities = ["read"] }
path "secret/metadata/postern/provider-keys/+/+/" { capabilities = ["list"] }
`

// The life of a key on Vault, by somebody who cannot read it.
func TestKeysOnVault(t *testing.T) {
	office := newOffice(t)
	office.Policy("officer", officerPolicy)
	office.Policy("viewer", viewerPolicy)
	as := func(name, policy, environment string) *operator {
		sh, tr := &shim{Store: office.store(office.login(name, policy), "postern")}, &ledger{}
		return &operator{&Manager{Store: sh, Scope: Scope{environment, "px_acme"}, Audit: tr}, t, sh, tr}
	}
	o := as("ada", "officer", "prod")
	if a := o.add("openai", 1, Meta{Service: "checkout"}); !a.New || a.Version != 1 || len(a.Warnings) != 0 {
		t.Errorf("%+v", a)
	}
	if id := o.trail.events[1].Detail["vault_request_id"]; len(id) != 36 {
		t.Errorf("Vault's request id is %q", id)
	}
	if a := o.add("openai", 2, Meta{}); a.New || a.Version != 2 {
		t.Errorf("%+v", a)
	}
	if md := o.metadata("openai"); md.MaxVersions != 100 || md.Custom["environment"] != "prod" {
		t.Errorf("%+v", md)
	}
	if _, err := as("bob", "officer", "staging").Add(t.Context(), "gpt", o.value(key(2)), Meta{}); err == nil || !strings.Contains(err.Error(), "prod/px_acme/openai") {
		t.Errorf("%v", err)
	}
	f, err := o.Identify(t.Context(), o.value(key(2)))
	if err != nil || f.Version != 2 || f.Verified || !f.Readable || len(f.Others) != 0 {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := o.Validate(t.Context(), "openai"); err == nil {
		t.Error("validated without anybody to ask")
	}
	v := as("eve", "viewer", "prod")
	i, err := v.Show(t.Context(), "openai")
	if err != nil || i.Current().Number != 2 || len(i.Notes) != 2 || i.Versions[0].CreatedBy == "" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := v.Add(t.Context(), "openai", o.value(key(3)), Meta{}); !errors.Is(err, store.ErrForbidden) || len(v.trail.told()) != 0 {
		t.Errorf("%v", err)
	}
	if _, err := v.Revoke(t.Context(), "openai", RevokeOptions{}); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("%v", err)
	}

	r := o.revoke("openai", RevokeOptions{Reason: "it leaked"})
	if !slices.Equal(r.Versions, []int{2}) || !slices.Equal(r.Destroyed, []int{2}) || r.Remaining != 1 {
		t.Errorf("%+v", r)
	}
	o.gone("openai", "1", "2 compromised destroyed")
	if _, err := o.Add(t.Context(), "openai", o.value(key(2)), Meta{}); err == nil || !strings.Contains(err.Error(), "compromised") {
		t.Errorf("%v", err)
	}
	// The newest version is gone, and so are its other fields: this is a write, not a patch.
	if a := o.add("openai", 3, Meta{}); a.Version != 3 {
		t.Errorf("%+v", a)
	}
	if infos, err := o.List(t.Context()); err != nil || len(infos) != 1 || infos[0].Current().Number != 3 {
		t.Errorf("%+v, %v", infos, err)
	}
}

// Whoever may only create digests is told 403 in place of a conflict; still, of
// two environments one wins, and all who are of it do.
func TestClaimsOnVault(t *testing.T) {
	office := newOffice(t)
	office.Policy("officer", officerPolicy)
	st := office.store(office.login("ada", "officer"), "postern")
	for round := range 10 {
		var mu sync.Mutex
		won := map[string]int{}
		var wg sync.WaitGroup
		for n := range 6 {
			m := &Manager{Store: st, Scope: Scope{[]string{"prod", "staging"}[n%2], "px_" + string(rune('a'+n))}}
			v := (&operator{t: t}).value(key(round))
			wg.Go(func() {
				err := m.claimDigest(t.Context(), "openai", 1, v)
				if err == nil {
					mu.Lock()
					won[m.Scope.Environment]++
					mu.Unlock()
				} else if !strings.Contains(err.Error(), "another environment") {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 || won["prod"]+won["staging"] != 3 {
			t.Fatalf("%v", won)
		}
	}
}
