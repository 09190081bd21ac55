package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// stage is a store on a clock of its own, with agents that follow what is in it.
type stage struct {
	t    *testing.T
	real store.Store

	mu  sync.Mutex
	now time.Time

	verdicts map[string]rotation.Verdict // what the provider says of a value; live if it says nothing
	agents   []*pod
	// strict: after every write each agent, and one that starts just then, must serve.
	strict bool
}

func newStage(t *testing.T) *stage {
	t.Helper()
	g := &stage{t: t, now: noon, verdicts: map[string]rotation.Verdict{}}
	dir := t.TempDir()
	st, err := sealed.Open(sealed.Options{
		File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true,
		Now: g.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	g.real = st
	return g
}

// newHeapStage is the same without a file, for what is done a hundred times.
func newHeapStage(t *testing.T) *stage {
	t.Helper()
	g := &stage{t: t, now: noon, verdicts: map[string]rotation.Verdict{}}
	g.real = newHeap(t, g.clock)
	return g
}

// clock moves on a little with every look, so that no two versions are of one moment.
func (g *stage) clock() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now.IsZero() { // the store's own
		return g.real.Now()
	}
	g.now = g.now.Add(time.Microsecond)
	return g.now
}

func (g *stage) pass(d time.Duration) {
	g.mu.Lock()
	g.now = g.now.Add(d)
	g.mu.Unlock()
	g.observe()
}

func (g *stage) value(s string) *secret.Value {
	g.t.Helper()
	v, err := secret.New([]byte(s))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(v.Destroy)
	return v
}

// probe is what the provider says.
func (g *stage) probe(_ context.Context, _ string, fields map[string]*secret.Value) provider.Result {
	text := ""
	fields[Field].Use(func(b []byte) { text = string(b) })
	return g.verdict(text)
}

func (g *stage) verdict(text string) provider.Result {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch v, said := g.verdicts[text]; {
	case said && v == rotation.VerdictDead:
		return provider.Result{Verdict: v, Status: 401, Meaning: "missing, malformed or revoked"}
	case said && v == rotation.VerdictUnknown:
		return provider.Result{Verdict: v, Meaning: "unknown: no answer", Err: errors.New("dial tcp: connection refused")}
	}
	return provider.Result{Verdict: rotation.VerdictLive, Status: 200, Meaning: "live"}
}

func (g *stage) says(n int, v rotation.Verdict) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.verdicts[key(n)] = v
}

// process is a Manager of its own, over a wire to the store that can be cut.
func (g *stage) process(actor string) *process {
	w := &wire{Store: g.real, g: g}
	p := &process{wire: w, book: &ledger{}}
	p.book.before = func(e audit.Event) error { return w.on("audit " + e.Event + " " + e.Outcome) }
	p.Manager = &Manager{
		Store: w, Scope: Scope{"prod", "px_acme"}, Audit: p.book, Actor: Actor{Name: actor, Source: "cli@" + actor}, Probe: g.probe,
		Grace: 10 * time.Minute, Poll: 5 * time.Second,
	}
	return p
}

type process struct {
	*Manager
	wire *wire
	book *ledger
}

// wire is the way to the store. The process dies before or after a write, when it is told to.
type wire struct {
	store.Store
	g *stage

	mu     sync.Mutex
	writes []string
	cut    int  // the write that is the last, from 1; 0: none
	after  bool // it is made still
	dead   bool
	// before is asked before every write.
	before func(what string) error
}

var errCut = fmt.Errorf("killed: %w", store.ErrUnavailable)

func (w *wire) on(what string) error {
	w.mu.Lock()
	dead, before := w.dead, w.before
	if !dead {
		w.writes = append(w.writes, what)
		if w.cut == len(w.writes) && !w.after {
			w.dead, dead = true, true
		}
	}
	w.mu.Unlock()
	if dead {
		return errCut
	}
	if before != nil {
		return before(what)
	}
	return nil
}

func (w *wire) done(err error) error {
	w.mu.Lock()
	if w.cut != 0 && w.cut <= len(w.writes) {
		w.dead = true
	}
	dead := w.dead
	w.mu.Unlock()
	w.g.observe()
	if dead {
		return errCut
	}
	return err
}

func (w *wire) alive() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return errCut
	}
	return nil
}

func (w *wire) Get(ctx context.Context, path string, n int) (*store.Secret, error) {
	if err := w.alive(); err != nil {
		return nil, err
	}
	return w.Store.Get(ctx, path, n)
}

func (w *wire) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	if err := w.alive(); err != nil {
		return nil, err
	}
	return w.Store.Metadata(ctx, path)
}

func (w *wire) Put(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	if err := w.on("put " + path); err != nil {
		return store.Version{}, err
	}
	v, err := w.Store.Put(ctx, path, f, cas)
	return v, w.done(err)
}

func (w *wire) Patch(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	if err := w.on("patch " + path); err != nil {
		return store.Version{}, err
	}
	v, err := w.Store.Patch(ctx, path, f, cas)
	return v, w.done(err)
}

func (w *wire) Destroy(ctx context.Context, path string, versions ...int) error {
	if err := w.on(fmt.Sprint("destroy ", path, " ", versions)); err != nil {
		return err
	}
	return w.done(w.Store.Destroy(ctx, path, versions...))
}

// add stores a version as an operator does by hand, unseen by any wire.
func (g *stage) add(n int) {
	g.t.Helper()
	path := "provider-keys/prod/px_acme/openai"
	f := map[string]*secret.Value{Field: g.value(key(n))}
	if md, err := g.real.Metadata(g.t.Context(), path); err != nil || md.Current == 0 {
		if err := g.real.SetMetadata(g.t.Context(), path, map[string]string{"environment": "prod", "provider": "openai"}, 100); err != nil {
			g.t.Fatal(err)
		}
		f["organization"] = g.value("org-1234")
	}
	if _, err := g.real.Patch(g.t.Context(), path, f, store.Any); errors.Is(err, store.ErrNotFound) {
		_, err = g.real.Put(g.t.Context(), path, f, store.Any)
		if err != nil {
			g.t.Fatal(err)
		}
	} else if err != nil {
		g.t.Fatal(err)
	}
	g.observe()
}

func (g *stage) metadata() *store.Metadata {
	g.t.Helper()
	md, err := g.real.Metadata(g.t.Context(), "provider-keys/prod/px_acme/openai")
	if err != nil {
		g.t.Fatal(err)
	}
	return md
}

func (g *stage) record() *rotation.Record {
	g.t.Helper()
	fields, _, err := store.GetText(g.t.Context(), g.real, "rotations/prod/px_acme/openai")
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		g.t.Fatal(err)
	}
	r, err := rotation.DecodeRecord(fields)
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// holds asserts what a readable version's key is, and that it kept the other field.
func (g *stage) holds(version, n int) {
	g.t.Helper()
	sec, err := g.real.Get(g.t.Context(), "provider-keys/prod/px_acme/openai", version)
	if err != nil {
		g.t.Fatal(err)
	}
	defer sec.Destroy()
	if !sec.Fields[Field].Equal(g.value(key(n))) || !sec.Fields["organization"].Equal(g.value("org-1234")) {
		g.t.Errorf("version %d does not hold what was to be written", version)
	}
}

// readable lists the readable versions.
func (g *stage) readable() (n []int) {
	g.t.Helper()
	for _, v := range g.metadata().Versions {
		if v.Readable() {
			n = append(n, v.Number)
		}
	}
	return n
}

// veto writes the halt that an agent writes.
func (g *stage) veto(id rotation.ID, reason string) {
	g.t.Helper()
	h := rotation.Halt{To: id, Reason: reason, Served: 20, Failed: 7, At: g.clock()}
	f, err := h.Encode()
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := store.PutText(g.t.Context(), g.real, fmt.Sprintf("halts/prod/px_acme/openai-%d", id.Number), f, 0); err != nil {
		g.t.Fatal(err)
	}
	g.observe()
}

// finish lets time pass, a process advancing, until nothing more happens by itself.
func (g *stage) finish(p *process) Rotation {
	g.t.Helper()
	for range 400 {
		rot, err := p.Advance(g.t.Context(), "openai")
		if err != nil {
			g.t.Fatalf("advance: %v", err)
		}
		if rot.Closed || rot.Phase == rotation.PhaseNone || rot.Next.IsZero() {
			return rot
		}
		g.pass(min(max(rot.Next.Sub(g.clock()), time.Second), 20*time.Second))
	}
	rot, err := p.Status(g.t.Context(), "openai")
	g.t.Fatalf("the rotation does not end: %+v, %v", rot, err)
	return rot
}

// maker is an issuer of the tests.
type maker struct {
	g *stage

	mu      sync.Mutex
	next    int
	alive   map[string]string // id → label
	calls   []string
	fail    func(call string) error
	created func() // after a credential was made
}

func newMaker(g *stage) *maker { return &maker{g: g, next: 100, alive: map[string]string{}} }

func (m *maker) call(what string) error {
	m.mu.Lock()
	m.calls = append(m.calls, what)
	fail := m.fail
	m.mu.Unlock()
	if fail != nil {
		return fail(what)
	}
	return nil
}

func (m *maker) Create(_ context.Context, r issuer.Request) (*issuer.Issued, error) {
	if err := m.call("create " + r.Label + " instead of " + r.Current); err != nil {
		return nil, err
	}
	m.mu.Lock()
	id := fmt.Sprintf("cred-%d", m.next)
	v, err := secret.New([]byte(key(m.next)))
	m.next++
	m.alive[id] = r.Label
	created := m.created
	m.mu.Unlock()
	if created != nil {
		created()
	}
	return &issuer.Issued{ID: id, Fields: map[string]*secret.Value{Field: v}}, err
}

func (m *maker) Revoke(_ context.Context, id string) error {
	if err := m.call("revoke " + id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.alive, id)
	return nil
}

func (m *maker) Sweep(_ context.Context, label string, keep []string) error {
	if err := m.call("sweep " + label); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.alive, func(id, l string) bool { return l == label && !slices.Contains(keep, id) })
	return nil
}

func (m *maker) living() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.alive))
}

// server is a process that makes credentials.
func (g *stage) server(name string, m *maker) *process {
	p := g.process(name)
	p.Issuer = func(string) issuer.Issuer { return m }
	return p
}

// unreadable is the store of one who may write keys and not read them.
type unreadable struct{ store.Store }

func (u unreadable) Get(ctx context.Context, path string, n int) (*store.Secret, error) {
	if strings.HasPrefix(path, "provider-keys/") {
		return nil, fmt.Errorf("%s: %w", path, store.ErrForbidden)
	}
	return u.Store.Get(ctx, path, n)
}
