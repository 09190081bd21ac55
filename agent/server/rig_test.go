package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
	"github.com/postern-proxy/postern/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	seedKey = "sk-proj-seed00000000000000000000"
	nextKey = "sk-proj-next00000000000000000000"
	deadKey = "sk-proj-dead00000000000000000000"
	// operator may do everything; viewer may not write keys.
	operator = "hvs.operator000000000000000000"
	viewer   = "hvs.viewer00000000000000000000"
)

// rig is the API over a sealed file in which tokens are told apart by a table.
type rig struct {
	t        *testing.T
	store    store.Store
	own      *keys.Manager
	trail    *keys.Trail
	provider *fake.Server
	log      *lockedBuffer
	api      *api
	url      string
	client   *http.Client
	figures  *metrics
	registry *prometheus.Registry

	mu      sync.Mutex
	now     time.Time
	before  func(ctx context.Context, method, path string) error // of every call to a caller's store
	away    bool                                                 // the server has not reached its store
	pending []keyName                                            // that Requested told
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, log: &lockedBuffer{}, registry: prometheus.NewRegistry(), now: time.Now()}
	var err error
	if r.provider, err = fake.New(fake.Options{Kind: "openai", Keys: []string{seedKey, nextKey}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.provider.Close() })
	dir := t.TempDir()
	cfg := testConfig(t, dir, r.provider, "")
	st, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	r.store = st
	r.trail = keys.NewTrail(st, "prod", "testboot")
	known, err := agent.NewRedactor(cfg, agent.VaultTokens)
	if err != nil {
		t.Fatal(err)
	}
	logger := agent.NewLogger(config.Log{Level: "debug", Format: "json"}, known, r.log)
	reach, err := agent.NewReach(cfg)
	if err != nil {
		t.Fatal(err)
	}
	manager := func(ctx context.Context, s store.Store, source string) (*keys.Manager, error) {
		m, err := agent.NewManager(ctx, cfg, agent.ManagerOptions{Store: s, Trail: r.trail.On(s), Source: source, Logger: logger, Reach: reach})
		if err == nil {
			m.Scope.ProxyID = ""
		}
		return m, err
	}
	if r.own, err = manager(t.Context(), st, "server@test"); err != nil {
		t.Fatal(err)
	}
	r.own.Issuer = func(name string) issuer.Issuer {
		if name == "openai" {
			return newVendor()
		}
		return nil
	}
	r.figures = newMetrics(r.registry)
	r.api = newAPI(apiOptions{
		Environment: "prod", As: r.as, Manager: manager, Own: r.serverItself, Trail: r.trail.On,
		Requested: func(px, name string) { r.pending = append(r.pending, keyName{px, name}) },
		Ready: func() string {
			if r.serverItself() == nil {
				return "waiting"
			}
			return ""
		},
		Metrics: promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{}), Figures: r.figures, Scrub: known.Text, Logger: logger, Now: r.clock,
	})
	server := httptest.NewServer(r.api)
	t.Cleanup(server.Close)
	r.url, r.client = server.URL, server.Client()
	return r
}

// testConfig is a configuration of environment prod whose openai is a fake.
func testConfig(t *testing.T, dir string, p *fake.Server, more string) *config.Config {
	t.Helper()
	ca := filepath.Join(dir, "provider.pem")
	writeFile(t, ca, string(p.CAPEM()))
	host := strings.TrimPrefix(p.URL(), "https://")
	if more == "" {
		more = "store: {sealed: {file: s, key_file: k}}\nproxy_id: px_acme_prod\n"
	}
	cfg, err := config.Parse(fmt.Appendf(nil, `version: 1
environment: prod
rotation: {grace: 11s}
providers:
  - {name: openai, hosts: [%q], base_url: %q, ca_file: %q}
%s`, host, p.URL(), ca, more), "test", func(string) string { return "" }, dir)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *rig) serverItself() *keys.Manager {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return nil
	}
	return r.own
}

func (r *rig) on(ctx context.Context, method, path string) error {
	r.mu.Lock()
	before := r.before
	r.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, method, path)
}

// intercept sets what happens before each call to a caller's store.
func (r *rig) intercept(f func(ctx context.Context, method, path string) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = f
}

func (r *rig) as(token *secret.Value) (store.Store, func()) {
	s := callersStore{Store: r.store, rig: r}
	token.Use(func(b []byte) { s.token = string(b) })
	return s, func() {}
}

// callersStore is a store with a caller's rights.
type callersStore struct {
	store.Store
	rig   *rig
	token string
}

func (s callersStore) Identity(ctx context.Context) (store.Identity, error) {
	if err := s.rig.on(ctx, "identity", ""); err != nil {
		return store.Identity{}, err
	}
	switch s.token {
	case operator:
		return store.Identity{DisplayName: "operator", EntityID: "entity-o"}, nil
	case viewer:
		return store.Identity{DisplayName: "viewer", EntityID: "entity-v"}, nil
	}
	return store.Identity{}, fmt.Errorf("identity: %w", store.ErrUnauthenticated)
}

// may is the policy: a viewer writes nothing but the record.
func (s callersStore) may(ctx context.Context, method, path string) error {
	if s.token == viewer && !strings.HasPrefix(path, "audit/") {
		return fmt.Errorf("%s %s: %w", method, path, store.ErrForbidden)
	}
	return s.rig.on(ctx, method, path)
}

func (s callersStore) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	if s.token == viewer && strings.HasPrefix(path, "provider-keys/") {
		return nil, fmt.Errorf("get %s: %w", path, store.ErrForbidden)
	}
	if err := s.rig.on(ctx, "get", path); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, path, version)
}

func (s callersStore) Put(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	if err := s.may(ctx, "put", path); err != nil {
		return store.Version{}, err
	}
	return s.Store.Put(ctx, path, f, cas)
}

func (s callersStore) Patch(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	if err := s.may(ctx, "patch", path); err != nil {
		return store.Version{}, err
	}
	return s.Store.Patch(ctx, path, f, cas)
}

func (s callersStore) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	if err := s.rig.on(ctx, "metadata", path); err != nil {
		return nil, err
	}
	return s.Store.Metadata(ctx, path)
}

func (s callersStore) SetMetadata(ctx context.Context, path string, custom map[string]string, most int) error {
	if err := s.may(ctx, "set-metadata", path); err != nil {
		return err
	}
	return s.Store.SetMetadata(ctx, path, custom, most)
}

func (s callersStore) List(ctx context.Context, folder string) ([]string, error) {
	if err := s.rig.on(ctx, "list", folder); err != nil {
		return nil, err
	}
	return s.Store.List(ctx, folder)
}

func (s callersStore) Destroy(ctx context.Context, path string, versions ...int) error {
	if err := s.may(ctx, "destroy", path); err != nil {
		return err
	}
	return s.Store.Destroy(ctx, path, versions...)
}

// said is an answer.
type said struct {
	status int
	header http.Header
	body   string
}

// json decodes the answer.
func (s said) json(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(s.body), &m); err != nil {
		t.Fatalf("%v: %s", err, s.body)
	}
	return m
}

// ask is one request.
type ask struct {
	method, path, body string
	token              string // operator's by default; "-" for none
	header             map[string]string
}

// do sends a request.
func (r *rig) do(a ask) said {
	r.t.Helper()
	return send(r.t, r.client, r.url, a)
}

func send(t *testing.T, client *http.Client, base string, a ask) said {
	t.Helper()
	var body io.Reader
	if a.body != "" {
		body = strings.NewReader(a.body)
	}
	req, err := http.NewRequestWithContext(t.Context(), a.method, base+a.path, body)
	if err != nil {
		t.Fatal(err)
	}
	if a.token == "" {
		a.token = operator
	}
	if a.token != "-" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	if a.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range a.header {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return said{resp.StatusCode, resp.Header, string(b)}
}

// want sends a request and wants a status.
func (r *rig) want(status int, a ask) said {
	r.t.Helper()
	got := r.do(a)
	if got.status != status {
		r.t.Fatalf("%s %s: %d, want %d: %s", a.method, a.path, got.status, status, got.body)
	}
	return got
}

// refused sends a request and wants a problem of this code.
func (r *rig) refused(code string, a ask) map[string]any {
	r.t.Helper()
	got := r.want(statuses[code], a)
	p := got.json(r.t)
	if p["code"] != code || got.header.Get("Content-Type") != problemType {
		r.t.Fatalf("%s %s: want %s: %s", a.method, a.path, code, got.body)
	}
	return p
}

// seeded is the document's own example.
func seeded(name string) string {
	return fmt.Sprintf(`{"provider":"openai","api_key":%q,"proxy_id":"px_acme_prod","label":"OpenAI Production"%s}`, seedKey, name)
}

// add stores a key through the API.
func (r *rig) add(name, key string) {
	r.t.Helper()
	r.want(http.StatusCreated, ask{method: "POST", path: "/v1/provider-keys", body: fmt.Sprintf(`{"provider":"openai","api_key":%q,"proxy_id":"px_acme_prod","name":%q}`, key, name)})
}

// entries are the record's.
func (r *rig) entries() []audit.Entry {
	r.t.Helper()
	all, err := r.trail.Entries(r.t.Context(), keys.TrailFilter{})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
