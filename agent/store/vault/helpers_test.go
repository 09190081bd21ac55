package vault

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// policy lets a token do everything below the store's root, and nothing else.
const policy = `
path "secret/data/postern/*" { capabilities = ["create", "read", "update", "patch", "delete"] }
path "secret/metadata/postern/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "secret/destroy/postern/*" { capabilities = ["update"] }
`

// quick are options without waits that only help in a large fleet.
func quick() Options {
	return Options{
		Limiter:      rate.NewLimiter(rate.Inf, 0),
		BackoffMin:   20 * time.Millisecond,
		BackoffMax:   200 * time.Millisecond,
		OutageJitter: -1,
	}
}

// open makes a Store that is closed with the test.
func open(t testing.TB, cfg Config, opts Options) *Store {
	t.Helper()
	s, err := New(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// withToken is the configuration of an operator's command.
func withToken(t testing.TB, address, token string) Config {
	t.Helper()
	v := value(t, token)
	return Config{Address: address, Token: v}
}

// value makes a Value that lives until the test ends.
func value(t testing.TB, text string) *secret.Value {
	t.Helper()
	v, err := secret.New([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Destroy)
	return v
}

func fields(t testing.TB, pairs ...string) map[string]*secret.Value {
	t.Helper()
	f := map[string]*secret.Value{}
	for i := 0; i < len(pairs); i += 2 {
		f[pairs[i]] = value(t, pairs[i+1])
	}
	return f
}

// reveal is what a Value holds.
func reveal(v *secret.Value) (s string) {
	if !v.Use(func(b []byte) { s = string(b) }) {
		return "(destroyed)"
	}
	return s
}

// read gets a secret's api_key.
func read(t testing.TB, s *Store, path string) (string, error) {
	t.Helper()
	got, err := s.Get(t.Context(), path, 0)
	if err != nil {
		return "", err
	}
	defer got.Destroy()
	return reveal(got.Fields["api_key"]), nil
}

// mustRead is read where nothing may fail.
func mustRead(t testing.TB, s *Store, path, want string) {
	t.Helper()
	if got, err := read(t, s, path); err != nil || got != want {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// file writes a file into the test's folder and returns its name.
func file(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	rewrite(t, path, content)
	return path
}

// rewrite replaces a file as a whole.
func rewrite(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// logbook collects log lines.
type logbook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logbook) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}

// appRole prepares a role with the tests' policy and returns how to log in with it.
func appRole(t testing.TB, v *vaulttest.Vault, settings map[string]any) *AppRoleAuth {
	t.Helper()
	v.Policy("postern", policy)
	v.EnableAuth("approle", "approle")
	body := map[string]any{"token_policies": "postern"}
	for k, s := range settings {
		body[k] = s
	}
	v.Do("POST", "auth/approle/role/agent", body)
	id, _ := v.Do("GET", "auth/approle/role/agent/role-id", nil)["role_id"].(string)
	secretID, _ := v.Do("POST", "auth/approle/role/agent/secret-id", nil)["secret_id"].(string)
	return &AppRoleAuth{RoleID: id, SecretIDFile: file(t, "secret-id", secretID+"\n")}
}
