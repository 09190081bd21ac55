package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
)

// vendor is a provider that makes keys, in memory.
type vendor struct {
	mu      sync.Mutex
	made    map[string]string // id → label of what lives
	creates map[string]int    // by label
	n       int
	// hang keeps Create of labels that contain it waiting for ever.
	hang string
	// refuse makes it fail for a while.
	refuse error
}

func newVendor() *vendor { return &vendor{made: map[string]string{}, creates: map[string]int{}} }

func (v *vendor) Create(ctx context.Context, r issuer.Request) (*issuer.Issued, error) {
	v.mu.Lock()
	v.creates[r.Label]++
	hang, refuse := v.hang != "" && strings.Contains(r.Label, v.hang), v.refuse
	v.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if refuse != nil {
		return nil, refuse
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.n++
	id := fmt.Sprint("cred-", v.n)
	v.made[id] = r.Label
	value, err := secret.New(fmt.Appendf(nil, "sk-made-%024d", v.n))
	if err != nil {
		return nil, err
	}
	return &issuer.Issued{ID: id, Fields: map[string]*secret.Value{keys.Field: value}}, nil
}

func (v *vendor) Revoke(_ context.Context, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.made, id)
	return nil
}

func (v *vendor) Sweep(_ context.Context, label string, keep []string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, l := range v.made {
		if l == label && !slices.Contains(keep, id) {
			delete(v.made, id)
		}
	}
	return nil
}

// count is how many credentials were asked for.
func (v *vendor) count() (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.creates {
		n += c
	}
	return n
}

// hall is an environment with a vendor, a store and any number of schedulers.
type hall struct {
	t      *testing.T
	store  store.Store
	vendor *vendor
	log    *bytes.Buffer
	logMu  sync.Mutex
}

func (h *hall) Write(b []byte) (int, error) {
	h.logMu.Lock()
	defer h.logMu.Unlock()
	return h.log.Write(b)
}

func (h *hall) lines(text string) int {
	h.logMu.Lock()
	defer h.logMu.Unlock()
	return strings.Count(h.log.String(), text)
}

func newHall(t *testing.T) *hall {
	t.Helper()
	dir := t.TempDir()
	st, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return &hall{t: t, store: st, vendor: newVendor(), log: &bytes.Buffer{}}
}

// manager works on a scope over st.
func (h *hall) manager(st store.Store, px string) *keys.Manager {
	return &keys.Manager{
		Store: st, Scope: keys.Scope{Environment: "prod", ProxyID: px}, Audit: keys.NewTrail(st, "prod", "boot"),
		Actor: keys.Actor{Name: "server", Source: "test"}, Grace: 11 * time.Second, Poll: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(h, nil)),
		Probe: func(context.Context, string, map[string]*secret.Value) provider.Result {
			return provider.Result{Verdict: rotation.VerdictLive, Status: 200, Meaning: "live"}
		},
	}
}

// add stores a key of the provider that rotates so often; 0: never.
func (h *hall) add(px, name, providerName string, every time.Duration) {
	h.t.Helper()
	m := h.manager(h.store, px)
	v, err := secret.New(fmt.Appendf(nil, "sk-first-%s-%s-000000000000", px, name))
	if err != nil {
		h.t.Fatal(err)
	}
	defer v.Destroy()
	if _, err := m.Add(h.t.Context(), name, v, keys.Meta{Provider: providerName}); err != nil {
		h.t.Fatal(err)
	}
	if every > 0 {
		if err := m.Schedule(h.t.Context(), name, every); err != nil {
			h.t.Fatal(err)
		}
	}
}

// desk is a running scheduler.
type desk struct {
	*scheduler
	stop func()
}

// run starts a scheduler over st with an issuer for the provider openai.
func (h *hall) run(st store.Store) *desk {
	h.t.Helper()
	own := h.manager(st, "")
	own.Issuer = func(name string) issuer.Issuer {
		if name == "openai" {
			return h.vendor
		}
		return nil
	}
	d := &desk{scheduler: newScheduler(own, newMetrics(prometheus.NewRegistry()), own.Logger)}
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.Run(ctx)
	}()
	d.stop = func() {
		cancel()
		<-done
	}
	h.t.Cleanup(d.stop)
	return d
}

// current is the newest version of a key.
func (h *hall) current(px, name string) int {
	h.t.Helper()
	md, err := h.store.Metadata(h.t.Context(), "provider-keys/prod/"+px+"/"+name)
	if err != nil {
		h.t.Fatal(err)
	}
	return md.Current
}

func (h *hall) status(px, name string) keys.Rotation {
	h.t.Helper()
	rot, err := h.manager(h.store, px).Status(h.t.Context(), name)
	if err != nil {
		h.t.Fatal(err)
	}
	return rot
}

// elapse lets time pass.
func elapse(d time.Duration) {
	time.Sleep(d) // the bubble's
	synctest.Wait()
}

// A key is rotated when it is due, from the issuer to the end of the old version, again and again.
func TestDueKeysAreRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.add("px_a", "openai", "openai", time.Hour)
		h.add("px_a", "byok", "openai", 0)
		elapse(50 * time.Minute)
		d := h.run(h.store)
		elapse(3 * time.Minute)
		if n := h.current("px_a", "openai"); n != 1 { // it is due a tenth early at the most
			t.Fatalf("version %d before it is due", n)
		}
		elapse(10 * time.Minute)
		if rot := h.status("px_a", "openai"); rot.Phase != rotation.PhaseDone || rot.To != 2 || rot.Reason != "scheduled" || !rot.Managed {
			t.Fatalf("%+v", rot)
		}
		md, err := h.store.Metadata(t.Context(), "provider-keys/prod/px_a/openai")
		if err != nil || md.Current != 2 || !md.Versions[0].Destroyed {
			t.Errorf("the old version: %+v, %v", md, err)
		}
		elapse(61 * time.Minute)
		if n := h.current("px_a", "openai"); n != 3 {
			t.Errorf("version %d after another hour, want 3", n)
		}
		if len(h.vendor.made) != 1 {
			t.Errorf("the vendor has %v, want the newest alone", h.vendor.made)
		}
		if n := h.current("px_a", "byok"); n != 1 {
			t.Errorf("a key without a schedule has version %d", n)
		}
		if n := testutil.ToFloat64(d.figures.begun.WithLabelValues("ok")); n != 2 {
			t.Errorf("%v rotations counted", n)
		}
		if n := testutil.ToFloat64(d.figures.keys); n != 2 {
			t.Errorf("%v keys counted", n)
		}
		if open, late := testutil.ToFloat64(d.figures.open), testutil.ToFloat64(d.figures.late); open != 0 || late != 0 {
			t.Errorf("%v open, %v overdue", open, late)
		}
	})
}

// However many times were missed while no server ran, one rotation makes up for them.
func TestAMissedScheduleIsCaughtUpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.add("px_a", "openai", "openai", 24*time.Hour)
		elapse(10 * 24 * time.Hour)
		h.run(h.store)
		elapse(20 * time.Minute)
		if n := h.current("px_a", "openai"); n != 2 {
			t.Errorf("version %d, want 2", n)
		}
	})
}

// Two servers over one store: each rotation happens once, whoever does which step.
func TestTwoSchedulers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		for n := range 6 {
			h.add("px_a", fmt.Sprint("key", n), "openai", 24*time.Hour)
		}
		elapse(25 * time.Hour)
		h.run(h.store)
		h.run(h.store)
		elapse(10 * time.Minute)
		for n := range 6 {
			name := fmt.Sprint("key", n)
			if rot := h.status("px_a", name); rot.Phase != rotation.PhaseDone || rot.To != 2 || h.current("px_a", name) != 2 {
				t.Errorf("%s: %+v", name, rot)
			}
		}
		if n := h.vendor.count(); n != 6 || len(h.vendor.made) != 6 {
			t.Errorf("%d credentials were made, %d live, want 6 of each: %v", n, len(h.vendor.made), h.vendor.creates)
		}
	})
}

// Keys whose provider never answers keep no other key waiting, though there are more of them than workers.
func TestStuckKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		for n := range 2 * workers {
			h.add("px_a", fmt.Sprint("stuck", n), "openai", time.Hour)
		}
		h.add("px_b", "fine", "openai", 24*time.Hour)
		h.vendor.hang = "stuck"
		info, err := h.manager(h.store, "px_b").Show(t.Context(), "fine")
		if err != nil {
			t.Fatal(err)
		}
		elapse(time.Until(info.NextDue) - 4*time.Minute) // time enough for the others to get in the way
		d := h.run(h.store)
		for range 40 {
			if h.status("px_b", "fine").Phase == rotation.PhaseDone {
				break
			}
			elapse(time.Minute)
		}
		rot := h.status("px_b", "fine")
		if rot.Phase != rotation.PhaseDone || rot.To != 2 {
			t.Fatalf("%+v", rot)
		}
		if took := h.store.Now().Sub(rot.RequestedAt); took > 25*time.Minute {
			t.Errorf("it took %v beside stuck ones", took)
		}
		if n := testutil.ToFloat64(d.figures.open); n != 2*workers {
			t.Errorf("%v rotations open", n)
		}
	})
}

// Nor do keys that the store never answers about.
func TestAStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		for n := range 2 * workers {
			h.add("px_a", fmt.Sprint("stuck", n), "openai", 0)
		}
		h.add("px_b", "fine", "openai", 0)
		h.run(hanging{h.store})
		if _, err := h.manager(h.store, "px_b").Rotate(t.Context(), "fine", nil, keys.RotateOptions{Managed: true}); err != nil {
			t.Fatal(err)
		}
		elapse(30 * time.Minute)
		if rot := h.status("px_b", "fine"); rot.Phase != rotation.PhaseDone {
			t.Errorf("%+v", rot)
		}
	})
}

type hanging struct{ store.Store }

func (h hanging) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	if strings.Contains(path, "stuck") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return h.Store.Get(ctx, path, version)
}

// A key that fails is tried again, ever less often, and told of once.
func TestAKeyThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.add("px_a", "openai", "openai", 0)
		h.add("px_a", "other", "openai", 0)
		broken := &blindStore{Store: h.store, path: "rotations/prod/px_a/openai"}
		broken.on.Store(true)
		d := h.run(broken)
		elapse(time.Hour)
		if n := broken.asked.Load(); n < 8 || n > 20 {
			t.Errorf("looked %d times in an hour", n)
		}
		if n := h.lines("cannot go on"); n != 1 {
			t.Errorf("told %d times", n)
		}
		if n := testutil.ToFloat64(d.figures.steps.WithLabelValues("ok")); n < 200 {
			t.Errorf("the other key was looked at %v times in an hour", n)
		}
		broken.on.Store(false)
		elapse(maxWait + time.Minute)
		if n := h.lines("can go on"); n != 1 {
			t.Errorf("that it works again was told %d times", n)
		}
	})
}

// blindStore fails for one path.
type blindStore struct {
	store.Store
	path  string
	on    atomic.Bool
	asked atomic.Int64
}

func (b *blindStore) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	if path == b.path && b.on.Load() {
		b.asked.Add(1)
		return nil, fmt.Errorf("get %s: %w", path, store.ErrForbidden)
	}
	return b.Store.Get(ctx, path, version)
}

// What no issuer here can make is reported, not begun.
func TestAKeyThatIsDueWithoutAnIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.add("px_a", "gemini", "gemini", 24*time.Hour)
		elapse(30 * time.Hour)
		d := h.run(h.store)
		elapse(10 * time.Minute)
		if h.current("px_a", "gemini") != 1 || h.status("px_a", "gemini").Phase != rotation.PhaseNone {
			t.Error("something was begun")
		}
		if n := testutil.ToFloat64(d.figures.overdue); n < 5*3600 || n > 7*3600 {
			t.Errorf("overdue for %v s", n)
		}
		if n := testutil.ToFloat64(d.figures.late); n != 1 {
			t.Errorf("%v overdue", n)
		}
		if n := h.lines("should be rotated by now"); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
}

// A request is looked at when the scheduler is told of it; else in its turn.
func TestRequestedRotations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.add("px_a", "openai", "openai", 0)
		h.add("px_b", "openai", "openai", 0)
		d := h.run(h.store)
		elapse(time.Minute)
		for _, px := range []string{"px_a", "px_b"} {
			if _, err := h.manager(h.store, px).Rotate(t.Context(), "openai", nil, keys.RotateOptions{Managed: true}); err != nil {
				t.Fatal(err)
			}
		}
		d.Wake("px_a", "openai")
		elapse(time.Second)
		if rot := h.status("px_a", "openai"); rot.To != 2 {
			t.Errorf("not begun: %+v", rot)
		}
		elapse(15 * time.Second)
		if rot := h.status("px_b", "openai"); rot.To != 2 {
			t.Errorf("not found in its turn: %+v", rot)
		}
		d.Wake("px_a", "nothing") // what is not there does no harm
		elapse(time.Minute)
		if rot := h.status("px_a", "openai"); rot.Phase != rotation.PhaseDone {
			t.Errorf("%+v", rot)
		}
	})
}

// A listing that fails leaves those that are known looked after.
func TestAListingThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.add("px_a", "openai", "openai", 0)
		lists := &noList{Store: h.store}
		d := h.run(lists)
		elapse(2 * time.Minute)
		lists.on.Store(true)
		if _, err := h.manager(h.store, "px_a").Rotate(t.Context(), "openai", nil, keys.RotateOptions{Managed: true}); err != nil {
			t.Fatal(err)
		}
		elapse(5 * time.Minute)
		if rot := h.status("px_a", "openai"); rot.Phase != rotation.PhaseDone {
			t.Errorf("%+v", rot)
		}
		if testutil.ToFloat64(d.figures.steps.WithLabelValues("list_failed")) == 0 {
			t.Error("not counted")
		}
	})
}

type noList struct {
	store.Store
	on atomic.Bool
}

func (n *noList) List(ctx context.Context, folder string) ([]string, error) {
	if n.on.Load() && strings.HasPrefix(folder, "provider-keys/") {
		return nil, errors.Join(store.ErrUnavailable)
	}
	return n.Store.List(ctx, folder)
}

// The greater the environment, the fewer looks at each key: the store's share stays small.
func TestHowOftenTheSchedulerLooks(t *testing.T) {
	s := newScheduler(nil, nil, quiet())
	for keys, most := range map[int]float64{1: 1, 10: 2, 100: 8, 1000: 8, 4000: 8} {
		if perSecond := float64(keys) / s.idle(keys).Seconds(); perSecond > most {
			t.Errorf("%d keys: %.1f looks a second", keys, perSecond)
		}
	}
}
