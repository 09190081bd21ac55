package sealed

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// change is one write: the next document, and what it needs.
type change struct {
	doc  *document
	keys *keys     // nil before unlocked
	mine bool      // keys were made for this change and go with it unless it is written
	now  time.Time // later than every time in the document
}

// unlocked returns the keys of the store, which the first write makes.
func (c *change) unlocked(s *Store) (*keys, error) {
	if c.keys == nil {
		slot, k, err := s.begin()
		if err != nil {
			return nil, s.explain(err)
		}
		c.doc.Key, c.keys, c.mine = slot, k, true
	}
	return c.keys, nil
}

// update changes the file under the writers' lock. edit says whether there is
// anything to write; an error of edit, or of the file, leaves the file as it was.
func (s *Store) update(ctx context.Context, path string, edit func(c *change) (bool, error)) error {
	if err := alive(ctx, path); err != nil {
		return err
	}
	if err := checkPath(path); err != nil {
		return err
	}
	select {
	case s.writer <- struct{}{}:
		defer func() { <-s.writer }()
	case <-ctx.Done():
		return alive(ctx, path)
	}
	if s.create {
		dir := filepath.Dir(s.file)
		if err := s.disk.step("make directory", func() error { return os.MkdirAll(dir, 0o700) }); err != nil {
			return system(dir, "created", err)
		}
	}
	release, err := s.disk.lock(ctx, s.file, s.lockWait)
	if err != nil {
		return err
	}
	defer release()
	c, err := s.prepare()
	if err != nil {
		return err
	}
	defer func() {
		if c.mine {
			c.keys.destroy()
		}
	}()
	if ok, err := edit(c); err != nil || !ok {
		return err
	}
	if err := alive(ctx, path); err != nil {
		return err
	}
	return s.write(c)
}

// prepare reads the file again and begins the next document.
func (s *Store) prepare() (*change, error) {
	doc, k, err := s.load()
	if err != nil {
		return nil, err
	}
	sweep(s.file)
	c := &change{doc: doc.clone(), keys: k, now: s.now().UTC().Round(0)}
	// Times grow from write to write even if the clock does not, so that a
	// version is never mistaken for one that had its number before.
	if !c.now.After(doc.Written) {
		c.now = doc.Written.Add(1)
	}
	c.doc.Written = c.now
	c.doc.Generation++
	c.doc.Format = formatV1
	return c, nil
}

// write puts the next document in the file's place and makes it this Store's current one.
func (s *Store) write(c *change) error {
	k, err := c.unlocked(s)
	if err != nil {
		return err
	}
	body, err := encodeBody(c.doc)
	if err != nil {
		return s.explain(err)
	}
	if len(body)+tailSize > maxFile {
		return &fault{s.file, fmt.Sprintf("would grow beyond %d MiB", maxFile>>20), "remove what is no longer needed, or use Vault", store.ErrInvalid, nil}
	}
	mac, err := k.sum(body)
	if err != nil {
		return s.explain(err)
	}
	st, err := s.disk.replace(s.file, join(body, mac))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed { // or Close has wiped the keys; the write itself is done
		s.install(c.doc, k, st)
		c.mine = false
	}
	return nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (store.Version, error) {
	return s.add(ctx, path, fields, cas, false)
}

// Patch implements store.Store.
func (s *Store) Patch(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (store.Version, error) {
	return s.add(ctx, path, fields, cas, true)
}

// add writes a new version: fields, and with keep the current version's others.
func (s *Store) add(ctx context.Context, path string, fields map[string]*secret.Value, cas int, keep bool) (made store.Version, err error) {
	if err := checkFields(path, fields); err != nil {
		return made, err
	}
	if cas < store.Any {
		return made, fmt.Errorf("%s: check-and-set value %d: %w", path, cas, store.ErrInvalid)
	}
	err = s.update(ctx, path, func(c *change) (bool, error) {
		e := c.doc.Paths[path]
		if e == nil {
			e = &entry{}
		}
		old := e.newest()
		if keep && e.Current == 0 {
			return false, fmt.Errorf("%s: %w", path, store.ErrNotFound)
		}
		if cas != store.Any && cas != e.Current {
			return false, fmt.Errorf("%s: the current version is %d, not %d: %w", path, e.Current, cas, store.ErrConflict)
		}
		if keep && old.Destroyed {
			return false, fmt.Errorf("%s: the newest version, %d, was destroyed: %w", path, e.Current, store.ErrNotFound)
		}
		k, err := c.unlocked(s)
		if err != nil {
			return false, err
		}
		v := version{Number: e.Current + 1, Created: c.now, Fields: make(map[string][]byte, len(fields))}
		if keep {
			if err := s.carry(k, path, old, &v, fields); err != nil {
				return false, err
			}
		}
		for name, value := range fields {
			if v.Fields[name], err = sealValue(k.values, bind(path, v.Number, v.Created, name), value); err != nil {
				return false, s.refuse(path, name, err)
			}
		}
		if err := checkSize(path, v.Fields); err != nil {
			return false, err
		}
		c.doc.edit(path).add(v)
		made = v.public()
		return true, nil
	})
	if err != nil {
		return store.Version{}, err
	}
	return made, nil
}

// carry seals the fields of one version again for the next, but for those that are replaced.
func (s *Store) carry(k *keys, path string, from, to *version, replaced map[string]*secret.Value) error {
	for name, box := range from.Fields {
		if _, ok := replaced[name]; ok {
			continue
		}
		value, err := openValue(k.values, bind(path, from.Number, from.Created, name), box)
		if err != nil {
			return s.explain(err)
		}
		to.Fields[name], err = sealValue(k.values, bind(path, to.Number, to.Created, name), value)
		value.Destroy()
		if err != nil {
			return s.explain(err)
		}
	}
	return nil
}

// refuse sorts what sealing a caller's value can fail with.
func (s *Store) refuse(path, name string, err error) error {
	if err == errDestroyed {
		return fmt.Errorf("%s: field %q is nil or was destroyed: %w", path, name, store.ErrInvalid)
	}
	return s.explain(err)
}

func checkFields(path string, fields map[string]*secret.Value) error {
	for name, value := range fields {
		if err := checkName("field", name); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		text := true
		value.Use(func(b []byte) { text = utf8.Valid(b) })
		if !text {
			return fmt.Errorf("%s: field %q is not UTF-8 text (encode it, for instance as base64): %w", path, name, store.ErrInvalid)
		}
	}
	return nil
}

func checkSize(path string, fields map[string][]byte) error {
	size := 0
	for _, box := range fields {
		size += len(box) - overhead
	}
	if len(fields) > maxFields || size > maxVersionSize {
		return fmt.Errorf("%s: %d fields of %d bytes in all; a version takes %d fields and %d bytes: %w",
			path, len(fields), size, maxFields, maxVersionSize, store.ErrInvalid)
	}
	return nil
}

// SetMetadata implements store.Store. As in Vault, a lower maxVersions drops
// versions at the next write.
func (s *Store) SetMetadata(ctx context.Context, path string, custom map[string]string, maxVersions int) error {
	if err := checkCustom(custom); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	custom = maps.Clone(custom)
	return s.update(ctx, path, func(c *change) (bool, error) {
		e := c.doc.edit(path)
		e.Custom = custom
		if maxVersions > 0 {
			e.MaxVersions = maxVersions
		}
		return true, nil
	})
}

// Destroy implements store.Store. The values are gone from the file; older
// copies of the whole file still hold them, sealed.
func (s *Store) Destroy(ctx context.Context, path string, versions ...int) error {
	if len(versions) == 0 || slices.Min(versions) < 1 {
		return fmt.Errorf("%s: name the versions to destroy, from 1: %w", path, store.ErrInvalid)
	}
	return s.update(ctx, path, func(c *change) (bool, error) {
		if c.doc.Paths[path] == nil {
			return false, nil
		}
		e := c.doc.edit(path)
		changed := false
		for _, number := range versions {
			if v := e.find(number); v != nil && !v.Destroyed {
				v.Destroyed, v.Fields, changed = true, nil, true
			}
		}
		return changed, nil
	})
}

// Remove implements store.Store.
func (s *Store) Remove(ctx context.Context, path string) error {
	return s.update(ctx, path, func(c *change) (bool, error) {
		_, there := c.doc.Paths[path]
		delete(c.doc.Paths, path)
		return there, nil
	})
}
