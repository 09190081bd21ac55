package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// A key leaked. From the command on it takes a poll until no agent attaches it;
// requests fail closed, and the next version is served at once.
func TestEmergencyRevocation(t *testing.T) {
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		fleet := int(e2etest.Span(10, 20))
		leaked := w.Key()
		p := w.Provider("openai", fake.Options{Keys: []string{leaked}, Records: 200_000})
		st.Put("openai", leaked)
		c := w.Config(st, p)
		c.Store = st.Shared()
		op := w.console(st, c, "security")
		agents := make([]*agenttest.Agent, fleet)
		var ways []way
		for i := range agents {
			each := w
			if i > 0 {
				each = w.twin()
			}
			agents[i] = each.Start(c)
			ways = append(ways, way{Name: "route", Client: w.Client(nil), URL: agents[i].URL("/openai/v1/chat/completions")})
		}
		l := e2etest.StartLoad(t, 10*fleet, ways...)
		l.More(2 * time.Second)

		began := time.Now()
		out := op.must("", "keys", "revoke", "openai", "--now", "--reason", "seen in a paste", "-o", "json")
		took := time.Since(began)
		r := parsed[keys.Revoked](t, out)
		if len(r.Versions) != 1 || r.Versions[0] != 1 || r.Remaining != 0 {
			t.Errorf("%+v", r)
		}
		for i, a := range agents {
			agenttest.Eventually(t, 20*time.Second, fmt.Sprintf("agent %d lets go of the key", i+1), func() bool {
				return e2etest.Version(t, a, "openai", 1).State == "compromised"
			})
		}
		l.More(time.Second)
		failed := l.Report()
		var last time.Time
		accepted := 0
		for _, q := range p.Requests() {
			if q.Key == leaked && q.Status == http.StatusOK && q.Method == http.MethodPost {
				accepted++
				if q.Time.After(last) {
					last = q.Time
				}
			}
		}
		after := last.Sub(began)
		t.Logf("%d agents, poll 1 s: the command took %d ms; the last of %d requests with the leaked key was accepted %d ms after it was given (target: poll + 1 s)",
			fleet, took.Milliseconds(), accepted, after.Milliseconds())
		if after > 5*slower*time.Second {
			t.Errorf("the leaked key was in use for %s", after)
		}
		for _, f := range failed {
			if !strings.Contains(f.Err.Error(), "503") || f.Ended.Before(began) {
				t.Errorf("%.2f s after the command: %v", f.Began.Sub(began).Seconds(), f.Err)
				break
			}
		}
		if len(failed) == 0 {
			t.Error("no request failed: the agents cannot have let go of the key")
		}
		if s := op.state("openai", 1); s != "destroyed" && s != "compromised" {
			t.Errorf("the version is %s in the store", s)
		}

		next := w.Key()
		p.Allow(next)
		st.Put("openai", next)
		for _, a := range agents {
			agenttest.Eventually(t, 20*time.Second, "a new version is served", func() bool { return e2etest.Version(t, a, "openai", 2).State == "active" })
		}
		ways[0].Must(t)
		leavesNoCopies(t, agents[0], []string{leaked}, next, soon)
		leavesNoCopies(t, agents[fleet-1], []string{leaked}, next, soon)
		op.must("", "audit", "verify")
	})
}

// Somebody found a key and does not know which it is.
func TestWhichKeyIsThis(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		first, second := w.Key(), w.Key()
		p := w.Provider("openai", fake.Options{Keys: []string{first, second}})
		c := w.Config(st, p)
		op := w.console(st, c, "devops", "security")
		op.must(first+"\n", "keys", "add", "openai")
		op.must(second+"\n", "keys", "rotate", "openai", "--now")
		a := w.Start(c)
		got := parsed[keys.Found](t, op.must(second+"\n", "keys", "show", "--leaked", "-o", "json"))
		if got.Name != "openai" || got.Version != 2 || got.Environment != c.Environment || got.ProxyID != e2etest.ProxyID {
			t.Errorf("%+v", got)
		}
		if out, _, code := op.run(w.Key()+"\n", "keys", "show", "--leaked"); code != 1 || strings.Contains(out, "openai") {
			t.Errorf("a key that nobody knows: exit code %d, %s", code, out)
		}
		op.must(second+"\n", "keys", "revoke", "--leaked", "--now", "--reason", "found in a log")
		agenttest.Eventually(t, 20*time.Second, "the agent lets go of it", func() bool { return e2etest.Version(t, a, "openai", 2).State == "compromised" })
		resp, err := http.Post(a.URL("/openai/v1/chat/completions"), "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Postern-Error") == "" {
			t.Errorf("without a usable version: %s", resp.Status)
		}
	})
}

// What belongs to one environment does not work in another, whoever copies it.
func TestEnvironmentsAreApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	staging, prod := w.Key(), w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{staging, prod}})
	st.Put("openai", staging)
	c := w.Config(st, p)
	w.console(st, c) // the agents' policy is the printed one now
	a := w.Start(c)

	// An agent that says it is prod has no right to.
	other := w.twin()
	cp := other.Config(st, p)
	cp.Store, cp.Environment = st.Shared(), "prod"
	st.KVPut(e2etest.KeyPath("prod", "openai"), map[string]string{"api_key": prod})
	b := agenttest.Start(t, other.Dir, cp.YAML())
	other.KeepsSecrets(b)
	e2etest.SaysSo(t, b, "forbidden", e2etest.KeyPath("prod", "openai")[len("secret/postern/"):])
	if code, _ := b.Get(t, "/readyz"); code == http.StatusOK {
		t.Error("an agent of staging is ready with prod's keys")
	}

	// A prod key that somebody copied to staging, with what is written beside it, is refused.
	st.Do("POST", "secret/metadata/"+e2etest.KeyPath("staging", "openai")[len("secret/"):], map[string]any{"custom_metadata": map[string]string{"environment": "prod"}})
	st.Put("openai", prod)
	e2etest.SaysSo(t, a, `names environment \"prod\"`)
	if n := p.Counts(prod).OK; n > 0 {
		t.Errorf("the copied key was attached %d times", n)
	}
	// Nor may it be stored under both.
	op := w.console(st, c, "security")
	op.must(w.Key()+"\n", "keys", "add", "groq", "--provider", "openai")
	cp.Store = st.Shared()
	prodOp := w.console(st, cp, "security")
	shared := w.Key()
	prodOp.must(shared+"\n", "keys", "add", "groq", "--provider", "openai")
	out, said, code := op.run(shared+"\n", "keys", "add", "mistral", "--provider", "openai")
	if code != 1 || !strings.Contains(said, "prod") {
		t.Errorf("a key of prod was stored in staging: exit code %d\n%s%s", code, out, said)
	}
}
