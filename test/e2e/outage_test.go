package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

const staleMetric = `postern_key_stale_seconds{key="openai"}`

// Vault is away, then sealed, for as long as it takes: the agent serves from
// memory and stays ready, its metric says how old what it knows is, and when
// Vault is back the next rotation is picked up.
func TestVaultAwayUnderLoad(t *testing.T) {
	t.Parallel()
	for name, outage := range map[string]struct{ away, back func(*vaultStore) }{
		"stopped": {func(s *vaultStore) { s.Stop() }, func(s *vaultStore) { s.Run() }},
		"sealed":  {func(s *vaultStore) { s.Seal() }, func(s *vaultStore) { s.Unseal() }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			st := w.Vault(vaulttest.Options{Persistent: true})
			key := w.Key()
			p := w.Provider("openai", fake.Options{Keys: []string{key}})
			st.Put("openai", key)
			a := w.Start(w.Config(st, p))
			l := e2etest.StartLoad(t, light, w.Ways(a, p)...)
			l.More(time.Second)
			if s := a.Metric(t, staleMetric); s > 3 {
				t.Errorf("%s is %.1f while Vault is there", staleMetric, s)
			}

			readiness := watchReadiness(a)
			going := time.Now()
			outage.away(st)
			gone := time.Now()
			l.More(e2etest.Span(5*time.Second, 60*time.Second))
			stale, away := a.Metric(t, staleMetric), time.Since(gone)
			if looks, unready := readiness(); unready > 0 || looks == 0 {
				t.Errorf("without Vault the agent was not ready at %d of %d looks", unready, looks)
			}
			if stale < away.Seconds()-1 || stale > time.Since(going).Seconds()+3 {
				t.Errorf("%s is %.1f after %.1f s without Vault", staleMetric, stale, away.Seconds())
			}
			served := l.Total()

			outage.back(st)
			back := time.Now()
			next := w.Key()
			p.Allow(next)
			first := p.FirstUse(next)
			st.Put("openai", next)
			took := e2etest.Await(t, first, 45*time.Second, "a request with the key written after the outage").Sub(back)
			t.Logf("%.1f s without Vault: %d requests served, metric %.1f s; a rotation was in use %.1f s after Vault was back",
				away.Seconds(), served, stale, took.Seconds())
			agenttest.Eventually(t, 10*time.Second, "the metric says that Vault is back", func() bool { return a.Metric(t, staleMetric) < 3 })
			l.End()
			if n := st.Logins(); n != 1 {
				t.Errorf("%d logins; the token outlived the outage", n)
			}
		})
	}
}

// watchReadiness looks at /readyz ten times a second, until the function it returns is called.
func watchReadiness(a *agenttest.Agent) (end func() (looks, unready int)) {
	stop, done := make(chan struct{}), make(chan struct{})
	looks, unready := 0, 0
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			looks++
			resp, err := http.Get("http://" + a.Admin + "/readyz")
			if err != nil || resp.StatusCode != http.StatusOK {
				unready++
			}
			if err == nil {
				resp.Body.Close()
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	return func() (int, int) {
		close(stop)
		<-done
		return looks, unready
	}
}

// Somebody revokes the agent's token: it logs in again, once.
func TestRevokedTokenIsReplacedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	st.Put("openai", key)
	a := w.Start(w.Config(st, p))
	l := e2etest.StartLoad(t, light, w.Ways(a, p)...)
	l.More(time.Second)

	st.RevokeLogins("approle/login")
	revoked := time.Now()
	agenttest.Eventually(t, 20*time.Second, "the agent has logged in again", func() bool { return st.Logins() == 2 })
	t.Logf("logged in again %.1f s after the token was revoked", time.Since(revoked).Seconds())
	next := w.Key()
	p.Allow(next)
	first := p.FirstUse(next)
	st.Put("openai", next)
	e2etest.Await(t, first, 20*time.Second, "a request with a key written after the token was replaced")
	l.More(e2etest.Span(2*time.Second, 30*time.Second))
	l.End()
	if n := st.Logins(); n != 2 {
		t.Errorf("%d logins for one revoked token", n)
	}
	if code, _ := a.Get(t, "/readyz"); code != 200 {
		t.Errorf("readyz: %d", code)
	}
}

// A token that lives for seconds is renewed, so that one login is enough.
func TestShortTokenIsRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.VaultRole(vaulttest.Options{}, "4s")
	key := w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{key}})
	st.Put("openai", key)
	a := w.Start(w.Config(st, p))
	agenttest.Eventually(t, 30*time.Second, "the token was renewed twice", func() bool { return st.Front.Count("auth/token/renew-self") >= 2 })
	if n := st.Logins(); n != 1 {
		t.Errorf("%d logins", n)
	}
	w.Ways(a, p)[0].Must(t)
}

// A login that can never succeed: the field at fault is named, by the agent and
// by `postern check`, and Vault is not stormed.
func TestWrongRoleNamesTheField(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	st.EnableAuth("kubernetes", "kubernetes")
	st.Do("POST", "auth/kubernetes/config", map[string]any{
		"kubernetes_host": "https://127.0.0.1:1", "disable_local_ca_jwt": true, "token_reviewer_jwt": "reviewer",
	})
	// Nobody signed it: a role that does not exist is refused before anybody asks.
	e2etest.Write(t, w.Path("jwt"), "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6c2hvcDpjaGVja291dCJ9.c2lnbmVk\n")
	for name, wrong := range map[string]struct{ auth, login, field string }{
		"approle":    {"approle: {role_id: 00000000-0000-0000-0000-000000000000, secret_id_file: secret-id}", "auth/approle/login", "store.vault.auth.approle.role_id"},
		"kubernetes": {"kubernetes: {role: chekout, token_file: jwt}", "auth/kubernetes/login", `store.vault.auth.kubernetes.role \"chekout\"`},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{&e2etest.World{T: t, Dir: w.Dir, Secrets: w.Secrets}}
			key := w.Key()
			p := w.Provider("openai", fake.Options{Keys: []string{key}})
			st.Put("openai", key)
			c := w.Config(&vaultStore{Vault: st.Vault, Front: st.Front, Auth: wrong.auth}, p)
			st.Front.Reset()
			began := time.Now()
			a := agenttest.Start(t, w.Dir, c.YAML())
			w.KeepsSecrets(a)
			agenttest.Eventually(t, 30*time.Second, "the third login", func() bool { return st.Front.Count(wrong.login) >= 3 })
			took := time.Since(began)
			all := len(st.Front.Requests())
			t.Logf("3 logins in %.1f s, %d requests to Vault in all", took.Seconds(), all)
			if took < 1500*time.Millisecond || all > 3 {
				t.Errorf("a storm: %d requests to Vault, 3 of them logins, within %s", all, took)
			}
			e2etest.SaysSo(t, a, wrong.field, "cannot be read from the store")
			if n := strings.Count(a.Log.String(), "cannot log in to Vault"); n != 1 {
				t.Errorf("the log says it %d times", n)
			}
			if code, body := a.Get(t, "/readyz"); code != 503 {
				t.Errorf("ready without a key: %d %s", code, body)
			}
			err := w.Ways(a, p)[0].Ask(context.Background())
			if err == nil || !strings.Contains(err.Error(), "503") || p.Total() > 0 {
				t.Errorf("a request without a key drew %v, and %d reached the provider", err, p.Total())
			}

			file := w.Path("check.yaml")
			e2etest.Write(t, file, c.YAML())
			out, said, code := agenttest.Run(t, w.Dir, "", "check", "-c", file)
			field := strings.ReplaceAll(wrong.field, `\`, "")
			if code != 1 || !strings.Contains(out, field) {
				t.Errorf("postern check: exit code %d, want 1 and %s named:\n%s%s", code, field, out, said)
			}
			w.Clean("postern check", []byte(fmt.Sprint(out, said)))
		})
	}
}
