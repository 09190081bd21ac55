package e2e_test

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/sync"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

const models = "/v1/models" // what the probe asks for

// A key that the provider does not know is stored as the next version: the
// probe says so, it never carries a request, and the operator reads why.
func TestDeadKeyIsNeverPromoted(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, w *world, st keyStore) {
		good, dead := w.Key(), w.Key()
		p := w.Provider("openai", fake.Options{Keys: []string{good}})
		p.Revoke(dead) // so that the provider counts its requests
		n := st.Put("openai", good)
		c := w.Config(st, p)
		a := w.Start(c)
		l := e2etest.StartLoad(t, light, w.Ways(a, p)...)

		st.Put("openai", dead)
		agenttest.Eventually(t, 20*time.Second, "the dead version is rejected", func() bool {
			return e2etest.Version(t, a, "openai", n+1).State == "rejected"
		})
		l.More(2 * time.Second)
		if v := e2etest.Version(t, a, "openai", n); v.State != "active" || v.Weight != 100 {
			t.Errorf("the good version is %s at %d %%", v.State, v.Weight)
		}
		if c := p.Counts(dead); c.Requests != 1 || c.Unauthorized != 1 {
			t.Errorf("the dead key was seen %d times, want once, in the probe", c.Requests)
		}
		if m := a.Metric(t, `postern_rotations_total{key="openai",outcome="rejected"}`); m != 1 {
			t.Errorf("rejections counted: %v", m)
		}
		for _, e := range w.audit() {
			if e.Event.Event == "version.promoted" && e.Version != n {
				t.Errorf("the audit record has %s, %s, of version %d", e.Event.Event, e.Outcome, e.Version)
			}
		}
		out, said, code := agenttest.Run(t, w.Dir, "", "status", "-c", w.Operator(c, a))
		if code != 0 || !strings.Contains(out, "rejected") || !strings.Contains(out, "status 401") {
			t.Errorf("postern status, exit code %d, does not show the version rejected with the reason:\n%s%s", code, out, said)
		}

		// What was a typing error is mended by the next version.
		next := w.Key()
		p.Allow(next)
		first := p.FirstUse(next)
		st.Put("openai", next)
		e2etest.Await(t, first, 20*time.Second, "a request with the version after the dead one")
		l.End()
	})
}

// A provider that is in trouble says nothing about a key. Such a version waits
// while another one works, and takes over once the probe works.
func TestUnknownVerdictWaitsForTheProvider(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	probes := func(rw http.ResponseWriter, r *http.Request) bool {
		if !down.Load() || r.URL.Path != models {
			return false
		}
		http.Error(rw, "try again", http.StatusServiceUnavailable)
		return true
	}
	w := newWorld(t)
	st := w.Sealed()
	old, next := w.Key(), w.Key()
	p := w.Provider("openai", fake.Options{Keys: []string{old, next}, Intercept: probes})

	// Nothing else is usable: better this one than none.
	down.Store(true)
	st.Put("openai", old)
	a := w.Start(w.Config(st, p))
	if v := e2etest.Version(t, a, "openai", 1); v.State != "active" {
		t.Fatalf("the only version is %q", v.State)
	}
	l := e2etest.StartLoad(t, light, w.Ways(a, p)...)

	st.Put("openai", next)
	agenttest.Eventually(t, 10*time.Second, "the probe was tried", func() bool {
		return a.Metric(t, `postern_key_probes_total{key="openai",verdict="unknown"}`) >= 2
	})
	agenttest.Eventually(t, 20*time.Second, "the probe was tried again", func() bool {
		return a.Metric(t, `postern_key_probes_total{key="openai",verdict="unknown"}`) >= 3
	})
	if v := e2etest.Version(t, a, "openai", 2); v.State != "pending" || v.Weight != 0 || p.Counts(next).OK > 0 {
		t.Errorf("the version with an unknown verdict is %s at %d %%, and carried %d requests", v.State, v.Weight, p.Counts(next).OK)
	}

	first := p.FirstUse(next)
	down.Store(false)
	works := time.Now()
	took := e2etest.Await(t, first, 30*time.Second, "a request with the version once the probe works").Sub(works)
	t.Logf("promoted %.1f s after the provider answered probes again", took.Seconds())
	l.End()
}

// A version passes the probe and is refused all the same. Every request that it
// draws a 401 on is rescued by the other version; the agent halts it, for all
// agents, and goes back.
func TestBadVersionIsHaltedAndRescued(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	good, bad := w.Key(), w.Key()
	refused := func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == models || r.Header.Get("Authorization") != "Bearer "+bad {
			return false
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(http.StatusUnauthorized)
		rw.Write([]byte(`{"error":{"message":"Incorrect API key provided.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}`))
		return true
	}
	p := w.Provider("openai", fake.Options{Keys: []string{good, bad}, Intercept: refused})
	n := st.Put("openai", good)
	c := w.Config(st, p)
	c.Rotation = "{grace: 60s}"
	a := w.Start(c)
	l := e2etest.StartLoad(t, light, w.Ways(a, p)...)
	l.More(500 * time.Millisecond)

	st.Put("openai", bad)
	wrote := time.Now()
	agenttest.Eventually(t, 20*time.Second, "the bad version is rejected", func() bool {
		return e2etest.Version(t, a, "openai", n+1).State == "rejected"
	})
	halted := time.Since(wrote)
	rescued := a.Metric(t, `postern_retries_rescued_total{provider="openai"}`)
	if v := e2etest.Version(t, a, "openai", n); v.State != "active" || v.Weight != 100 {
		t.Errorf("the good version is %s at %d %%", v.State, v.Weight)
	}
	halt := "secret/data/postern/halts/staging/" + e2etest.ProxyID + "/openai-2"
	agenttest.Eventually(t, 10*time.Second, "the halt is in Vault", func() bool {
		status, _, err := st.Try(context.Background(), st.RootToken, "GET", halt, nil)
		return err == nil && status == 200
	})
	entry, _ := st.Do("GET", halt, nil)["data"].(map[string]any)
	l.More(e2etest.Span(2*time.Second, 30*time.Second))
	l.End()
	t.Logf("halted %.1f s after the write; %.0f requests rescued; in Vault: served %v, failed %v, %v", halted.Seconds(), rescued, entry["served"], entry["failed"], entry["reason"])
	if rescued < 5 {
		t.Errorf("only %v requests were rescued: the bad version cannot have been tried", rescued)
	}
	if after := a.Metric(t, `postern_retries_rescued_total{provider="openai"}`); after > rescued+50 {
		t.Errorf("%v requests were rescued after the halt", after-rescued)
	}
	var events []string
	for _, e := range w.audit() {
		events = append(events, e.Event.Event)
	}
	for _, want := range []string{sync.EventHalted, sync.EventRolledBack} {
		if !strings.Contains(strings.Join(events, " "), want) {
			t.Errorf("no audit entry %s among %v", want, events)
		}
	}

	// An agent that starts now believes the halt.
	second := newWorld(t)
	second.Secrets = w.Secrets
	e2etest.Write(t, second.Path("secret-id"), string(e2etest.Read(t, w.Path("secret-id"))))
	b := second.Start(c)
	second.Ways(b, p)[0].Must(t)
	if v := e2etest.Version(t, b, "openai", n+1); v.State == "active" || v.Weight > 0 {
		t.Errorf("a second agent uses the halted version: %+v", v)
	}
}
