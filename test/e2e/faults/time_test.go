package faults_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// A key has a lease, and Vault is away when it ends: from then on the agent
// refuses, says why, and forwards nothing, until Vault gives the key again.
func leaseExpired(t *testing.T, v *vaulttest.Vault, fault string) {
	r := onVault(t, v, fault, map[string]any{"token_ttl": "1h", "token_policies": "agent,leased"})
	v.Mount("leased", "kv", map[string]string{"version": "1", "leased_passthrough": "true"})
	v.Policy("leased", `
		path "leased/*" { capabilities = ["read"] }
		path "sys/leases/renew" { capabilities = ["update"] }`)
	v.Do("PUT", "leased/llm", map[string]any{"api_key": r.key, "ttl": "6s"})
	c := r.Config(r.s)
	c.Providers = []string{r.good.Entry(", vault_path: leased/llm")}
	r.begin(c)

	away := answers(503, errs("Vault is sealed"))
	away.begin(r)
	left := time.Now()
	agenttest.Eventually(t, 30*time.Second, "the lease is over", func() bool { return r.ask(r.name, 10*time.Second) != "200" })
	refused := time.Now()
	r.load.More(e2etest.Span(2*time.Second, 20*time.Second))
	before := r.good.Total()
	for range 20 {
		r.ask(r.name, 10*time.Second)
	}
	if n := r.good.Total() - before; n > 0 {
		t.Errorf("%d requests were forwarded after the lease", n)
	}
	away.end(r)
	back := time.Now()
	agenttest.Eventually(t, wellWithin, "the key is served again", func() bool { return r.ask(r.name, 10*time.Second) == "200" })
	r.row.recovered = seconds(time.Since(back))
	well := time.Now()
	r.load.More(time.Second)
	r.row.saw = "503 no_usable_key from the lease's end, " + seconds(refused.Sub(left)) + " without Vault, until it was back"
	for what := range r.saw {
		if what != "200" && what != "503 no_usable_key" {
			t.Errorf("a client saw %q", what)
		}
	}
	// Failing closed is what is asked for: only within that time, and only so.
	r.lose(func(f e2etest.Failure) bool {
		return strings.Contains(f.Err.Error(), "503") && f.Ended.After(left) && f.Began.Before(well)
	})
	r.back()
}

// Vault's clock is set by an hour while the agent runs. Requests go on, and a
// version that is written afterwards serves, and the one before it ends.
//
// The machine's own clock cannot be set for one process: the agent reads it for
// log lines and certificates only, and counts terms by the monotonic one.
func clockStepped(t *testing.T, v *vaulttest.Vault, fault string, by time.Duration) {
	r := onVault(t, v, fault, map[string]any{"token_ttl": "1h"})
	n := r.s.Put(r.name, r.key)
	c := r.Config(r.s, r.good)
	c.Rotation = "{grace: 3s, ramp: [{weight: 50, for: 1s}]}"
	r.begin(c)
	front := &stepped{t: t, v: v, at: time.Now(), by: by}
	r.s.Front.Intercept(front.answer)
	r.load.More(e2etest.Span(3*time.Second, 30*time.Second))
	for range 2 {
		n++
		r.rotates(time.Now(), wellWithin)
		agenttest.Eventually(t, 60*time.Second, "the old version is out of use", func() bool {
			return e2etest.Version(t, r.a, r.name, n-1).State == "retired"
		})
	}
	front.setBack()
	r.load.More(e2etest.Span(2*time.Second, 30*time.Second))
	r.rotates(time.Now(), wellWithin)
	r.end()
}

// stepped answers as a Vault whose clock was wrong by so much for a while: its
// Date, and for ever the times of what was written then.
type stepped struct {
	t  *testing.T
	v  *vaulttest.Vault
	at time.Time
	by time.Duration

	mu   sync.Mutex
	back time.Time // zero while it is wrong
}

func (s *stepped) setBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.back = time.Now()
}

var created = regexp.MustCompile(`"(created|updated)_time":"([^"]+)"`)

func (s *stepped) answer(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	back := s.back
	s.mu.Unlock()
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, s.v.Address+r.URL.RequestURI(), r.Body)
	if err != nil {
		s.t.Error(err)
		return true
	}
	req.Header = r.Header
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Error(err)
		return true
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Error(err)
	}
	body = created.ReplaceAllFunc(body, func(found []byte) []byte {
		part := created.FindSubmatch(found)
		when, err := time.Parse(time.RFC3339Nano, string(part[2]))
		if err != nil || when.Before(s.at) || !back.IsZero() && when.After(back) {
			return found
		}
		return bytes.Replace(found, part[2], []byte(when.Add(s.by).Format(time.RFC3339Nano)), 1)
	})
	for k, vs := range resp.Header {
		w.Header()[k] = vs
	}
	if back.IsZero() {
		w.Header().Set("Date", time.Now().Add(s.by).UTC().Format(http.TimeFormat))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(resp.StatusCode)
	w.Write(body)
	return true
}
