package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/config"
)

// laptop is a folder with a configuration and a sealed store, and the means to
// bring the store into a state that only time or a crash would.
type laptop struct {
	*keys.Manager
	t    *testing.T
	home string
}

func newLaptop(t *testing.T) *laptop {
	t.Helper()
	home := t.TempDir()
	file := filepath.Join(home, "postern.yaml")
	if err := os.WriteFile(file, []byte(`{version: 1, environment: dev, proxy_id: px_test, rotation: {grace: 400ms},
store: {sealed: {file: postern.sealed, key_file: postern.key, poll: 200ms}}, providers: [{name: perplexity}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	st, closer, err := agent.OpenStore(cfg, agent.StoreOptions{Operator: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closer)
	m, err := agent.NewManager(t.Context(), cfg, agent.ManagerOptions{Store: st, NoProbe: true})
	if err != nil {
		t.Fatal(err)
	}
	return &laptop{Manager: m, t: t, home: home}
}

func aKey(n int) string { return fmt.Sprintf("pplx-0123456789abcdefghij-%d", n) }

func (l *laptop) value(n int) *secret.Value {
	l.t.Helper()
	v, err := secret.New([]byte(aKey(n)))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(v.Destroy)
	return v
}

func (l *laptop) add(name string, n int) keys.Added {
	l.t.Helper()
	a, err := l.Add(l.t.Context(), name, l.value(n), keys.Meta{Provider: "perplexity"})
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

// runs runs a command that has to succeed.
func (l *laptop) runs(stdin string, args ...string) (out, said string) {
	l.t.Helper()
	out, said, code := agenttest.RunEnv(l.t, agenttest.Env(l.home), stdin, append(args, "-c", filepath.Join(l.home, "postern.yaml"))...)
	if code != 0 {
		l.t.Fatalf("postern %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
	}
	return out, said
}

// left writes the record of a rotation that was left alone an hour ago, when
// everything but the end of the old version was done.
func (l *laptop) left(name string) {
	l.t.Helper()
	first, second := l.add(name, 2*len(name)), l.add(name, 2*len(name)+1)
	ago := time.Now().Add(-time.Hour)
	r := rotation.Record{
		From: rotation.ID{Number: first.Version, Created: first.Created}, To: rotation.ID{Number: second.Version, Created: second.Created},
		Phase: rotation.PhaseMigrate, Actor: "somebody", RequestedAt: ago, StartedAt: ago, Validated: true, Grace: time.Second,
	}
	fields, err := r.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := store.PutText(l.t.Context(), l.Store, "rotations/dev/px_test/"+name, fields, 0); err != nil {
		l.t.Fatal(err)
	}
}

// What nobody stayed for is done by whoever comes next, and said.
func TestALaterCommandFinishesWhatIsOverdue(t *testing.T) {
	l := newLaptop(t)
	for _, tt := range []struct {
		name, stdin string
		args        []string
	}{
		{"by-list", "", []string{"list"}},
		{"by-show", "", []string{"show", "by-show"}},
		{"by-schedule", "", []string{"schedule", "by-schedule", "--every", "30d"}},
		{"by-revoke-x", "", []string{"revoke", "by-revoke-x", "--version", "1", "--now", "--reason", "drill"}},
		{"by-add-xyz", aKey(99), []string{"add", "by-add-xyz"}},
	} {
		l.left(tt.name)
		_, said := l.runs(tt.stdin, append([]string{"keys"}, tt.args...)...)
		want := "postern: note: the rotation of " + tt.name + " was overdue and went on: " + tt.name + ": rotated to version 2 in dev, px_test\n"
		if !strings.Contains(said, want) {
			t.Errorf("keys %s said %q", strings.Join(tt.args, " "), said)
		}
		i, err := l.Show(t.Context(), tt.name)
		if err != nil || i.Rotation != nil || len(i.Overdue) > 0 || i.Versions[len(i.Versions)-1].Readable {
			t.Errorf("%+v, %v", i, err)
		}
		if _, said := l.runs("", "keys", "show", tt.name); said != "" {
			t.Errorf("keys show, once all was done, said %q", said)
		}
	}
}

// lenient is a store whose policy lets nobody destroy.
type lenient struct{ store.Store }

func (lenient) Destroy(_ context.Context, path string, _ ...int) error {
	return fmt.Errorf("destroy %s: %w", path, store.ErrForbidden)
}

// What the caller may not do stands open, and whoever
// may does it, with the next look.
func TestWhatOthersMayDo(t *testing.T) {
	l := newLaptop(t)
	l.add("perplexity", 1)
	l.add("perplexity", 2)
	whole := l.Store
	l.Store = lenient{whole}
	r, err := l.Revoke(t.Context(), "perplexity", keys.RevokeOptions{Reason: "drill"})
	if err != nil || len(r.Destroyed) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if out, said := l.runs("", "keys", "show", "perplexity"); !strings.Contains(said, "postern: note: perplexity: this was overdue and is done: version 2 is compromised and not yet destroyed in the store") || strings.Contains(out, "overdue") {
		t.Errorf("%s%s", out, said)
	}
	l.Store = whole
	i, err := l.Show(t.Context(), "perplexity")
	if err != nil || i.Versions[0].Readable || len(i.Overdue) > 0 {
		t.Errorf("%+v, %v", i, err)
	}
}
