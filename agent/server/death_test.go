package server

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// A server that dies in the middle of a step, whichever write that is, is
// replaced by another: the rotation ends, and the provider has one credential.
func TestAServerThatDies(t *testing.T) {
	for writes := range 40 {
		ended := false
		t.Run(fmt.Sprint("after ", writes, " writes"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHall(t)
				h.add("px_a", "openai", "openai", 0)
				if _, err := h.manager(h.store, "px_a").Rotate(t.Context(), "openai", nil, keys.RotateOptions{Managed: true}); err != nil {
					t.Fatal(err)
				}
				dying := &mortal{Store: h.store}
				dying.left.Store(int64(writes))
				first := h.run(dying)
				elapse(2 * time.Minute)
				first.stop()
				ended = !dying.dead.Load()
				h.run(h.store)
				elapse(15 * time.Minute)
				rot := h.status("px_a", "openai")
				if !rot.Closed || rot.Phase != rotation.PhaseDone {
					t.Fatalf("%+v", rot)
				}
				if ids := slices.Collect(maps.Keys(h.vendor.made)); len(ids) != 1 {
					t.Errorf("the provider has %v", h.vendor.made)
				}
			})
		})
		if ended {
			if writes < 5 {
				t.Errorf("a whole rotation in %d writes: nothing was interrupted", writes)
			}
			return
		}
	}
	t.Error("the rotation never ended: too few writes were tried")
}

// mortal is the store of a process that is killed after some writes.
type mortal struct {
	store.Store
	left atomic.Int64
	dead atomic.Bool
}

func (m *mortal) write() error {
	if m.dead.Load() || m.left.Add(-1) < 0 {
		m.dead.Store(true)
		return fmt.Errorf("killed: %w", store.ErrUnavailable)
	}
	return nil
}

func (m *mortal) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	if m.dead.Load() {
		return nil, fmt.Errorf("killed: %w", store.ErrUnavailable)
	}
	return m.Store.Get(ctx, path, version)
}

func (m *mortal) Put(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	if err := m.write(); err != nil {
		return store.Version{}, err
	}
	return m.Store.Put(ctx, path, f, cas)
}

func (m *mortal) Patch(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	if err := m.write(); err != nil {
		return store.Version{}, err
	}
	return m.Store.Patch(ctx, path, f, cas)
}

func (m *mortal) Destroy(ctx context.Context, path string, versions ...int) error {
	if err := m.write(); err != nil {
		return err
	}
	return m.Store.Destroy(ctx, path, versions...)
}
