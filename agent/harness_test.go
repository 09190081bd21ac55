package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	stdsync "sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/config"
)

// house is everything around one agent, in process: a provider that speaks
// TLS, a sealed store with its key, a configuration that tests change.
type house struct {
	t        *testing.T
	dir      string
	provider *fake.Server
	keys     *keys.Manager
	env      map[string]string
	log      *buffer
	audit    *buffer
	inside   chan chan struct{} // nil: nobody is held

	mu   stdsync.Mutex
	yaml string
	err  error // of reading the configuration
}

// unrecorded is a record of operations that nobody reads.
type unrecorded struct{}

func (unrecorded) Append(context.Context, audit.Event) (audit.Head, error) { return audit.Head{}, nil }

const firstKey = "sk-test-first-0000000000000000000000"

// newHouse has one provider, openai, whose key is stored. When the test ends,
// no goroutine of its agents may be left.
func newHouse(t *testing.T) *house {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	h := &house{t: t, dir: t.TempDir(), env: map[string]string{}, log: &buffer{}, audit: &buffer{}}
	var err error
	if h.provider, err = fake.New(fake.Options{Kind: "openai", Keys: []string{firstKey}, Intercept: h.intercept}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.provider.Close() })
	h.write("provider-ca.pem", string(h.provider.CAPEM()))
	h.yaml = h.config(h.entry("openai", ""))
	st, done, err := OpenStore(h.parsed(), StoreOptions{Operator: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	h.keys = &keys.Manager{Store: st, Scope: keys.Scope{Environment: "test", ProxyID: "px_test"}, Audit: unrecorded{}}
	h.put("openai", firstKey)
	return h
}

// hold holds the next requests of clients at the provider: each gives a channel
// that lets it go on when it is closed.
func (h *house) hold() <-chan chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.inside = make(chan chan struct{}, 64)
	return h.inside
}

func (h *house) intercept(_ http.ResponseWriter, r *http.Request) bool {
	h.mu.Lock()
	inside := h.inside
	h.mu.Unlock()
	if inside != nil && strings.HasPrefix(r.UserAgent(), "Go-http-client") {
		release := make(chan struct{})
		inside <- release
		<-release
	}
	return false
}

func (h *house) path(name string) string { return filepath.Join(h.dir, name) }

func (h *house) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(h.path(name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// entry is a provider in the configuration; more is what follows in it.
func (h *house) entry(name, more string) string {
	host := strings.TrimPrefix(h.provider.URL(), "https://")
	return fmt.Sprintf(`{name: %s, provider: openai, hosts: ["%s"], base_url: "https://%[2]s", ca_file: provider-ca.pem%s}`, name, host, more)
}

// config is a configuration with these providers; only the first owns CONNECT.
func (h *house) config(providers ...string) string {
	for i := range providers[1:] {
		providers[i+1] = strings.TrimSuffix(providers[i+1], "}") + ", forward: false, sdk_env: false}"
	}
	return `version: 1
environment: test
proxy_id: px_test
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}
store: {sealed: {file: postern.sealed, key_file: postern.key, poll: 200ms}}
rotation: {grace: 1s}
providers: [` + strings.Join(providers, ", ") + "]\n"
}

// set changes the configuration on disk, as it were.
func (h *house) set(yaml string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.yaml, h.err = yaml, nil
}

// replace is set with one part of the text changed.
func (h *house) replace(old, with string) {
	h.t.Helper()
	h.mu.Lock()
	yaml := strings.Replace(h.yaml, old, with, 1)
	same := yaml == h.yaml
	h.mu.Unlock()
	if same {
		h.t.Fatalf("%q is not in the configuration", old)
	}
	h.set(yaml)
}

// moveAway makes the configuration name a store that cannot be reached.
func (h *house) moveAway() {
	h.t.Helper()
	h.write("token", "hvs.0000000000000000000000")
	h.replace("{sealed: {file: postern.sealed, key_file: postern.key, poll: 200ms}}", `{vault: {address: "https://127.0.0.1:1", auth: {token: {file: token}}, poll: 1s}}`)
	h.replace("grace: 1s", "grace: 2s")
}

func (h *house) unreadable(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

func (h *house) load() (*config.Config, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, h.err
	}
	return config.Parse([]byte(h.yaml), "test.yaml", h.getenv, h.dir)
}

func (h *house) getenv(name string) string { return h.env[name] }

func (h *house) parsed() *config.Config {
	h.t.Helper()
	c, err := h.load()
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *house) options() Options {
	return Options{Config: h.parsed(), Load: h.load, Getenv: h.getenv, Log: h.log, Audit: h.audit, Version: "v0.0.0-test"}
}

// put stores a key's next version, which the provider takes.
func (h *house) put(name, key string) {
	h.t.Helper()
	h.provider.Allow(key)
	v, err := secret.New([]byte(key))
	if err != nil {
		h.t.Fatal(err)
	}
	defer v.Destroy()
	if _, err := h.keys.Add(h.t.Context(), name, v, keys.Meta{Provider: "openai"}); err != nil {
		h.t.Fatal(err)
	}
}

// start starts an agent and waits for its keys; it stops with the test.
func (h *house) start() *Agent {
	h.t.Helper()
	a := h.new()
	if err := a.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	if err := a.AwaitKeys(h.t.Context(), 10*time.Second); err != nil {
		h.t.Fatal(err)
	}
	return a
}

// new makes an agent that stops with the test.
func (h *house) new() *Agent {
	h.t.Helper()
	a, err := New(h.options())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(a.Stop)
	return a
}

// client keeps its connections until the test ends.
func (h *house) client() *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	h.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// ask asks the route of a provider for its models and returns status and body.
func ask(c *http.Client, a *Agent, name string) (int, string, error) {
	resp, err := c.Get("http://" + a.ProxyAddr().String() + "/" + name + "/v1/models")
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// serves asserts that a route answers 200.
func (h *house) serves(a *Agent, name string) {
	h.t.Helper()
	if status, body, err := ask(h.client(), a, name); status != http.StatusOK {
		h.t.Errorf("/%s/: %d %s %v", name, status, body, err)
	}
}

// metric is one series of the agent's registry, by name and the values of its labels.
func metric(t *testing.T, g prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			var values []string
			for _, l := range m.Label {
				values = append(values, l.GetValue())
			}
			if f.GetName() == name && strings.Join(values, ",") == strings.Join(labels, ",") {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// events are the audit entries so far, "event outcome".
func (h *house) events() []string {
	var out []string
	for line := range strings.Lines(h.audit.String()) {
		e, rest, _ := strings.Cut(cut(line, `"event":"`), `"`)
		out = append(out, e+" "+first(cut(rest, `"outcome":"`)))
	}
	return out
}

func cut(s, before string) string { _, s, _ = strings.Cut(s, before); return s }
func first(s string) string       { s, _, _ = strings.Cut(s, `"`); return s }

// buffer is a log in memory.
type buffer struct {
	mu stdsync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var errAway = errors.New("permission denied")

// files are the names below the house's directory.
func (h *house) files() map[string]bool {
	all := map[string]bool{}
	filepath.WalkDir(h.dir, func(path string, _ os.DirEntry, err error) error {
		if rel, rerr := filepath.Rel(h.dir, path); err == nil && rerr == nil {
			all[rel] = true
		}
		return nil
	})
	return maps.Clone(all)
}
