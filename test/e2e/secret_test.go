package e2e_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/store/sealed"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// A key whose metadata says prod does not work in staging, and everybody who
// asks is told both names.
func TestKeyOfAnotherEnvironmentIsRefused(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		key := w.Key()
		p := w.Provider("openai", fake.Options{Keys: []string{key}})
		st.Put("openai", key)
		w.belongsTo("prod", st)
		c := w.Config(st, p)
		a := agenttest.Start(t, w.Dir, c.YAML())
		w.KeepsSecrets(a)

		var err error
		agenttest.Eventually(t, 20*time.Second, "the refusal is final", func() bool {
			err = w.Ways(a, p)[0].Ask(context.Background())
			return err != nil && strings.Contains(err.Error(), "environment")
		})
		out, _, code := agenttest.Run(t, w.Dir, "", "status", "-c", w.Operator(c, a))
		if code != 0 {
			t.Errorf("postern status: exit code %d", code)
		}
		e2etest.SaysSo(t, a, `metadata names environment \"prod\"`, `this agent serves \"staging\"`)
		for what, text := range map[string]string{"the client's error": err.Error(), "postern status": out} {
			if !strings.Contains(text, "prod") || !strings.Contains(text, "staging") {
				t.Errorf("%s does not name both environments:\n%s", what, text)
			}
		}
		if code, body := a.Get(t, "/readyz"); code != 503 {
			t.Errorf("ready: %d %s", code, body)
		}
		if p.Total() > 0 {
			t.Errorf("the provider saw %d requests", p.Total())
		}
		a.Stop(t)
		out, said, code := agenttest.Run(t, w.Dir, "", "check", "-c", a.Config)
		if code != 1 || !strings.Contains(out, "prod") || !strings.Contains(out, "staging") {
			t.Errorf("postern check: exit code %d, want 1 and both environments named:\n%s%s", code, out, said)
		}
	})
}

// belongsTo changes the environment in the metadata of the key openai.
func (w *world) belongsTo(environment string, st keyStore) {
	w.T.Helper()
	custom := map[string]string{"environment": environment}
	if v, ok := st.(*vaultStore); ok {
		path := strings.Replace(e2etest.KeyPath("staging", "openai"), "secret/", "secret/metadata/", 1)
		v.Do("POST", path, map[string]any{"custom_metadata": custom})
		return
	}
	s, err := sealed.Open(sealed.Options{File: w.Path("postern.sealed"), KeyFile: w.Path("postern.key")})
	if err != nil {
		w.T.Fatal(err)
	}
	defer s.Close()
	if err := s.SetMetadata(w.T.Context(), "provider-keys/staging/"+e2etest.ProxyID+"/openai", custom, 0); err != nil {
		w.T.Fatal(err)
	}
}

// A secret that somebody else laid out, under a name of their own, is used
// where it lies and rotated by whoever writes it.
func TestSecretInAnotherLayout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	put := func(key string) int {
		return st.KVPut("secret/team/llm", map[string]string{"owner": "the platform team", "token": key})
	}
	put(key)
	c := w.Config(st)
	c.Providers = []string{p.Entry(", vault_path: secret/data/team/llm, field: token")}
	c.Rotation = "{grace: 2s}"
	a := w.Start(c)
	l := e2etest.StartLoad(t, light, w.Ways(a, p)...)
	l.More(500 * time.Millisecond)
	for range 2 {
		next := w.Key()
		p.Allow(next)
		first := p.FirstUse(next)
		n := put(next)
		written := time.Now()
		took := e2etest.Await(t, first, 20*time.Second, "a request with the new key").Sub(written)
		t.Logf("version %d: in use %d ms after it was written", n, took.Milliseconds())
		agenttest.Eventually(t, 20*time.Second, "the old version is out of use", func() bool {
			for _, k := range e2etest.Status(t, a).Keys {
				for _, v := range k.Versions {
					if v.Number < n && v.State != "retired" {
						return false
					}
				}
			}
			return true
		})
		p.Revoke(key)
		key = next
	}
	l.More(time.Second)
	l.End()
}
