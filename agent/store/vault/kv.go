package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Limits of KV v2's custom metadata.
const (
	maxLabels    = 64
	maxLabelName = 128 // bytes
	maxLabel     = 512 // bytes
)

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	c := &call{op: opGet, method: http.MethodGet}
	if version < 0 {
		return nil, at(opGet, path, fail(store.ErrInvalid, "version %d: versions are numbered from 1, 0 is the newest", version))
	}
	if version > 0 {
		c.query = url.Values{"version": {strconv.Itoa(version)}}
	}
	r, err := s.kv(ctx, c, "data", path)
	if err != nil {
		return nil, err
	}
	defer r.release()
	found, err := s.parseKV(r)
	return found, at(opGet, path, err)
}

// parseKV reads a secret from the answer to a KV v2 read.
func (s *Store) parseKV(r *reply) (*store.Secret, error) {
	e, err := parseEnvelope(r.body)
	if err != nil {
		return nil, s.malformed(err)
	}
	kv, err := parseKVData(e.data)
	if err != nil {
		return nil, s.malformed(err)
	}
	version, err := parseVersion(kv.metadata)
	if err != nil {
		return nil, s.malformed(err)
	}
	if version.Number < 1 {
		return nil, s.malformed(expect("version"))
	}
	if isNull(kv.data) {
		return nil, fail(store.ErrDeleted, "its data was deleted or destroyed")
	}
	version.Deleted = time.Time{} // readable: an end that was set beforehand has not come
	version.RequestID = e.request()
	fields, err := parseFields(kv.data)
	if err != nil {
		return nil, s.malformed(err)
	}
	return &store.Secret{Version: version, Fields: fields}, nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (store.Version, error) {
	return s.write(ctx, &call{op: opPut, method: http.MethodPost}, path, fields, cas)
}

// Patch implements store.Store.
func (s *Store) Patch(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (store.Version, error) {
	v, err := s.write(ctx, &call{op: opPatch, method: http.MethodPatch}, path, fields, cas)
	if errors.Is(err, store.ErrDeleted) {
		err = at(opPatch, path, fail(store.ErrNotFound, "its newest version was deleted: there is nothing to patch"))
	}
	return v, err
}

func (s *Store) write(ctx context.Context, c *call, path string, fields map[string]*secret.Value, cas int) (store.Version, error) {
	var err error
	if c.body, err = writeBody(fields, cas); err != nil {
		return store.Version{}, at(c.op, path, err)
	}
	defer clear(c.body)
	r, err := s.kv(ctx, c, "data", path)
	if err != nil {
		return store.Version{}, err
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return store.Version{}, at(c.op, path, s.malformed(err))
	}
	var v store.Version
	if !isNull(e.data) {
		v, err = parseVersion(e.data)
	}
	if err == nil && v.Number < 1 {
		err = expect("version")
	}
	if err != nil {
		return store.Version{}, at(c.op, path, s.malformed(err))
	}
	v.Deleted = time.Time{}
	v.RequestID = e.request()
	return v, nil
}

// writeBody makes the body of a write in one buffer, which the caller wipes.
func writeBody(fields map[string]*secret.Value, cas int) ([]byte, error) {
	if cas < store.Any {
		return nil, fail(store.ErrInvalid, "check-and-set value %d: want a version number, 0 for none, or store.Any", cas)
	}
	size := 64
	for name, value := range fields {
		if name == "" || !utf8.ValidString(name) {
			return nil, fail(store.ErrInvalid, "field %q: a name is UTF-8 text and not empty", name)
		}
		size += quotedLen(len(name)) + quotedLen(value.Len()) + 2
	}
	body := make([]byte, 0, size)
	body = append(body, `{"options":{`...)
	if cas != store.Any {
		body = append(body, `"cas":`...)
		body = strconv.AppendInt(body, int64(cas), 10)
	}
	body = append(body, `},"data":{`...)
	var problem error
	first := true
	for name, value := range fields {
		if !first {
			body = append(body, ',')
		}
		first = false
		body = appendQuoted(body, []byte(name))
		body = append(body, ':')
		alive := value.Use(func(b []byte) {
			if !utf8.Valid(b) {
				problem = fail(store.ErrInvalid, "field %q is not UTF-8 text: encode it, for instance as base64", name)
				return
			}
			body = appendQuoted(body, b)
		})
		if !alive {
			problem = fail(store.ErrInvalid, "field %q is nil or was destroyed", name)
		}
		if problem != nil {
			clear(body)
			return nil, problem
		}
	}
	body = append(body, `}}`...)
	if len(body) > maxBody {
		clear(body)
		return nil, fail(store.ErrInvalid, "%d bytes with all fields: a version takes at most %d", len(body), maxBody)
	}
	return body, nil
}

// Metadata implements store.Store.
func (s *Store) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	r, err := s.kv(ctx, &call{op: opMetadata, method: http.MethodGet}, "metadata", path)
	if err != nil {
		return nil, err
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return nil, at(opMetadata, path, s.malformed(err))
	}
	m, err := parseMetadata(e.data, s.clock.latest())
	if err != nil {
		return nil, at(opMetadata, path, s.malformed(err))
	}
	id := e.request()
	for i := range m.Versions {
		m.Versions[i].RequestID = id
	}
	return m, nil
}

// SetMetadata implements store.Store.
func (s *Store) SetMetadata(ctx context.Context, path string, custom map[string]string, maxVersions int) error {
	if err := checkLabels(custom); err != nil {
		return at(opSetMetadata, path, err)
	}
	body := []byte(`{"custom_metadata":{`)
	for i, name := range slices.Sorted(maps.Keys(custom)) {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(appendQuoted(body, []byte(name)), ':')
		body = appendQuoted(body, []byte(custom[name]))
	}
	body = append(body, '}')
	if maxVersions > 0 {
		body = append(body, `,"max_versions":`...)
		body = strconv.AppendInt(body, int64(maxVersions), 10)
	}
	body = append(body, '}')
	r, err := s.kv(ctx, &call{op: opSetMetadata, method: http.MethodPost, body: body}, "metadata", path)
	r.release()
	return err
}

func checkLabels(custom map[string]string) error {
	if len(custom) > maxLabels {
		return fail(store.ErrInvalid, "%d labels: at most %d are kept", len(custom), maxLabels)
	}
	for name, label := range custom {
		if name == "" || len(name) > maxLabelName || !printable(name) {
			return fail(store.ErrInvalid, "a label's name needs 1 to %d bytes of printable text", maxLabelName)
		}
		if label == "" || len(label) > maxLabel || !printable(label) {
			return fail(store.ErrInvalid, "label %q has %d bytes: it needs 1 to %d of printable text", name, len(label), maxLabel)
		}
	}
	return nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, folder string) ([]string, error) {
	c := &call{op: opList, method: http.MethodGet, query: url.Values{"list": {"true"}}}
	r, err := s.kv(ctx, c, "metadata", folder)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return nil, at(opList, folder, s.malformed(err))
	}
	var names []string
	err = members(e.data, func(name, value []byte) error {
		if !is(name, "keys") {
			return nil
		}
		return elements(value, func(element []byte) error {
			one, err := text(element)
			names = append(names, one)
			return err
		})
	})
	if err != nil {
		return nil, at(opList, folder, s.malformed(err))
	}
	slices.Sort(names)
	return names, nil
}

// Destroy implements store.Store.
func (s *Store) Destroy(ctx context.Context, path string, versions ...int) error {
	if len(versions) == 0 || slices.Min(versions) < 1 {
		return at(opDestroy, path, fail(store.ErrInvalid, "name the versions to destroy, from 1"))
	}
	body := []byte(`{"versions":[`)
	for i, v := range versions {
		if i > 0 {
			body = append(body, ',')
		}
		body = strconv.AppendInt(body, int64(v), 10)
	}
	body = append(body, `]}`...)
	r, err := s.kv(ctx, &call{op: opDestroy, method: http.MethodPut, body: body}, "destroy", path)
	r.release()
	return err
}

// Remove implements store.Store.
func (s *Store) Remove(ctx context.Context, path string) error {
	r, err := s.kv(ctx, &call{op: opRemove, method: http.MethodDelete}, "metadata", path)
	r.release()
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// kv sends a call to the KV v2 engine's API of a kind (data, metadata,
// destroy) for a path below the store's root. Errors name operation and path.
func (s *Store) kv(ctx context.Context, c *call, kind, path string) (*reply, error) {
	full := s.cfg.Prefix
	switch {
	case c.op == opList && path == "":
		full += "/"
	case c.op == opList:
		trimmed := strings.TrimSuffix(path, "/")
		if err := checkPath(trimmed); err != nil {
			return nil, at(c.op, path, err)
		}
		full += "/" + trimmed + "/"
	default:
		if err := checkPath(path); err != nil {
			return nil, at(c.op, path, err)
		}
		full += "/" + path
	}
	c.path = apiPath(s.cfg.Mount, kind, full)
	if err := s.checkMount(ctx); err != nil {
		return nil, at(c.op, path, err)
	}
	r, err := s.request(ctx, c)
	return r, at(c.op, path, err)
}

// checkPath refuses what Vault or a proxy on the way might read in another way.
func checkPath(path string) error {
	switch {
	case path == "":
		return fail(store.ErrInvalid, "the path is empty")
	case !printable(path):
		return fail(store.ErrInvalid, "the path %q has characters that cannot be printed", path)
	}
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "":
			return fail(store.ErrInvalid, "the path %q begins or ends with a slash or has two in a row", path)
		case ".", "..":
			return fail(store.ErrInvalid, "the path %q has a relative segment", path)
		}
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// layout is what is known about the engine at the mount.
type layout struct{ err error }

// checkMount finds out once whether the mount is a KV v2 engine: on KV v1 the
// same requests would read and write other paths without an error. Where the
// token may not ask, nothing is known and the request goes ahead.
func (s *Store) checkMount(ctx context.Context) error {
	s.mu.Lock()
	known := s.layout
	s.mu.Unlock()
	if known != nil {
		return known.err
	}
	r, err := s.request(ctx, &call{op: opMount, method: http.MethodGet, path: "sys/internal/ui/mounts/" + s.cfg.Mount})
	defer r.release()
	found := &layout{}
	switch {
	case errors.Is(err, store.ErrForbidden), errors.Is(err, store.ErrInvalid), errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	default:
		e, err := parseEnvelope(r.body)
		if err != nil {
			return s.malformed(err)
		}
		found.err = s.judgeMount(e.data)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layout = found
	return found.err
}

func (s *Store) judgeMount(data []byte) error {
	var kind, version string
	err := members(data, func(name, value []byte) (err error) {
		switch {
		case is(name, "type"):
			kind, err = text(value)
		case is(name, "options") && !isNull(value):
			err = members(value, func(name, value []byte) (err error) {
				if is(name, "version") {
					version, err = text(value)
				}
				return err
			})
		}
		return err
	})
	if err != nil {
		return s.malformed(err)
	}
	if kind == "kv" && version == "2" {
		return nil
	}
	if version != "" {
		kind = fmt.Sprintf("%s version %s", kind, version)
	}
	return fail(store.ErrInvalid, "store.vault.mount: %s is %s, not a KV version 2 engine", s.cfg.Mount, clean(kind))
}
