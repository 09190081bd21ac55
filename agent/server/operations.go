package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/config"
)

// Lengths of what a request may say, in characters.
const (
	maxLabel  = 128
	maxReason = 500
	maxName   = 64
)

func checkProxyID(s string) error {
	if err := config.CheckProxyID(s); err != nil {
		return fmt.Errorf("must be %w", err)
	}
	return nil
}

// keyPath is where a key is found in the API.
func keyPath(id string) string { return "/v1/provider-keys/" + id }

// create stores the first version of a key. It is idempotent by itself: the
// second of two equal requests is told that the key exists.
func (a *api) create(ctx context.Context, r *request) (answer, error) {
	var name, proxyID string
	var key secretField
	meta := keys.Meta{LooseLabel: true}
	defer func() { key.value.Destroy() }()
	err := decode(r.body, setters{
		"provider": a.text(&meta.Provider, maxName), "api_key": key.UnmarshalJSON, "proxy_id": a.text(&proxyID, maxName),
		"label": a.text(&meta.Label, maxLabel), "name": a.text(&name, maxName), "service": a.text(&meta.Service, maxName),
		"provider_id": a.text(&meta.ProviderID, maxLabel),
	})
	if err != nil {
		return answer{}, err
	}
	switch {
	case meta.Provider == "":
		return answer{}, badField("provider", "is required: whose key it is, as in openai")
	case proxyID == "":
		return answer{}, badField("proxy_id", "is required: the scope that the key belongs to, as in px_acme_prod")
	case key.value == nil:
		return answer{}, badField("api_key", "is required: the provider's key itself")
	}
	if err := checkProxyID(proxyID); err != nil {
		return answer{}, badField("proxy_id", "%v", err)
	}
	if err := keys.CheckProviderID(meta.ProviderID); err != nil {
		return answer{}, badField("provider_id", "%v", err)
	}
	field := "name"
	if name == "" {
		name, field = meta.Provider, "provider"
	}
	if err := keys.CheckName(name); err != nil {
		return answer{}, badField(field, "%v", err)
	}
	if err := checkKey(key.value); err != nil {
		return answer{}, err
	}
	r.m.Scope.ProxyID, r.name = proxyID, name
	r.id = r.m.Scope.ID(name)
	m := *r.m
	m.Store = newKey{m.Store, m.Scope.Path(name), r.id}
	added, err := m.Add(ctx, name, key.value, meta)
	if err != nil {
		return answer{}, err
	}
	info, err := r.m.Show(ctx, name)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusCreated, created{info, added.Warnings}, keyPath(info.ID)}, nil
}

// created is a new key, with what the caller should be told.
type created struct {
	keys.Info
	Warnings []string `json:"warnings,omitempty"`
}

func checkKey(v *secret.Value) error {
	var err error
	v.Use(func(b []byte) { err = secret.CheckKey(b) })
	if err != nil {
		return badField("api_key", "%s", strings.TrimPrefix(err.Error(), "key: "))
	}
	return nil
}

// newKey is a store in which a key must not have a version that can be read: a
// creation must never replace a key that somebody else has made meanwhile.
type newKey struct {
	store.Store
	path, id string
}

func (n newKey) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	md, err := n.Store.Metadata(ctx, path)
	if err == nil && path == n.path && slices.ContainsFunc(md.Versions, store.Version.Readable) {
		return nil, refusal(codeExists, "%s exists; POST %s/rotate replaces the key, without a failed request", n.id, keyPath(n.id))
	}
	return md, err
}

// show describes a key and its rotation.
func (a *api) show(ctx context.Context, r *request) (answer, error) {
	info, err := r.m.Show(ctx, r.name)
	return answer{status: http.StatusOK, body: info}, err
}

// list describes the keys of one proxy id, or of all that the caller may see.
func (a *api) list(ctx context.Context, r *request) (answer, error) {
	infos, next, err := page(ctx, r, func(m *keys.Manager, name string) (info keys.Info, ok bool, err error) {
		info, err = m.Show(ctx, name)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return info, false, nil // removed since
		case errors.Is(err, store.ErrForbidden): // its name is all that the caller may know
			info = keys.Info{Name: name, ID: m.Scope.ID(name), Environment: m.Scope.Environment, ProxyID: m.Scope.ProxyID, Versions: []keys.Version{}, Error: err.Error()}
			return info, true, nil
		}
		return info, true, err
	})
	return answer{status: http.StatusOK, body: struct {
		Keys []keys.Info `json:"keys"`
		Next string      `json:"next,omitempty"`
	}{infos, next}}, err
}

// rotations describes rotations: the newest of each key that ever had one.
func (a *api) rotations(ctx context.Context, r *request) (answer, error) {
	open := false
	if s := r.query.Get("open"); r.query.Has("open") {
		if s != "true" && s != "false" {
			return answer{}, badField("open", "must be true or false")
		}
		open = s == "true"
	}
	list, next, err := page(ctx, r, func(m *keys.Manager, name string) (keys.Rotation, bool, error) {
		rot, err := m.Status(ctx, name)
		return rot, rot.Phase != rotation.PhaseNone && !(open && rot.Closed), err
	})
	return answer{status: http.StatusOK, body: struct {
		Rotations []keys.Rotation `json:"rotations"`
		Next      string          `json:"next,omitempty"`
	}{list, next}}, err
}

// remove ends a key: all its versions are revoked at once. What was written
// about it stays, for the record.
func (a *api) remove(ctx context.Context, r *request) (answer, error) {
	reason := r.query.Get("reason")
	if r.query.Has("reason") {
		if err := a.checkText(reason, maxReason); err != nil {
			return answer{}, badField("reason", "%v", err)
		}
	} else {
		reason = "deleted"
	}
	return a.end(ctx, r, keys.RevokeOptions{All: true, Reason: reason})
}

// revoke ends versions in an emergency.
func (a *api) revoke(ctx context.Context, r *request) (answer, error) {
	var o keys.RevokeOptions
	if err := decode(r.body, setters{"versions": versions(&o.Versions), "all": boolean(&o.All), "reason": a.text(&o.Reason, maxReason)}); err != nil {
		return answer{}, err
	}
	switch {
	case o.Reason == "":
		return answer{}, badField("reason", "is required: why it is revoked, for the record")
	case o.All && o.Versions != nil:
		return answer{}, badField("versions", "stands beside all: write one of them")
	}
	return a.end(ctx, r, o)
}

func (a *api) end(ctx context.Context, r *request, o keys.RevokeOptions) (answer, error) {
	revoked, err := r.m.Revoke(ctx, r.name, o)
	if err == nil {
		a.o.Requested(r.m.Scope.ProxyID, r.name) // what is left to do at the provider is the server's
	}
	return answer{status: http.StatusOK, body: revoked}, err
}

// rotate begins a rotation with the caller's rights. The server finishes it.
func (a *api) rotate(ctx context.Context, r *request) (answer, error) {
	var key secretField
	var o keys.RotateOptions
	defer func() { key.value.Destroy() }()
	err := decode(r.body, setters{
		"api_key": key.UnmarshalJSON, "managed": boolean(&o.Managed), "ramp": ramp(&o.Ramp), "grace": span(&o.Grace), "reason": a.text(&o.Reason, maxReason),
		"provider_id": a.text(&o.ProviderID, maxLabel),
	})
	if err != nil {
		return answer{}, err
	}
	switch {
	case o.Managed && o.ProviderID != "":
		return answer{}, badField("provider_id", "stands beside managed: with managed, the issuer tells it")
	case o.Managed && key.value != nil:
		return answer{}, badField("api_key", "stands beside managed: with managed, the key is made at the provider")
	case !o.Managed && key.value == nil:
		return answer{}, badField("api_key", "is required, but for managed: true, where the key is made at the provider")
	case key.value != nil:
		if err := checkKey(key.value); err != nil {
			return answer{}, err
		}
	}
	if err := keys.CheckProviderID(o.ProviderID); err != nil {
		return answer{}, badField("provider_id", "%v", err)
	}
	if o.IdempotencyKey, err = a.idempotencyKey(r); err != nil {
		return answer{}, err
	}
	if o.Managed {
		if err := a.issues(ctx, r); err != nil {
			return answer{}, err
		}
	}
	rot, err := r.m.Rotate(ctx, r.name, key.value, o)
	if err != nil {
		return answer{}, err
	}
	a.o.Requested(r.m.Scope.ProxyID, r.name)
	return answer{http.StatusAccepted, rot, keyPath(rot.ID)}, nil
}

// issues refuses to ask for what no issuer makes: the request would wait for ever.
func (a *api) issues(ctx context.Context, r *request) error {
	info, err := r.m.Show(ctx, r.name)
	if err != nil {
		return err
	}
	own, name := a.o.Own(), cmp.Or(info.Provider, r.name)
	if own.Issuer == nil || own.Issuer(name) == nil {
		return refusal(codeRefused, "no issuer is configured that makes keys of %s: send the new key as api_key", name)
	}
	return nil
}

// maxIdempotencyKey bounds what is kept in the rotation's record, in bytes.
const maxIdempotencyKey = 128

// idempotencyKey names the request. It is kept in the rotation's record, so that
// every server finds it there.
func (a *api) idempotencyKey(r *request) (string, error) {
	const header = "Idempotency-Key"
	values := r.Header.Values(header)
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", badField(header, "is there twice")
	}
	s := values[0]
	if len(s) > maxIdempotencyKey || strings.ContainsFunc(s, func(r rune) bool { return r < '!' || r > '~' }) {
		return "", badField(header, "must be 1 to %d visible ASCII characters, as in a UUID", maxIdempotencyKey)
	}
	if err := a.checkText(s, maxIdempotencyKey); err != nil {
		return "", badField(header, "%v", err)
	}
	return s, nil
}

// validate asks the provider about a key's versions. The caller needs no right
// to read them, only to see the key: the server reads them, and tells no value.
func (a *api) validate(ctx context.Context, r *request) (answer, error) {
	var list []int
	if err := decode(r.body, setters{"versions": versions(&list)}); err != nil {
		return answer{}, err
	}
	if _, err := r.m.Show(ctx, r.name); err != nil {
		return answer{}, err
	}
	if !a.probes.take(r.id) {
		p := refusal(codeLimited, "this key was validated only just now; its provider would mind being asked so often")
		p.retryAfter = 10
		return answer{}, p
	}
	m := *a.o.Own()
	m.Scope, m.Audit, m.Actor = r.m.Scope, a.inNameOf(r.m.Actor), r.m.Actor
	found, err := m.Validate(ctx, r.name, list...)
	if errors.Is(err, store.ErrForbidden) || errors.Is(err, store.ErrUnauthenticated) {
		err = ownError{err} // what the server may not read is not the caller's fault
	}
	return answer{status: http.StatusOK, body: struct {
		Validations []keys.Validation `json:"validations"`
	}{found}}, err
}

// audit shows the record of operations, newest first.
func (a *api) audit(ctx context.Context, r *request) (answer, error) {
	f := keys.TrailFilter{Key: r.query.Get("key"), Actor: r.query.Get("actor"), Event: r.query.Get("event")}
	limit, err := r.limit()
	if err != nil {
		return answer{}, err
	}
	for name, t := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		if !r.query.Has(name) {
			continue
		}
		if *t, err = time.Parse(time.RFC3339, r.query.Get(name)); err != nil {
			return answer{}, badField(name, "must be a time as in 2006-01-02T15:04:05Z")
		}
	}
	place, err := r.cursor()
	if err != nil {
		return answer{}, err
	}
	if place != "" {
		if f.Before, err = strconv.ParseUint(place, 10, 64); err != nil {
			return answer{}, badField("cursor", `is not one that this operation gave out as "next"`)
		}
	}
	f.Limit = limit + 1
	entries, err := a.o.Trail(r.m.Store).Entries(ctx, f)
	if err != nil {
		return answer{}, err
	}
	page := struct {
		Entries []audit.Entry `json:"entries"`
		Next    string        `json:"next,omitempty"`
	}{Entries: []audit.Entry{}}
	slices.Reverse(entries)
	if len(entries) > limit {
		entries = entries[:limit]
		page.Next = r.next(strconv.FormatUint(entries[limit-1].Seq, 10))
	}
	page.Entries = append(page.Entries, entries...)
	return answer{status: http.StatusOK, body: page}, nil
}

func (a *api) livez(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok") }

func (a *api) readyz(w http.ResponseWriter, _ *http.Request) {
	if why := a.o.Ready(); why != "" {
		plain(w, http.StatusServiceUnavailable, why)
		return
	}
	plain(w, http.StatusOK, "ok")
}

func (a *api) metrics(w http.ResponseWriter, r *http.Request) { a.o.Metrics.ServeHTTP(w, r) }

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	w.Write([]byte(text + "\n"))
}

func (a *api) openAPI(w http.ResponseWriter, _ *http.Request) {
	a.write(w, http.StatusOK, jsonType, json.RawMessage(document()))
}
