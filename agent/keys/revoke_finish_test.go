package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// vendor is an issuer that only revokes.
type vendor struct {
	mu      sync.Mutex
	err     error
	revoked []string
}

func (v *vendor) Create(context.Context, issuer.Request) (*issuer.Issued, error) {
	return nil, issuer.ErrUnsupported
}

func (v *vendor) Sweep(context.Context, string, []string) error { return nil }

func (v *vendor) Revoke(_ context.Context, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return v.err
	}
	if !slices.Contains(v.revoked, id) {
		v.revoked = append(v.revoked, id)
	}
	return nil
}

// issues makes the operator a server with this vendor for openai.
func (o *operator) issues(v *vendor) {
	o.Issuer = func(name string) issuer.Issuer {
		if name != "openai" {
			return nil
		}
		return v
	}
}

func TestRevokeAtTheProvider(t *testing.T) {
	o := newOperator(t)
	v := &vendor{}
	o.issues(v)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	o.writes("openai", rotation.Record{Closed: true, Phase: rotation.PhaseDone, Versions: []rotation.VersionRecord{
		{ID: o.id("openai", 1), ProviderID: "svc_1"}, {ID: o.id("openai", 2), ProviderID: "svc_2"},
	}})
	r := o.revoke("openai", RevokeOptions{})
	if !slices.Equal(r.AtProvider, []int{2}) || len(r.Warnings) != 0 || !slices.Equal(v.revoked, []string{"svc_2"}) {
		t.Errorf("%+v, %q", r, v.revoked)
	}
	o.gone("openai", "1", "2 compromised destroyed revoked")
	if rec := o.rec("openai"); rec.Phase != rotation.PhaseDone || recorded(rec, o.id("openai", 1)).ProviderID != "svc_1" {
		t.Errorf("%+v", rec)
	}
}

// What fails stays visible and is tried again, at its time, or at once by another Revoke.
func TestARevocationThatIsNotFinished(t *testing.T) {
	o := newOperator(t)
	v := &vendor{err: fmt.Errorf("status 500: %w", issuer.ErrLimited)}
	o.issues(v)
	o.add("openai", 1, Meta{})
	o.writes("openai", rotation.Record{Closed: true, Versions: []rotation.VersionRecord{{ID: o.id("openai", 1), ProviderID: "svc_1"}}})
	o.store.before = func(method string) error {
		if method == "destroy" {
			return fmt.Errorf("destroy: %w", store.ErrUnavailable)
		}
		return nil
	}
	r := o.revoke("openai", RevokeOptions{})
	if len(r.AtProvider) != 0 || len(r.Destroyed) != 0 || len(r.Warnings) != 2 || !strings.Contains(r.Warnings[0], "status 500") || !strings.Contains(r.Warnings[1], "destroy: ") {
		t.Errorf("%+v", r)
	}
	rec := recorded(o.rec("openai"), o.id("openai", 1))
	if rec.State != rotation.Compromised || rec.Attempts == 0 || rec.Trouble == "" || !rec.Next.After(o.store.Now()) {
		t.Errorf("%+v", rec)
	}
	if i, err := o.Show(t.Context(), "openai"); err != nil || len(i.Overdue) != 1 || !strings.HasPrefix(i.Overdue[0], "version 1 is compromised and not yet revoked at the provider nor destroyed in the store: ") {
		t.Errorf("%q, %v", i.Overdue, err)
	}
	// Not before its time.
	o.store.before, v.err = nil, nil
	e, _ := o.readRecord(t.Context(), "openai")
	if changed, warnings := o.finishRevocations(t.Context(), "openai", e); changed || len(warnings) != 0 || len(v.revoked) != 0 {
		t.Errorf("%v, %q", changed, warnings)
	}
	e.Version(rotation.ID{Number: 9}).State = rotation.Compromised // which is due
	if changed, warnings := o.finishRevocations(t.Context(), "openai", e); !changed || len(warnings) != 0 || len(v.revoked) != 0 || e.Versions[0].Destroyed || !e.Versions[1].Destroyed {
		t.Errorf("%v, %q, %+v", changed, warnings, e.Versions)
	}
	if r := o.revoke("openai", RevokeOptions{Versions: []int{1}}); len(r.AtProvider) != 1 || len(r.Destroyed) != 1 || len(r.Warnings) != 0 {
		t.Errorf("%+v", r)
	}
	if rec := recorded(o.rec("openai"), o.id("openai", 1)); rec.Trouble != "" || rec.Attempts != 0 || !rec.Next.IsZero() {
		t.Errorf("%+v", rec)
	}
	o.gone("openai", "1 compromised destroyed revoked")
}

// Waits between attempts grow; what somebody must see to first waits longest.
func TestHowLongAFailedRevocationWaits(t *testing.T) {
	o := newOperator(t)
	v := &vendor{err: issuer.ErrLimited}
	o.issues(v)
	o.add("openai", 1, Meta{})
	o.revoke("openai", RevokeOptions{})
	version := func() *rotation.VersionRecord {
		return &rotation.VersionRecord{ID: o.id("openai", 1), State: rotation.Compromised, ProviderID: "svc_1", Destroyed: true}
	}
	waits := func(w *rotation.VersionRecord) time.Duration {
		w.Next = time.Time{}
		e := &entry{Record: rotation.Record{Versions: []rotation.VersionRecord{*w}}}
		if changed, warnings := o.finishRevocations(t.Context(), "openai", e); !changed || len(warnings) != 1 {
			t.Fatalf("%v, %q", changed, warnings)
		}
		*w = e.Versions[0]
		return w.Next.Sub(o.store.Now()).Round(time.Minute)
	}
	w := version()
	var got []time.Duration
	for range 9 {
		got = append(got, waits(w))
	}
	if want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60}; !slices.EqualFunc(got, want, func(a, b time.Duration) bool { return a == b*time.Minute }) {
		t.Errorf("%v", got)
	}
	for _, v.err = range []error{issuer.ErrRefused, issuer.ErrUnsupported} {
		if d := waits(version()); d != time.Hour {
			t.Errorf("%v: %v", v.err, d)
		}
	}
}

// Somebody without the rights, or away from the server, is told who does it.
func TestRevokeWithFewerRights(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.writes("openai", rotation.Record{Closed: true, Versions: []rotation.VersionRecord{{ID: o.id("openai", 1), ProviderID: "svc_1"}}})
	o.store.before = func(method string) error {
		if method == "destroy" {
			return fmt.Errorf("destroy: %w", store.ErrForbidden)
		}
		return nil
	}
	r := o.revoke("openai", RevokeOptions{})
	if len(r.Warnings) != 2 || !strings.Contains(r.Warnings[0], "`postern server` does it") || !strings.Contains(r.Warnings[1], "Security") {
		t.Errorf("%q", r.Warnings)
	}
	if rec := recorded(o.rec("openai"), o.id("openai", 1)); rec.Attempts != 0 || !rec.Next.IsZero() {
		t.Errorf("the server would wait: %+v", rec)
	}
	o.store.before = func(method string) error {
		if method == "rotations" {
			return fmt.Errorf("rotations: %w", store.ErrForbidden)
		}
		return nil
	}
	o.trail.told()
	if _, err := o.Revoke(t.Context(), "openai", RevokeOptions{}); !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "openai is not revoked") {
		t.Errorf("%v", err)
	}
	if got := o.trail.told(); !slices.Equal(got, []string{"key.revoke intent openai 1", "key.revoke failed openai 1"}) {
		t.Errorf("%q", got)
	}
}

// A later version that has a revoked one's number is another key.
func TestANumberThatWasRevokedOnce(t *testing.T) {
	o := newOperator(t)
	v := &vendor{}
	o.issues(v)
	o.add("openai", 1, Meta{})
	old := o.id("openai", 1)
	old.Created = old.Created.Add(-time.Hour)
	o.writes("openai", rotation.Record{Closed: true, Versions: []rotation.VersionRecord{{ID: old, State: rotation.Compromised, ProviderID: "svc_old"}}})
	e, _ := o.readRecord(t.Context(), "openai")
	if changed, warnings := o.finishRevocations(t.Context(), "openai", e); !changed || len(warnings) != 0 || !e.Versions[0].Destroyed || !e.Versions[0].Revoked {
		t.Errorf("%v, %q, %+v", changed, warnings, e.Versions)
	}
	o.holds("openai", map[string]string{Field: key(1)})
	// Nor is the key that was removed altogether.
	if err := o.store.Remove(t.Context(), o.Scope.Path("openai")); err != nil {
		t.Fatal(err)
	}
	e.Versions[0].Destroyed = false
	if changed, _ := o.finishRevocations(t.Context(), "openai", e); !changed || !e.Versions[0].Destroyed {
		t.Errorf("%+v", e.Versions)
	}
}

// So it is if the server comes next.
func TestTheServerFinishesARevocation(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	o.writes("openai", rotation.Record{Closed: true, Phase: rotation.PhaseDone, To: o.id("openai", 2), Versions: []rotation.VersionRecord{{ID: o.id("openai", 2), ProviderID: "svc_2"}}})
	o.store.before = func(method string) error {
		if method == "destroy" {
			return store.ErrForbidden
		}
		return nil
	}
	o.revoke("openai", RevokeOptions{})
	o.gone("openai", "1", "2 compromised")
	o.store.before = nil
	server := o.as("prod", "px_acme")
	v := &vendor{}
	server.issues(v)
	if _, err := server.Advance(t.Context(), "openai"); err != nil {
		t.Fatal(err)
	}
	o.gone("openai", "1", "2 compromised destroyed revoked")
	if !slices.Equal(v.revoked, []string{"svc_2"}) {
		t.Errorf("%q", v.revoked)
	}
}
