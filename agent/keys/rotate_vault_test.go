package keys

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// rotatePolicy may replace a key without being able to read or to destroy it.
const rotatePolicy = appendPolicy + `
path "secret/data/postern/provider-keys/prod/px_acme/*" { capabilities = ["patch"] }
path "secret/metadata/postern/provider-keys/prod/px_acme/*" { capabilities = ["read"] }
path "secret/data/postern/rotations/prod/px_acme/*" { capabilities = ["create", "read", "update"] }
path "secret/data/postern/halts/prod/px_acme/*" { capabilities = ["read"] }
path "secret/data/postern/acks/prod/px_acme/*" { capabilities = ["read"] }
path "secret/metadata/postern/acks/prod/px_acme/*" { capabilities = ["list"] }
path "secret/data/postern/digests/*" { capabilities = ["create", "read"] }
`

const endPolicy = rotatePolicy + `
path "secret/data/postern/provider-keys/prod/px_acme/*" { capabilities = ["read", "patch"] }
path "secret/destroy/postern/provider-keys/prod/px_acme/*" { capabilities = ["update"] }
`

// In Vault one who can neither read nor destroy a key rotates it, is killed,
// resumes, and leaves the end to somebody else.
func TestARotationInVault(t *testing.T) {
	o := newOffice(t)
	o.Policy("rotate", rotatePolicy)
	o.Policy("end", endPolicy)
	o.KVPut("secret/postern/provider-keys/prod/px_acme/openai", map[string]string{Field: key(1), "organization": "org-1234"})

	manager := func(name, policy string) *Manager {
		s := o.store(o.login(name, policy), "")
		return &Manager{
			Store: s, Scope: Scope{"prod", "px_acme"}, Audit: NewTrail(s, "prod", name), Actor: Actor{Name: name, Entity: entityOf(t, s)},
			Grace: time.Second, Poll: 200 * time.Millisecond,
			Probe: func(_ context.Context, _ string, fields map[string]*secret.Value) provider.Result {
				res := provider.Result{Verdict: rotation.VerdictDead, Status: 401, Meaning: "missing, malformed or revoked"}
				fields[Field].Use(func(b []byte) {
					if string(b) == key(2) || string(b) == key(3) {
						res = provider.Result{Verdict: rotation.VerdictLive, Status: 200, Meaning: "live"}
					}
				})
				return res
			},
		}
	}
	ada, server := manager("ada", "rotate"), manager("server", "end")
	value := func(n int) *secret.Value {
		v, err := secret.New([]byte(key(n)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Destroy)
		return v
	}
	if _, err := ada.Store.Get(t.Context(), "provider-keys/prod/px_acme/openai", 0); !errors.Is(err, store.ErrForbidden) {
		t.Fatalf("it can be read: %v", err)
	}
	cut := &wire{Store: ada.Store, g: &stage{}, cut: 4, after: true} // after the value, by which nothing notes that it was written
	killed := *ada
	killed.Store = cut
	if rot, err := killed.Rotate(t.Context(), "openai", value(2), RotateOptions{}); err == nil {
		t.Fatalf("%+v; %q", rot, cut.writes)
	}
	rot, err := ada.Resume(t.Context(), "openai", value(2))
	if err != nil || rot.Phase != rotation.PhaseMigrate || rot.To != 2 || len(rot.Warnings) > 0 {
		t.Fatalf("%+v, %v", rot, err)
	}
	if rot, err = ada.Wait(t.Context(), "openai", nil); err != nil || rot.Phase != rotation.PhaseRevoke || !strings.Contains(rot.Waiting, "somebody who may destroy version 1") {
		t.Fatalf("%+v, %v", rot, err)
	}
	if rot, err = server.Advance(t.Context(), "openai"); err != nil || rot.Phase != rotation.PhaseDone || len(rot.Warnings) > 0 {
		t.Fatalf("%+v, %v", rot, err)
	}
	md, err := server.Store.Metadata(t.Context(), "provider-keys/prod/px_acme/openai")
	if err != nil || md.Current != 2 || !md.Versions[0].Destroyed || !md.Versions[1].Readable() {
		t.Errorf("%+v, %v", md, err)
	}
	sec, err := server.Store.Get(t.Context(), "provider-keys/prod/px_acme/openai", 0)
	if err != nil || !sec.Fields[Field].Equal(value(2)) || sec.Fields["organization"].Len() != len("org-1234") {
		t.Errorf("%v", err)
	}
	sec.Destroy()

	// A refused key leaves the old one alone, and the next one is none the worse.
	if _, err = ada.Rotate(t.Context(), "openai", value(4), RotateOptions{}); !errors.Is(err, ErrRejected) {
		t.Errorf("%v", err)
	}
	if rot, err = ada.Rotate(t.Context(), "openai", value(3), RotateOptions{Reason: "again"}); err != nil || rot.From != 2 || rot.To != 4 {
		t.Fatalf("%+v, %v", rot, err)
	}
	if rot, err = server.Wait(t.Context(), "openai", nil); err != nil || rot.Phase != rotation.PhaseDone {
		t.Errorf("%+v, %v", rot, err)
	}
	entries, err := NewTrail(o.store(o.login("judge", "judge"), ""), "prod", "reader").Entries(t.Context(), TrailFilter{Key: "openai"})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	named := false
	for _, e := range entries {
		told = append(told, e.Event.Event+" "+e.Outcome)
		named = named || e.Event.Event == EventGenerate && e.Outcome == OutcomeOK && e.Detail["vault_request_id"] != ""
	}
	for _, want := range []string{"rotation.generate intent", "rotation.migrate intent", "rotation.revoke denied", "rotation.revoke ok", "rotation.close ok", "rotation.validate failed"} {
		if !slices.Contains(told, want) {
			t.Errorf("%q lacks %q", told, want)
		}
	}
	if !named {
		t.Error("no entry names the request that wrote the version")
	}
}
