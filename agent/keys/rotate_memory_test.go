package keys

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// heap is a store without a file, for tests that live through many rotations.
// What it says of a version is what the sealed store says.
type heap struct {
	now func() time.Time

	mu    sync.Mutex
	paths map[string]*heaped
}

type heaped struct {
	store.Metadata
	data map[int]map[string]*secret.Value
}

func newHeap(t *testing.T, now func() time.Time) *heap {
	h := &heap{now: now, paths: map[string]*heaped{}}
	t.Cleanup(func() {
		for _, p := range h.paths {
			for _, fields := range p.data {
				for _, v := range fields {
					v.Destroy()
				}
			}
		}
	})
	return h
}

func (h *heap) Now() time.Time { return h.now() }

func (h *heap) Get(_ context.Context, path string, n int) (*store.Secret, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.paths[path]
	if p == nil || n > p.Current || p.Current == 0 {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	if n == 0 {
		n = p.Current
	}
	v := p.Versions[n-1]
	if !v.Readable() {
		return nil, fmt.Errorf("%s: %w", path, store.ErrDeleted)
	}
	sec := &store.Secret{Version: v, Fields: map[string]*secret.Value{}}
	var err error
	for name, value := range p.data[n] {
		if sec.Fields[name], err = value.Clone(); err != nil {
			return nil, err
		}
	}
	return sec, nil
}

func (h *heap) Put(_ context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	return h.write(path, f, cas, false)
}

func (h *heap) Patch(_ context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	return h.write(path, f, cas, true)
}

func (h *heap) write(path string, f map[string]*secret.Value, cas int, patch bool) (store.Version, error) {
	at := h.now() // before the lock, which the clock may want too
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.paths[path]
	if p == nil {
		p = &heaped{data: map[int]map[string]*secret.Value{}}
	}
	if patch && (p.Current == 0 || !p.Versions[p.Current-1].Readable()) {
		return store.Version{}, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	if cas != store.Any && cas != p.Current {
		return store.Version{}, fmt.Errorf("%s: %w", path, store.ErrConflict)
	}
	all := map[string]*secret.Value{}
	if patch {
		maps.Copy(all, p.data[p.Current])
	}
	maps.Copy(all, f)
	data := map[string]*secret.Value{}
	var err error
	for name, v := range all {
		if data[name], err = v.Clone(); err != nil {
			return store.Version{}, fmt.Errorf("%s: %w", path, store.ErrInvalid)
		}
	}
	p.Current++
	v := store.Version{Number: p.Current, Created: at}
	p.Versions, p.data[v.Number], h.paths[path] = append(p.Versions, v), data, p
	return v, nil
}

func (h *heap) Metadata(_ context.Context, path string) (*store.Metadata, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.paths[path]
	if p == nil {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	md := p.Metadata
	md.Versions, md.Custom = slices.Clone(md.Versions), maps.Clone(md.Custom)
	return &md, nil
}

func (h *heap) SetMetadata(_ context.Context, path string, custom map[string]string, maxVersions int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.paths[path]
	if p == nil {
		p = &heaped{data: map[int]map[string]*secret.Value{}}
		h.paths[path] = p
	}
	p.Custom = maps.Clone(custom)
	if maxVersions > 0 {
		p.MaxVersions = maxVersions
	}
	return nil
}

func (h *heap) List(_ context.Context, folder string) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var found []string
	for path := range h.paths {
		if rest, ok := strings.CutPrefix(path, strings.TrimSuffix(folder, "/")+"/"); ok {
			if name, _, deeper := strings.Cut(rest, "/"); deeper {
				rest = name + "/"
			}
			found = append(found, rest)
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

func (h *heap) Destroy(_ context.Context, path string, versions ...int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.paths[path]
	if p == nil {
		return nil
	}
	for _, n := range versions {
		if n >= 1 && n <= p.Current {
			p.Versions[n-1].Destroyed = true
		}
	}
	return nil
}

func (h *heap) Remove(_ context.Context, path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.paths, path)
	return nil
}
