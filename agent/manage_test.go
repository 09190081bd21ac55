package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/config"
)

// known is a store that takes its user for somebody.
type knownUser struct {
	store.Store
	who store.Identity
	err error
}

func (k knownUser) Identity(context.Context) (store.Identity, error) { return k.who, k.err }

func TestAManagersActor(t *testing.T) {
	h := newHouse(t)
	c := h.parsed()
	for _, x := range []struct {
		who  store.Identity
		want keys.Actor
	}{
		{store.Identity{DisplayName: "ada", EntityID: "e-1"}, keys.Actor{Name: "ada", Entity: "e-1", Source: "10.1.2.3"}},
		{store.Identity{EntityID: "e-1"}, keys.Actor{Name: "e-1", Entity: "e-1", Source: "10.1.2.3"}},
		{store.Identity{}, keys.Actor{Name: "unidentified", Source: "10.1.2.3"}},
	} {
		m, err := NewManager(t.Context(), c, ManagerOptions{Store: knownUser{h.keys.Store, x.who, nil}, Source: "10.1.2.3"})
		if err != nil || m.Actor != x.want {
			t.Errorf("%+v, %v, want %+v", m.Actor, err, x.want)
		}
	}
	if _, err := NewManager(t.Context(), c, ManagerOptions{Store: knownUser{h.keys.Store, store.Identity{}, store.ErrUnauthenticated}}); !errors.Is(err, store.ErrUnauthenticated) {
		t.Errorf("%v", err)
	}
	if _, err := NewManager(t.Context(), c, ManagerOptions{}); err == nil {
		t.Error("without a store")
	}
}

// What a Manager is made of comes from the configuration; its record is the store's own.
func TestAManagerIsAsConfigured(t *testing.T) {
	h := newHouse(t)
	h.yaml = strings.Replace(h.yaml, "rotation: {grace: 1s}", "rotation: {grace: 7s, ramp: [{weight: 10, for: 3s}]}", 1)
	m, err := NewManager(t.Context(), h.parsed(), ManagerOptions{Store: h.keys.Store})
	if err != nil {
		t.Fatal(err)
	}
	host, _ := os.Hostname()
	if m.Scope != (keys.Scope{Environment: "test", ProxyID: "px_test"}) || m.Grace != 7*time.Second || m.Poll != 200*time.Millisecond ||
		m.Ramp.Length() != 3*time.Second || m.Actor.Source != "cli@"+host || m.Actor.Name == "" || m.Probe == nil {
		t.Errorf("%+v", m)
	}
	v, err := secret.New([]byte("sk-test-second-0000000000000000000000"))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Destroy()
	if _, err := m.Add(t.Context(), "second", v, keys.Meta{Provider: "openai"}); err != nil {
		t.Fatal(err)
	}
	entries, err := keys.NewTrail(h.keys.Store, "test", "x").Entries(t.Context(), keys.TrailFilter{})
	if err != nil || len(entries) == 0 || entries[0].Boot != Boot() || len(Boot()) != 8 {
		t.Errorf("%+v, %v", entries, err)
	}
	if m, err := NewManager(t.Context(), h.parsed(), ManagerOptions{Store: h.keys.Store, NoProbe: true}); err != nil || m.Probe != nil {
		t.Errorf("with a probe: %v", err)
	}
}

// A provider is found by its entry's name, by the key that an entry carries, or
// in the catalog; with the entry's own hosts and roots.
func TestWhomAManagerAsks(t *testing.T) {
	h := newHouse(t)
	h.yaml = h.config(h.entry("house-llm", ", key: llm"))
	r, err := NewReach(h.parsed())
	if err != nil {
		t.Fatal(err)
	}
	fields := func(key string) map[string]*secret.Value {
		v, err := secret.New([]byte(key))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Destroy)
		return map[string]*secret.Value{keys.Field: v}
	}
	for name, want := range map[string]rotation.Verdict{"house-llm": rotation.VerdictLive, "llm": rotation.VerdictLive} {
		for range 2 {
			if got := r.Probe(t.Context(), name, fields(firstKey)); got.Verdict != want || got.Status != 200 {
				t.Errorf("%s: %+v", name, got)
			}
		}
	}
	if got := r.Probe(t.Context(), "llm", fields("sk-test-unknown-00000000000000000000")); got.Verdict != rotation.VerdictDead {
		t.Errorf("a dead key: %+v", got)
	}
	for name, say := range map[string]string{"nobody": "describe it under providers", "azure-openai": "write an entry of it"} {
		got := r.Probe(t.Context(), name, fields(firstKey))
		if got.Verdict != rotation.VerdictUnknown || got.Err == nil || !strings.Contains(got.Err.Error(), say) || got.Meaning == "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// The catalog's own: nothing is sent here, but it is known where to.
	if s, _, _, err := r.spec("anthropic"); err != nil || s.Hosts[0] != "api.anthropic.com" {
		t.Errorf("%v, %v", s.Hosts, err)
	}
}

// Roots that cannot be read are told by the setting, and do not stay wrong once they can.
func TestReachReadsItsRoots(t *testing.T) {
	h := newHouse(t)
	c := h.parsed()
	ca := filepath.Join(h.dir, "provider-ca.pem")
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReach(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	v, err := secret.New([]byte(firstKey))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Destroy()
	fields := map[string]*secret.Value{keys.Field: v}
	if got := r.Probe(t.Context(), "openai", fields); got.Err == nil || !strings.Contains(got.Err.Error(), "providers (openai): ca_file") {
		t.Errorf("%+v", got)
	}
	h.write("provider-ca.pem", string(pem))
	if got := r.Probe(t.Context(), "openai", fields); got.Verdict != rotation.VerdictLive {
		t.Errorf("%+v", got)
	}
	c.Egress.CAFile = filepath.Join(h.dir, "none.pem")
	if _, err := NewReach(c); err == nil || !strings.Contains(err.Error(), "egress.ca_file") {
		t.Errorf("%v", err)
	}
}

// The log of whoever manages keys shows none of them, and no token that it was told the form of.
func TestALoggerScrubs(t *testing.T) {
	h := newHouse(t)
	known, err := NewRedactor(h.parsed(), `\bhvs\.[A-Za-z0-9]{20,}`)
	if err != nil {
		t.Fatal(err)
	}
	out := &buffer{}
	NewLogger(config.Log{Level: "info", Format: "json"}, known, out).Info("x", "error", fmt.Errorf("with sk-proj-0123456789abcdefghijkl and hvs.0123456789abcdefghijkl"))
	if s := out.String(); strings.Contains(s, "0123456789") || !strings.Contains(s, `"msg":"x"`) {
		t.Error(s)
	}
}
