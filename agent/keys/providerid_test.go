package keys

import (
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/rotation"
)

// Credentials that people made at the provider, and told their ids: the server
// ends them there, when they are replaced and when they are revoked.
func TestCredentialsMadeByHandAreEndedAtTheProvider(t *testing.T) {
	g := newHeapStage(t)
	m := newMaker(g)
	for _, id := range []string{"apikey_1", "apikey_2", "apikey_3"} {
		m.alive[id] = "postern prod px_acme openai by hand"
	}
	server := g.server("server", m)
	server.Issuer = func(string) issuer.Issuer { return clerk{m} }
	ada := g.process("ada")
	ada.Issuer = nil
	if _, err := ada.Add(t.Context(), "openai", g.value(key(1)), Meta{ProviderID: "apikey_1"}); err != nil {
		t.Fatal(err)
	}
	g.says(2, rotation.VerdictLive)
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{ProviderID: "apikey_2"}); err != nil {
		t.Fatal(err)
	}
	if rot := g.finish(server); rot.Phase != rotation.PhaseDone {
		t.Fatalf("%+v", rot)
	}
	if got := m.living(); !slices.Equal(got, []string{"apikey_2", "apikey_3"}) {
		t.Errorf("after the rotation: %v; %q", got, m.calls)
	}
	if _, err := ada.Revoke(t.Context(), "openai", RevokeOptions{Reason: "leaked"}); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Advance(t.Context(), "openai"); err != nil {
		t.Fatal(err)
	}
	if got := m.living(); !slices.Equal(got, []string{"apikey_3"}) {
		t.Errorf("after the revocation: %v; %q", got, m.calls)
	}
}

func TestProviderIDsAreChecked(t *testing.T) {
	g := newHeapStage(t)
	ada := g.process("ada")
	for _, id := range []string{"an id", "id\n", "-x", strings.Repeat("a", 129), key(1)} {
		if _, err := ada.Add(t.Context(), "openai", g.value(key(1)), Meta{ProviderID: id}); err == nil || strings.Contains(err.Error(), key(1)) {
			t.Errorf("add with %.20q: %v", id, err)
		}
	}
	g.add(1)
	for _, o := range []RotateOptions{{ProviderID: "an id"}, {ProviderID: "x", Managed: true}} {
		v := g.value(key(2))
		if o.Managed {
			v = nil
		}
		if _, err := ada.Rotate(t.Context(), "openai", v, o); err == nil || !strings.Contains(err.Error(), "provider id") {
			t.Errorf("rotate with %+v: %v", o, err)
		}
	}
	if r := g.record(); r != nil {
		t.Errorf("something was written: %+v", r)
	}
}
