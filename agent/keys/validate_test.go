package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// answers makes a probe that answers by the key's number.
func (o *operator) answers(by map[int]provider.Result) {
	o.Probe = func(_ context.Context, name string, fields map[string]*secret.Value) provider.Result {
		if name != "openai" {
			o.t.Errorf("%s was asked", name)
		}
		for n, r := range by {
			if fields[Field].Equal(o.value(key(n))) {
				return r
			}
		}
		o.t.Error("another key was asked about")
		return provider.Result{}
	}
}

var (
	live    = provider.Result{Verdict: rotation.VerdictLive, Status: 200, Latency: 42 * time.Millisecond, Meaning: "live"}
	dead    = provider.Result{Verdict: rotation.VerdictDead, Status: 401, Latency: 7 * time.Millisecond, Meaning: "missing, malformed or revoked"}
	unheard = provider.Result{Meaning: "unknown: no answer", Err: errors.New("api.openai.com:443: no route to host")}
)

func TestValidate(t *testing.T) {
	o := newOperator(t)
	for n := 1; n <= 4; n++ {
		o.add("house", n, Meta{Provider: "openai"})
	}
	if err := o.store.Destroy(t.Context(), o.Scope.Path("house"), 2); err != nil {
		t.Fatal(err)
	}
	o.answers(map[int]provider.Result{4: dead, 3: live, 1: unheard})
	o.trail.told()
	said, err := o.Validate(t.Context(), "house")
	if err != nil {
		t.Fatal(err)
	}
	want := []Validation{
		{Version: 4, Verdict: "dead", Status: 401, LatencyMS: 7, Meaning: dead.Meaning},
		{Version: 3, Verdict: "live", Status: 200, LatencyMS: 42, Meaning: "live"},
		{Version: 1, Verdict: "unknown", Meaning: unheard.Meaning, Error: unheard.Err.Error()},
	}
	for i := range said {
		if said[i].At.IsZero() || said[i].ID != "prod.px_acme.house" || said[i].Name != "house" {
			t.Errorf("%+v", said[i])
		}
		said[i].At, said[i].ID, said[i].Name = time.Time{}, "", ""
	}
	if !slices.Equal(said, want) {
		t.Errorf("%+v", said)
	}
	if d := o.trail.events[0].Detail; d["live"] != "3" || d["dead"] != "4" || d["unknown"] != "1" {
		t.Errorf("%v", d)
	}
	if got := o.trail.told(); !slices.Equal(got, []string{"key.validate ok house 0"}) {
		t.Errorf("%q", got)
	}
	if said, err := o.Validate(t.Context(), "house", 1, 3); err != nil || len(said) != 2 || said[0].Version != 3 {
		t.Errorf("%+v, %v", said, err)
	}
	o.trail.told()
	if said, err := o.Validate(t.Context(), "house", 3); err != nil || len(said) != 1 {
		t.Errorf("%+v, %v", said, err)
	}
	if got := o.trail.told(); !slices.Equal(got, []string{"key.validate ok house 3"}) {
		t.Errorf("%q", got)
	}
	// Asking changes nothing.
	if md := o.metadata("house"); md.Current != 4 {
		t.Errorf("%+v", md)
	}
	if _, err := o.store.Metadata(t.Context(), "rotations/prod/px_acme/house"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a record was written: %v", err)
	}
}

func TestWhatCannotBeValidated(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	if _, err := o.Validate(t.Context(), "openai"); err == nil || !strings.Contains(err.Error(), "no provider can be asked from here") {
		t.Errorf("%v", err)
	}
	o.answers(map[int]provider.Result{1: live})
	for _, versions := range [][]int{{2}, {1, 7}, {0}} {
		if _, err := o.Validate(t.Context(), "openai", versions...); err == nil || !strings.Contains(err.Error(), "that can be read") {
			t.Errorf("%v: %v", versions, err)
		}
	}
	if _, err := o.Validate(t.Context(), "gemini"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := o.Validate(t.Context(), "a/b"); err == nil {
		t.Error("a path is a name")
	}
	o.trail.told()
	o.store.read = func(method, path string) error {
		if method == "get" && strings.HasPrefix(path, "provider-keys/") {
			return fmt.Errorf("%s: %w", path, store.ErrForbidden)
		}
		return nil
	}
	if _, err := o.Validate(t.Context(), "openai"); !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "the right to read its data") || !strings.Contains(err.Error(), "`postern server`") {
		t.Errorf("%v", err)
	}
	if got := o.trail.told(); !slices.Equal(got, []string{"key.validate failed openai 1"}) {
		t.Errorf("%q", got)
	}
	o.store.read = nil
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("openai"), map[string]string{"environment": "staging"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Validate(t.Context(), "openai"); err == nil || !strings.Contains(err.Error(), `"staging"`) {
		t.Errorf("%v", err)
	}
	if err := o.store.Destroy(t.Context(), o.Scope.Path("openai"), 1); err != nil {
		t.Fatal(err)
	}
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("openai"), nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Validate(t.Context(), "openai"); err == nil || !strings.Contains(err.Error(), "no version that can be read") {
		t.Errorf("%v", err)
	}
}

// What is destroyed between the look and the question is unknown.
func TestValidateWhatGoesMeanwhile(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.answers(nil)
	o.store.read = func(method, path string) error {
		if method == "get" && strings.HasPrefix(path, "provider-keys/") {
			return o.store.Store.Destroy(t.Context(), path, 1)
		}
		return nil
	}
	if said, err := o.Validate(t.Context(), "openai"); err != nil || len(said) != 1 || said[0].Verdict != "unknown" || said[0].Error == "" {
		t.Errorf("%+v, %v", said, err)
	}
}

// Few are asked at once, no value outlives its question, and an end is one.
func TestValidateManyVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := inBubble(t)
		for n := range 12 {
			o.add("openai", n, Meta{})
		}
		var asked, most atomic.Int32
		var values [13]*secret.Value
		var at atomic.Int32
		o.Probe = func(ctx context.Context, _ string, fields map[string]*secret.Value) provider.Result {
			values[at.Add(1)] = fields[Field]
			n := asked.Add(1)
			defer asked.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			select {
			case <-time.After(time.Second):
				return live
			case <-ctx.Done():
				return provider.Result{Err: ctx.Err()}
			}
		}
		begin := time.Now()
		said, err := o.Validate(t.Context(), "openai")
		if err != nil || len(said) != 12 || most.Load() != validateMost || time.Since(begin) != 3*time.Second {
			t.Errorf("%d answers, %d at once, after %v: %v", len(said), most.Load(), time.Since(begin), err)
		}
		for _, v := range values[1:] {
			if v.Use(func([]byte) {}) {
				t.Error("a value is left in memory")
			}
		}
		at.Store(0)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if _, err := o.Validate(ctx, "openai"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}
