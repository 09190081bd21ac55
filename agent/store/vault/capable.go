package vault

import (
	"context"
	"net/http"
	"strings"
)

// APIPath is the full API path of a path below the store's root, as policies
// name it: <mount>/<kind>/<prefix>/<path>. Kind is data, metadata, delete,
// undelete or destroy; path may be empty, end in a slash, or hold what policies
// put into paths (+ and *).
func (s *Store) APIPath(kind, path string) string {
	full := apiPath(s.cfg.Mount, kind, s.cfg.Prefix)
	if path == "" {
		return full
	}
	return full + "/" + path
}

// Capabilities implements store.Capable over sys/capabilities-self.
func (s *Store) Capabilities(ctx context.Context, paths ...string) (map[string][]string, error) {
	allowed := make(map[string][]string, len(paths))
	if len(paths) == 0 {
		return allowed, nil
	}
	body := []byte(`{"paths":[`)
	for i, path := range paths {
		if err := checkPath(strings.TrimSuffix(path, "/")); err != nil {
			return nil, at(opCapable, path, err)
		}
		if i > 0 {
			body = append(body, ',')
		}
		body = appendQuoted(body, []byte(path))
	}
	body = append(body, `]}`...)
	const asked = "sys/capabilities-self"
	r, err := s.request(ctx, &call{op: opCapable, method: http.MethodPost, path: asked, body: body})
	if err != nil {
		return nil, at(opCapable, asked, err)
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return nil, at(opCapable, asked, s.malformed(err))
	}
	wanted := make(map[string]bool, len(paths))
	for _, path := range paths {
		wanted[path] = true
	}
	err = members(e.data, func(name, value []byte) error {
		path, err := text(name)
		if err != nil || !wanted[path] { // beside the paths there is a member for the only one
			return err
		}
		allowed[path], err = parseTexts(value)
		return err
	})
	for _, path := range paths {
		if err == nil && len(allowed[path]) == 0 {
			err = expect(path)
		}
	}
	if err != nil {
		return nil, at(opCapable, asked, s.malformed(err))
	}
	return allowed, nil
}
