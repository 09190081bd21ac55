package sync

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	stdsync "sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	keyPath = "provider-keys/prod/px_acme/openai"
	record  = "rotations/prod/px_acme/openai"
	halt2   = "halts/prod/px_acme/openai-2"
)

func key(n int) string { return fmt.Sprintf("sk-test-%024d", n) }

// verdictSlow is live, three seconds later, whatever the context says.
const verdictSlow rotation.Verdict = 99

// logs is a writer that tests may read while it is written.
type logs struct {
	mu stdsync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rig is an agent's surroundings; all its Loops share the store.
type rig struct {
	t      *testing.T
	store  *memory
	redact *redact.Set
	reg    *prometheus.Registry
	m      *Metrics
	logs   *logs

	mu      stdsync.Mutex
	verdict map[string]rotation.Verdict // by key; default live
	probes  []string
}

// agent is one running Loop.
type agent struct {
	*rig
	*Loop
	key     *keyring.Key
	journal *journal
	cancel  context.CancelFunc
	done    chan struct{}
	retired func() int
}

func inBubble(t *testing.T, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		known, err := redact.New(redact.Options{})
		if err != nil {
			t.Fatal(err)
		}
		reg := prometheus.NewRegistry()
		f(&rig{t: t, store: newMemory(), redact: known, reg: reg, m: NewMetrics(reg), logs: &logs{}, verdict: map[string]rotation.Verdict{}})
	})
}

// probe is the provider: it says what the test put down, and that redaction knows the key already.
func (r *rig) probe(_ context.Context, fields map[string]*secret.Value) provider.Result {
	res := provider.Result{Meaning: "unknown: the key was wiped"}
	fields[keyring.KeyField].Use(func(b []byte) {
		if got := string(r.redact.Text(slices.Clone(b))); got != redact.Redacted {
			r.t.Errorf("a key was used before redaction knew it: %s", got)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.probes = append(r.probes, string(b))
		v, ok := r.verdict[string(b)]
		if v == verdictSlow {
			time.Sleep(3 * time.Second)
			v = rotation.VerdictLive
		}
		if !ok {
			v = rotation.VerdictLive
		}
		res = provider.Result{Verdict: v, Status: 200, Meaning: "as the test says"}
	})
	return res
}

func (r *rig) says(key string, v rotation.Verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verdict[key] = v
}

func (r *rig) probed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.probes)
}

// start runs a Loop until the test ends; change may alter its options.
func (r *rig) start(change func(*Options)) *agent {
	r.t.Helper()
	a := &agent{rig: r, key: keyring.NewKey("openai"), journal: &journal{}, done: make(chan struct{})}
	var mu stdsync.Mutex
	retired := 0
	o := Options{
		Name: "openai", Source: Source{Path: keyPath}, Environment: "prod", ProxyID: "px_acme",
		Store: r.store, Key: a.key, Redact: r.redact, Audit: a.journal, Probe: r.probe, KeyPrefix: "sk-test-",
		Grace: 10 * time.Second, RejectRatio: 0.05, Poll: 5 * time.Second, MaxStale: time.Hour,
		Logger: slog.New(slog.NewTextHandler(r.logs, nil)), Metrics: r.m, Rand: func() float64 { return 0.5 },
		OnRetired: func() { mu.Lock(); retired++; mu.Unlock() },
	}
	if change != nil {
		change(&o)
	}
	a.retired = func() int { mu.Lock(); defer mu.Unlock(); return retired }
	a.Loop = New(o)
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() {
		defer close(a.done)
		a.Run(ctx)
	}()
	r.t.Cleanup(func() { cancel(); <-a.done })
	synctest.Wait()
	return a
}

func (a *agent) stop() {
	a.cancel()
	<-a.done
}

// pass lets time go by and everything that is due then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (a *agent) shares(want string) {
	a.t.Helper()
	var got []string
	for _, e := range a.key.Entries() {
		got = append(got, fmt.Sprintf("%d:%d", e.Version.Number(), e.Weight))
	}
	if g := strings.Join(got, " "); g != want {
		a.t.Errorf("shares %q, want %q", g, want)
	}
}

func (a *agent) recorded(want ...string) {
	a.t.Helper()
	if got := a.journal.told(); !slices.Equal(got, want) {
		a.t.Errorf("recorded\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (a *agent) gauge(name, want string) {
	a.t.Helper()
	if err := testutil.GatherAndCompare(a.reg, strings.NewReader(want), name); err != nil {
		a.t.Error(err)
	}
}

// counted asserts postern_rotations_total.
func (r *rig) counted(outcome string, want float64) {
	r.t.Helper()
	if got := testutil.ToFloat64(r.m.rotations.WithLabelValues("openai", outcome)); got != want {
		r.t.Errorf("%v rotations %s, want %v", got, outcome, want)
	}
}

func (r *rig) logged(text string) int { return strings.Count(r.logs.String(), text) }

func isShut(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func reads(v *keyring.Version) bool { return v.Field(keyring.KeyField).Use(func([]byte) {}) }

// rotated is an agent whose version 2 has just taken over.
func (r *rig) rotated(change func(*Options)) *agent {
	r.t.Helper()
	r.store.write(keyPath, key(1))
	a := r.start(change)
	r.store.write(keyPath, key(2))
	pass(5 * time.Second)
	a.journal.told()
	return a
}
