package keys

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

func (o *operator) rec(name string) *rotation.Record {
	o.t.Helper()
	e, err := o.readRecord(o.t.Context(), name)
	if err != nil {
		o.t.Fatal(err)
	}
	return &e.Record
}

func (o *operator) revoke(name string, opts RevokeOptions) Revoked {
	o.t.Helper()
	r, err := o.Revoke(o.t.Context(), name, opts)
	if err != nil {
		o.t.Fatal(err)
	}
	return r
}

// gone asserts what is left of versions, as in "2 compromised destroyed revoked".
func (o *operator) gone(name string, want ...string) {
	o.t.Helper()
	r := o.rec(name)
	var got []string
	for _, v := range o.metadata(name).Versions {
		s := fmt.Sprint(v.Number)
		d := recorded(r, idOf(v))
		if d.State != rotation.Unknown {
			s += " " + d.State.String()
		}
		if d.Destroyed != v.Destroyed {
			s += " (the record errs)"
		}
		if v.Destroyed {
			s += " destroyed"
		}
		if d.Revoked {
			s += " revoked"
		}
		got = append(got, s)
	}
	if !slices.Equal(got, want) {
		o.t.Errorf("%q, want %q", got, want)
	}
}

func TestRevokeTheVersionInUse(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	o.trail.told()
	r := o.revoke("openai", RevokeOptions{Reason: "it leaked"})
	if r.ID != "prod.px_acme.openai" || !slices.Equal(r.Versions, []int{2}) || !slices.Equal(r.Destroyed, []int{2}) || len(r.AtProvider) != 0 || r.Remaining != 1 {
		t.Errorf("%+v", r)
	}
	if len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], "revoke version 2 of openai at openai by hand") {
		t.Errorf("%q", r.Warnings)
	}
	o.gone("openai", "1", "2 compromised destroyed")
	if rec := o.rec("openai"); !rec.Closed || rec.Phase != rotation.PhaseNone {
		t.Errorf("%+v", rec)
	}
	if e := o.trail.events[1]; e.Reason != "it leaked" || e.Detail["entity_id"] != "e-ada" {
		t.Errorf("%+v", e)
	}
	if got := o.trail.told(); !slices.Equal(got, []string{"key.revoke intent openai 2", "key.revoke ok openai 2"}) {
		t.Errorf("%q", got)
	}
	// What was destroyed, or revoked before, does not remain.
	o.add("openai", 3, Meta{})
	o.add("openai", 4, Meta{})
	if err := o.store.Destroy(t.Context(), o.Scope.Path("openai"), 3); err != nil {
		t.Fatal(err)
	}
	if r := o.revoke("openai", RevokeOptions{}); !slices.Equal(r.Versions, []int{4}) || r.Remaining != 1 {
		t.Errorf("%+v", r)
	}
	// The next emergency takes the one that is left; then there is none.
	if r := o.revoke("openai", RevokeOptions{}); !slices.Equal(r.Versions, []int{1}) || r.Remaining != 0 {
		t.Errorf("%+v", r)
	}
	if rec := o.rec("openai"); len(rec.Versions) != 3 {
		t.Errorf("%+v", rec.Versions)
	}
	i, err := o.Show(t.Context(), "openai")
	if err != nil || i.Current() != (Version{}) || len(i.Overdue) != 0 {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestRevokeByNumber(t *testing.T) {
	o := newOperator(t)
	for n := range 5 {
		o.add("openai", n, Meta{})
	}
	r := o.revoke("openai", RevokeOptions{Versions: []int{4, 1, 2, 4}})
	if !slices.Equal(r.Versions, []int{1, 2, 4}) || !slices.Equal(r.Destroyed, []int{1, 2, 4}) || r.Remaining != 2 || !strings.HasPrefix(r.Warnings[0], "revoke version 1-2, 4 ") {
		t.Errorf("%+v", r)
	}
	if e := o.trail.events[len(o.trail.events)-1]; e.Version != 0 || e.Detail["versions"] != "1-2, 4" {
		t.Errorf("%+v", e)
	}
	for _, versions := range [][]int{{3, 6}, {0}, {-1}} {
		if _, err := o.Revoke(t.Context(), "openai", RevokeOptions{Versions: versions}); err == nil || !strings.Contains(err.Error(), "`postern keys show openai`") {
			t.Errorf("%v: %v", versions, err)
		}
	}
	o.gone("openai", "1 compromised destroyed", "2 compromised destroyed", "3", "4 compromised destroyed", "5")
	r = o.revoke("openai", RevokeOptions{All: true})
	if len(r.Versions) != 5 || len(r.Destroyed) != 5 || r.Remaining != 0 || !strings.HasPrefix(r.Warnings[0], "revoke version 3, 5 ") {
		t.Errorf("%+v", r)
	}
	if _, err := o.Revoke(t.Context(), "gemini", RevokeOptions{}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a key that is not there: %v", err)
	}
	if _, err := o.Revoke(t.Context(), "../openai", RevokeOptions{}); err == nil {
		t.Error("a path is a name")
	}
	// Only a description is there, as of an Add that was cut off.
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("gemini"), nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Revoke(t.Context(), "gemini", RevokeOptions{All: true}); err == nil || !strings.Contains(err.Error(), "has no version") {
		t.Errorf("%v", err)
	}
}

// An agent serves on what somebody destroyed by hand, so that too can be revoked.
func TestRevokeWhatIsDestroyedAlready(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	if err := o.store.Destroy(t.Context(), o.Scope.Path("openai"), 1); err != nil {
		t.Fatal(err)
	}
	r := o.revoke("openai", RevokeOptions{})
	if !slices.Equal(r.Versions, []int{1}) || !slices.Equal(r.Destroyed, []int{1}) || len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], "revoke version 1 ") {
		t.Errorf("%+v", r)
	}
	o.gone("openai", "1 compromised destroyed")
}

func TestRevokeAWholeScope(t *testing.T) {
	o := newOperator(t)
	for n, name := range []string{"anthropic", "gemini", "mistral", "openai"} {
		o.add(name, 2*n, Meta{})
		o.add(name, 2*n+1, Meta{})
	}
	o.as("prod", "px_other").add("openai", 90, Meta{})
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("empty"), nil, 0); err != nil {
		t.Fatal(err)
	}
	o.store.read = func(method, path string) error {
		if method == "metadata" && path == o.Scope.Path("gemini") {
			return fmt.Errorf("%s: %w", path, store.ErrForbidden)
		}
		return nil
	}
	done, err := o.RevokeScope(t.Context(), "the laptop was stolen")
	if !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "gemini") || len(done) != 3 {
		t.Errorf("%+v, %v", done, err)
	}
	for i, name := range []string{"anthropic", "mistral", "openai"} {
		if r := done[i]; r.Name != name || !slices.Equal(r.Destroyed, []int{1, 2}) || r.Remaining != 0 {
			t.Errorf("%+v", r)
		}
	}
	o.store.read = nil
	o.as("prod", "px_other").holds("openai", map[string]string{Field: key(90)})
	o.holds("gemini", map[string]string{Field: key(3)})
	if done, err := o.RevokeScope(t.Context(), ""); err != nil || len(done) != 4 {
		t.Errorf("%+v, %v", done, err)
	}
	if done, err := o.as("prod", "px_nobody").RevokeScope(t.Context(), ""); err != nil || len(done) != 0 {
		t.Errorf("%+v, %v", done, err)
	}
	o.store.read = func(string, string) error { return store.ErrForbidden }
	if _, err := o.RevokeScope(t.Context(), ""); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("%v", err)
	}
}

func TestRanges(t *testing.T) {
	for want, n := range map[string][]int{"": nil, "7": {7}, "1-2": {1, 2}, "1-4, 7": {1, 2, 3, 4, 7}, "1, 3, 5": {1, 3, 5}, "1, 3-5, 9-10": {1, 3, 4, 5, 9, 10}} {
		if got := ranges(n); got != want {
			t.Errorf("%v: %q", n, got)
		}
	}
}
