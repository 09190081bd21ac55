package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// requestTime bounds one request: a rotation asks a provider and writes a dozen entries.
const requestTime = 60 * time.Second

// maxInFlight is how many requests are worked on at once; more wait for nobody and are told so.
const maxInFlight = 64

// apiOptions are what the API is made of. All are required.
type apiOptions struct {
	Environment string
	// As opens the store with a token's rights. The store is used for one request, then released.
	As func(token *secret.Value) (st store.Store, release func())
	// Manager makes the operations of a caller, whose Scope has the environment
	// only. It fails with store.ErrUnauthenticated for a token that nobody knows.
	Manager func(ctx context.Context, st store.Store, source string) (*keys.Manager, error)
	// Own are the operations with the server's rights, with which Validate reads
	// and denials are recorded. nil as long as the store has not said who the server is.
	Own func() *keys.Manager
	// Trail is the record of operations as somebody's store sees it.
	Trail func(st store.Store) *keys.Trail
	// Requested is told of a rotation that the scheduler should look at soon.
	Requested func(proxyID, name string)
	// Ready says why the server is not ready; "" if it is.
	Ready   func() string
	Metrics http.Handler
	Figures *metrics
	Scrub   func([]byte) []byte // takes out what has the form of a key or a token
	Logger  *slog.Logger
	Now     func() time.Time
}

// api is the HTTP API. It holds no state but limits.
type api struct {
	o        apiOptions
	places   chan struct{}
	failures *limits // of authentication, by address
	probes   *limits // by key
	denials  *denials
}

func newAPI(o apiOptions) *api {
	return &api{
		o: o, places: make(chan struct{}, maxInFlight),
		failures: newLimits(o.Now, 1, 50), probes: newLimits(o.Now, 0.1, 3),
		denials: newDenials(o.Now),
	}
}

// request is one request on its way through the API.
type request struct {
	*http.Request
	op    *operation
	m     *keys.Manager // the caller's; its Scope is the key's where the path names one
	raw   string        // what the path has as a key's id
	id    string        // of the key, once it is known to be one
	name  string        // of the key
	body  []byte        // wiped at the end
	query url.Values
}

// answer is what an operation gives back.
type answer struct {
	status   int
	body     any
	location string
}

// operation is one row of the API.
type operation struct {
	name   string // the operationId
	method string
	path   string // "{id}" stands for a key's id
	body   bool
	params []string
	run    func(a *api, ctx context.Context, r *request) (answer, error)
	// open operations need no token; they write their answer themselves.
	open func(a *api, w http.ResponseWriter, r *http.Request)
}

// operations is the whole API. A test holds it against openapi.yaml.
var operations = []*operation{
	{name: "createProviderKey", method: "POST", path: "/v1/provider-keys", body: true, run: (*api).create},
	{name: "listProviderKeys", method: "GET", path: "/v1/provider-keys", params: []string{"proxy_id", "limit", "cursor"}, run: (*api).list},
	{name: "getProviderKey", method: "GET", path: "/v1/provider-keys/{id}", run: (*api).show},
	{name: "deleteProviderKey", method: "DELETE", path: "/v1/provider-keys/{id}", params: []string{"reason"}, run: (*api).remove},
	{name: "rotateProviderKey", method: "POST", path: "/v1/provider-keys/{id}/rotate", body: true, run: (*api).rotate},
	{name: "validateProviderKey", method: "POST", path: "/v1/provider-keys/{id}/validate", body: true, run: (*api).validate},
	{name: "revokeProviderKey", method: "POST", path: "/v1/provider-keys/{id}/revoke", body: true, run: (*api).revoke},
	{name: "listRotations", method: "GET", path: "/v1/rotations", params: []string{"proxy_id", "open", "limit", "cursor"}, run: (*api).rotations},
	{name: "listAudit", method: "GET", path: "/v1/audit", params: []string{"since", "until", "key", "actor", "event", "limit", "cursor"}, run: (*api).audit},
	{name: "getOpenAPI", method: "GET", path: "/openapi.json", open: (*api).openAPI},
	{name: "getLiveness", method: "GET", path: "/livez", open: (*api).livez},
	{name: "getReadiness", method: "GET", path: "/readyz", open: (*api).readyz},
	{name: "getMetrics", method: "GET", path: "/metrics", open: (*api).metrics},
}

// ServeHTTP answers one request.
func (a *api) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	start := a.o.Now()
	// Whatever fails from here on, nobody behind this point sees the token in the header.
	bearer := hr.Header.Get("Authorization")
	hr.Header.Del("Authorization")
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	rec := &recorder{ResponseWriter: w}
	r := &request{Request: hr}
	var p *problem
	defer func() {
		if x := recover(); x != nil {
			// What a panic holds may be anything: only that there was one is told.
			a.o.Logger.Error("a request failed by a mistake in the server", "operation", r.label())
			p = refusal(codeInternal, "a mistake in the server; its log has the time")
			if rec.status == 0 {
				a.refuse(rec, p)
			}
		}
		a.finish(r, rec.status, p, start)
	}()
	p = a.serve(rec, r, bearer)
	if p != nil {
		if r.body == nil && hr.ContentLength != 0 { // a body that nobody read is not waited for
			h.Set("Connection", "close")
		}
		a.refuse(rec, p)
	}
}

// label is the operation's name for logs and metrics; never a part of the request.
func (r *request) label() string {
	if r.op == nil {
		return "none"
	}
	return r.op.name
}

// finish counts and logs. The path and the query are not logged: they may hold anything.
func (a *api) finish(r *request, status int, p *problem, start time.Time) {
	code, took := "ok", a.o.Now().Sub(start)
	if p != nil {
		code = p.Code
	}
	a.o.Figures.request(r.label(), code, took)
	if r.op != nil && r.op.open != nil && p == nil {
		return // probes and scrapes
	}
	level, args := slog.LevelInfo, []any{"operation", r.label(), "status", status, "outcome", code, "source", source(r.Request), "ms", took.Milliseconds()}
	if r.m != nil {
		args = append(args, "actor", r.m.Actor.Name)
	}
	if r.id != "" {
		args = append(args, "id", r.id)
	}
	if p != nil && p.cause != nil {
		level = slog.LevelError
		args = append(args, "error", p.cause)
	}
	a.o.Logger.Log(context.Background(), level, "request", args...)
}

// serve does what the request asks for, or says why not.
func (a *api) serve(w http.ResponseWriter, r *request, bearer string) *problem {
	if p := a.route(w, r); p != nil {
		return p
	}
	if p := crossSite(r.Request); p != nil {
		return p
	}
	if r.op.open != nil {
		r.op.open(a, w, r.Request)
		return nil
	}
	var err error
	if r.query, err = query(r.URL.RawQuery, r.op.params); err != nil {
		return explain(err)
	}
	if a.o.Own() == nil {
		p := refusal(codeUnavailable, "the server has not reached its store yet")
		p.retryAfter = 5
		return p
	}
	from := source(r.Request)
	if !a.failures.may(from) {
		p := refusal(codeLimited, "too many requests from this address had a token that Vault does not know")
		p.retryAfter = 5
		return p
	}
	token, err := bearerToken(bearer)
	if err != nil {
		a.failures.take(from)
		return explain(err)
	}
	defer token.Destroy()
	select {
	case a.places <- struct{}{}:
		defer func() { <-a.places }()
	default:
		p := refusal(codeLimited, "the server works on as many requests as it can")
		p.retryAfter = 1
		return p
	}
	ctx := r.Context()
	if r.op.method != http.MethodGet { // what was begun is not left half done because the caller hung up
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	return a.asCaller(ctx, w, r, token)
}

// asCaller runs the operation with the rights of a token.
func (a *api) asCaller(ctx context.Context, w http.ResponseWriter, r *request, token *secret.Value) *problem {
	st, release := a.o.As(token)
	defer release()
	var err error
	if r.m, err = a.o.Manager(ctx, st, source(r.Request)); err != nil {
		return a.notKnown(r, err)
	}
	if r.raw != "" {
		if r.m.Scope.ProxyID, r.name, err = a.parseID(r.raw); err != nil {
			return explain(err)
		}
		r.id = r.raw
	}
	if r.op.body { // strangers' bodies are not waited for
		w.Header().Set("Connection", "close") // or its buffers keep what came last, a key, for as long as it waits
		if r.body, err = readBody(w, r.Request); err != nil {
			return explain(err)
		}
		defer secret.Sweep(nil) // of what net/http made of it
		defer secret.Wipe(r.body)
	} else if r.ContentLength != 0 {
		return refusal(codeInvalid, "this operation takes no body")
	}
	got, err := r.op.run(a, ctx, r)
	if err != nil {
		p := explain(err)
		if errors.Is(err, store.ErrUnauthenticated) {
			a.failures.take(source(r.Request))
		}
		if p.Code == codeForbidden {
			a.deny(ctx, r, err)
		}
		return p
	}
	if got.location != "" {
		w.Header().Set("Location", got.location)
	}
	a.write(w, got.status, jsonType, got.body)
	return nil
}

// notKnown is for a caller whom the store does not know, or who cannot be asked
// about. Nobody has shown who they are yet, so they are told little.
func (a *api) notKnown(r *request, err error) *problem {
	r.m = nil
	p := explain(err)
	if p.Code == codeTimeout {
		return p
	}
	// Of some tokens Vault cannot make sense at all, and cuts the connection: that is no better than a wrong one.
	a.failures.take(source(r.Request))
	if p.Code == codeUnauthenticated || p.Code == codeForbidden {
		return refusal(codeUnauthenticated, "Vault does not know the token: it expired, was revoked, or is another Vault's")
	}
	p = refusal(codeUnavailable, "the store cannot be asked about the token at this moment")
	p.cause, p.retryAfter = err, 5
	return p
}

// route finds the operation. An exact table: nothing is redirected, decoded or guessed.
func (a *api) route(w http.ResponseWriter, r *request) *problem {
	var allow []string
	for _, op := range operations {
		id, ok := match(op.path, r.URL.EscapedPath())
		if !ok {
			continue
		}
		if op.method == r.Method || op.method == http.MethodGet && r.Method == http.MethodHead {
			r.op, r.raw = op, id
			return nil
		}
		if op.method == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
		allow = append(allow, op.method)
	}
	if allow == nil {
		return refusal(codeNotFound, "there is nothing here; /openapi.json describes what there is")
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	return refusal(codeMethod, "this path takes %s", strings.Join(allow, ", "))
}

// match compares a path with a pattern and returns what stands for {id}.
func match(pattern, path string) (id string, ok bool) {
	before, after, has := strings.Cut(pattern, "{id}")
	if !has {
		return "", path == pattern
	}
	rest, ok := strings.CutPrefix(path, before)
	if !ok {
		return "", false
	}
	id, ok = strings.CutSuffix(rest, after)
	return id, ok && id != "" && !strings.Contains(id, "/")
}

// crossSite refuses what a browser sends for another site's page. Such a page
// has no token to send; that is not to be relied upon.
func crossSite(r *http.Request) *problem {
	site := r.Header.Get("Sec-Fetch-Site")
	bad := site == "cross-site" || site == "same-site"
	if o := r.Header.Get("Origin"); o != "" && !bad {
		u, err := url.Parse(o)
		bad = err != nil || u.Host != r.Host
	}
	if bad {
		return refusal(codeCrossSite, "a browser sent this for a page of another site")
	}
	return nil
}

// query reads the parameters strictly.
func query(raw string, known []string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, refusal(codeInvalid, "the query cannot be read")
	}
	for name, values := range q {
		ok := false
		for _, k := range known {
			ok = ok || k == name
		}
		switch {
		case !ok && plainName(name):
			return nil, badField(name, "is not known here: there are %s", orNone(known))
		case !ok:
			return nil, refusal(codeInvalid, "a parameter is not known here: there are %s", orNone(known))
		case len(values) != 1:
			return nil, badField(name, "is there twice")
		}
	}
	return q, nil
}

func orNone(known []string) string {
	if len(known) == 0 {
		return "none"
	}
	return strings.Join(known, ", ")
}

// maxToken bounds a token; Vault's batch tokens are the longest, with a few hundred bytes.
const maxToken = 8 << 10

// bearerToken takes the token out of an Authorization header.
func bearerToken(header string) (*secret.Value, error) {
	const how = "send Authorization: Bearer and a Vault token"
	scheme, token, ok := strings.Cut(header, " ")
	switch {
	case header == "":
		return nil, refusal(codeUnauthenticated, "there is no token: "+how)
	case !ok || !strings.EqualFold(scheme, "bearer"):
		return nil, refusal(codeUnauthenticated, "the Authorization header has another form: "+how)
	case token == "" || len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, refusal(codeUnauthenticated, "this can be no token: "+how)
	}
	return secret.New([]byte(token))
}

// parseID splits <environment>.<proxy_id>.<name>. Another environment's keys are not here.
func (a *api) parseID(id string) (proxyID, name string, err error) {
	missing := refusal(codeNotFound, "there is no such key here; ids read <environment>.<proxy_id>.<name>, and this server's environment is %s", a.o.Environment)
	environment, rest, ok := strings.Cut(id, ".")
	proxyID, name, more := strings.Cut(rest, ".")
	if !ok || !more || environment != a.o.Environment || checkProxyID(proxyID) != nil || keys.CheckName(name) != nil {
		return "", "", missing
	}
	return proxyID, name, nil
}

// source is the address that a request came from.
func source(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// recorder remembers the status.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// deny records that somebody was refused what they asked for, with the server's own token.
func (a *api) deny(ctx context.Context, r *request, reason error) {
	unrecorded, ok := a.denials.may(r.m.Actor.Entity + "/" + r.m.Actor.Name)
	a.o.Figures.denied(ok)
	if !ok {
		return
	}
	e := audit.Event{
		Event: keys.EventDenied, Actor: r.m.Actor.Name, Source: r.m.Actor.Source,
		Environment: a.o.Environment, ProxyID: r.m.Scope.ProxyID, Key: r.name,
		Outcome: keys.OutcomeDenied, Reason: reason.Error(),
		Detail: map[string]string{"operation": r.label()},
	}
	if unrecorded > 0 {
		e.Detail["not_recorded_before"] = strconv.Itoa(unrecorded)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), denialTime)
	defer cancel()
	if _, err := a.inNameOf(r.m.Actor).Append(ctx, e); err != nil {
		a.o.Logger.Error("a denial could not be recorded", "operation", r.label(), "actor", r.m.Actor.Name, "error", err)
	}
}

// onBehalf is the record as the server writes it about what a caller did.
type onBehalf struct {
	audit.Sink
	server, caller string // entities
}

// inNameOf is the record for what the server does with its own rights for a
// caller, who may have no right to write there.
func (a *api) inNameOf(caller keys.Actor) audit.Sink {
	own := a.o.Own()
	return onBehalf{own.Audit, own.Actor.Entity, caller.Entity}
}

// Append implements audit.Sink. The store knows the writer as the server, so that
// the caller's entity stands beside it.
func (o onBehalf) Append(ctx context.Context, e audit.Event) (audit.Head, error) {
	detail := map[string]string{}
	maps.Copy(detail, e.Detail)
	delete(detail, audit.DetailEntity)
	for name, entity := range map[string]string{audit.DetailEntity: o.server, "caller_entity_id": o.caller} {
		if entity != "" {
			detail[name] = entity
		}
	}
	e.Detail = detail
	return o.Sink.Append(ctx, e)
}
