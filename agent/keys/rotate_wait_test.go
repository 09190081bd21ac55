package keys

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/sealed"
)

// bubbled is a stage on the clock of a synctest bubble.
func bubbled(t *testing.T) *stage {
	t.Helper()
	g := &stage{t: t, verdicts: map[string]rotation.Verdict{}}
	dir := t.TempDir()
	st, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "s"), KeyFile: filepath.Join(dir, "k"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	g.real = st
	return g
}

// Wait sees a rotation through, and says how far it is about once a second.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := bubbled(t)
		g.add(1)
		ada := g.process("ada")
		ramp := rotation.Ramp{{Weight: 10, For: 20 * time.Second}}
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{Ramp: &ramp, Grace: new(30 * time.Second)}); err != nil {
			t.Fatal(err)
		}
		began, calls, weights := time.Now(), 0, map[int]bool{}
		rot, err := ada.Wait(t.Context(), "openai", func(r Rotation) { calls++; weights[r.Weight] = true })
		took := time.Since(began)
		if err != nil || rot.Phase != rotation.PhaseDone || took < 60*time.Second || took > 62*time.Second {
			t.Errorf("after %v: %+v, %v", took, rot, err)
		}
		if calls < 55 || calls > 65 || !weights[0] || !weights[10] || !weights[100] || len(weights) != 3 {
			t.Errorf("%d calls, weights %v", calls, weights)
		}
	})
}

// A store that is out of reach for a while is waited for; an error that stays is not.
func TestWaitThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := bubbled(t)
		g.add(1)
		ada := g.process("ada")
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{Grace: new(30 * time.Second)}); err != nil {
			t.Fatal(err)
		}
		began, told := time.Now(), false
		ada.Store = flaky{ada.wire, func() error {
			switch d := time.Since(began); {
			case d > 5*time.Second && d < 40*time.Second:
				return store.ErrUnavailable
			default:
				return nil
			}
		}}
		rot, err := ada.Wait(t.Context(), "openai", func(r Rotation) { told = told || strings.HasPrefix(r.Waiting, "the store: ") })
		if err != nil || rot.Phase != rotation.PhaseDone || !told {
			t.Errorf("%+v, %v, told %v", rot, err, told)
		}
		ada.Store = flaky{ada.wire, func() error { return store.ErrForbidden }}
		if _, err = ada.Wait(t.Context(), "openai", nil); !errors.Is(err, store.ErrForbidden) {
			t.Errorf("%v", err)
		}
		ada.Store = flaky{ada.wire, func() error { return store.ErrUnavailable }}
		if _, err = ada.Wait(t.Context(), "openai", nil); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%v", err)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := bubbled(t)
		g.add(1)
		ada := g.process("ada")
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		rot, err := ada.Wait(ctx, "openai", nil)
		if !errors.Is(err, context.DeadlineExceeded) || rot.Phase != rotation.PhaseMigrate || !strings.Contains(rot.Waiting, "grace") {
			t.Errorf("%+v, %v", rot, err)
		}
	})
}

// What only others can do is not waited for.
func TestWaitForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := bubbled(t)
		g.add(1)
		ada := g.process("ada")
		if _, err := ada.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		rot, err := ada.Wait(t.Context(), "openai", nil)
		if err != nil || rot.Phase != rotation.PhaseRequested || rot.Waiting == "" || time.Since(began) > time.Second {
			t.Errorf("%+v, %v", rot, err)
		}
	})
}

// flaky is a store that cannot be read at times.
type flaky struct {
	store.Store
	fail func() error
}

func (f flaky) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	if err := f.fail(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f.Store.Metadata(ctx, path)
}
