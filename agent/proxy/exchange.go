package proxy

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/upstream"
)

// How a request arrived.
const (
	viaRoute    = "route"
	viaAbsolute = "absolute"
	viaConnect  = "connect"
)

// exchange is one request and its response on their way through the agent. Its
// fields are filled along the path and read once, by finish.
type exchange struct {
	s   *Server
	rt  *Routing
	t   *Target // nil until matched
	w   http.ResponseWriter
	r   *http.Request
	via string

	body *body // of the request to the provider; nil where there is none

	start    time.Time
	sent     time.Time // when the request was handed to the upstream connection
	answered time.Time // when the answer's head had come
	wrote    time.Time // when its head had been passed on

	version  int // of the key it carried; 0 for none
	retried  bool
	masked   int
	upStatus int
	status   int // what the client saw; 0 if nothing was sent
	code     string
	err      error
}

// serve carries one request to the target that its route or host matched.
func (x *exchange) serve(rest string) {
	out, err := x.outgoing(rest)
	if err != nil {
		x.refuse(http.StatusBadRequest, codeBadPath, err.Error(), nil)
		return
	}
	lease, ok := x.t.Key.Pick(rand.Uint32())
	switch {
	case !ok && x.overtaken():
		x.serve(rest)
		return
	case !ok:
		x.noKey()
		return
	}
	defer func() { lease.Release() }()

	x.body = x.wrapBody(out)
	defer func() { x.body.detach(x) }()
	resp, err := x.send(out, lease)
	if err == nil && x.suspect(resp.StatusCode) {
		resp, lease, err = x.retry(out, resp, lease)
	}
	if err != nil {
		x.unreachable(out, err)
		return
	}
	defer resp.Body.Close()
	lease.Version().Served()
	x.respond(resp)
}

// overtaken matches the request anew where another generation came after it was
// matched: the one before lets go of its keys. It reports whether there is a match.
func (x *exchange) overtaken() bool {
	rt := x.s.routing.Load()
	t := rt.routes[x.t.Name]
	if rt == x.rt || t == nil {
		return false
	}
	if x.via == viaRoute {
		x.rt, x.t = rt, t
		return true
	}
	host, port, err := authority(x.r.URL.Host, map[bool]string{true: "443", false: "80"}[x.r.URL.Scheme == "https"])
	if err != nil || rt.byHost(host, port) != t {
		return false
	}
	x.rt, x.t = rt, t
	x.pin(host, port)
	return true
}

// outgoing makes the upstream request: the matched provider's host, the path
// as the client escaped it, its fields without hop-by-hop and credentials. The
// request's own header map is changed in place; nothing else of it is.
func (x *exchange) outgoing(rest string) (*http.Request, error) {
	if !provider.CleanPath(rest) {
		return nil, errPath
	}
	// In a tunnel or an absolute URL the client named the host itself, so its path is the provider's own.
	scheme, host, path := x.r.URL.Scheme, x.r.URL.Host, rest
	if x.via == viaRoute {
		scheme, host, path = x.t.Provider.RouteURL(rest)
	}
	plain, err := url.PathUnescape(path)
	if err != nil {
		return nil, errPath
	}
	u := &url.URL{Scheme: scheme, Host: host, Path: plain, RawPath: path}
	if u.EscapedPath() != path {
		return nil, errPath
	}
	u.RawQuery = stripQuery(x.r.URL.RawQuery, x.t.Provider.AuthQuery())

	h := x.r.Header
	upgrade := isWebSocket(x.r)
	stripRequest(h, x.rt.strip)
	if upgrade {
		h["Connection"] = []string{"Upgrade"}
		h["Upgrade"] = []string{"websocket"}
		delete(h, "Sec-Websocket-Extensions") // permessage-deflate could not be scrubbed
		stripSubprotocols(h)
	}
	h["Accept-Encoding"] = identity
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = nil // or net/http would sign with its own name
	}
	out := &http.Request{
		Method: x.r.Method, URL: u, Host: host, Header: h,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: x.r.Body, ContentLength: x.r.ContentLength,
	}
	if x.r.ContentLength == 0 {
		out.Body = nil
	}
	return out.WithContext(x.r.Context()), nil
}

var identity = []string{"identity"}

// send attaches the leased version's key and makes the round trip.
func (x *exchange) send(out *http.Request, lease keyring.Lease) (*http.Response, error) {
	v := lease.Version()
	if err := x.t.Provider.Attach(out.Header, out.URL, v.Fields()); err != nil {
		return nil, errAttach{err}
	}
	x.version = v.Number()
	if x.sent.IsZero() {
		x.sent = time.Now()
	}
	resp, err := x.t.Transport.RoundTrip(out)
	x.answered = time.Now()
	if err != nil {
		return nil, err
	}
	x.upStatus = resp.StatusCode
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols && out.Header.Get("Upgrade") == "":
		resp.Body.Close()
		return nil, errors.New("malformed HTTP: 101 without an upgrade")
	case resp.StatusCode < http.StatusOK && resp.StatusCode != http.StatusSwitchingProtocols:
		resp.Body.Close()
		return nil, errors.New("malformed HTTP: a status that is none")
	}
	return resp, nil
}

// errAttach: the key's version cannot be put onto a request.
type errAttach struct{ error }

// suspect reports whether a status may be the key's fault: the provider's dead
// statuses, and 403, which is a suspicion that only the other version settles.
func (x *exchange) suspect(status int) bool {
	return x.t.Provider.DeadStatus(status) || status == http.StatusForbidden
}

// retry sends the request once more with another usable version, if there is
// one and the body can be replayed. It returns the answer to pass on and the
// lease that goes with it; the other lease is released.
func (x *exchange) retry(out *http.Request, first *http.Response, lease keyring.Lease) (*http.Response, keyring.Lease, error) {
	other, ok := x.t.Key.Other(lease.Version().ID())
	if !ok {
		return first, lease, nil
	}
	taken := false // or it is released, whatever happens
	defer func() {
		if !taken {
			other.Release()
		}
	}()
	again := *out
	again.Header = out.Header.Clone()
	u := *out.URL
	again.URL = &u
	if x.body != nil {
		replay := x.body.replay()
		if replay == nil {
			return first, lease, nil
		}
		x.body, again.Body = replay, replay
	}
	first.Body.Close()
	x.retried = true
	resp, err := x.send(&again, other)
	if err != nil {
		return nil, lease, err
	}
	if !x.suspect(resp.StatusCode) {
		// Only this pair is evidence: a status that both draw says nothing about either.
		lease.Version().Failed()
		x.t.metrics.rescued.Inc()
	}
	lease.Version().Served()
	lease.Release()
	taken = true
	return resp, other, nil
}

// respond passes the answer on.
func (x *exchange) respond(resp *http.Response) {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		x.relay(resp)
		return
	}
	known := x.s.known
	coded := strings.Join(resp.Header["Content-Encoding"], ",")
	opaque := coded != "" && !strings.EqualFold(coded, "identity")
	if opaque {
		x.t.metrics.opaque.Inc()
		if x.t.Provider.Spec().Echoes {
			x.refuse(http.StatusBadGateway, codeUnscrubbable,
				"the provider compressed its answer although it was asked not to, so it cannot be checked for the key", nil)
			return
		}
	}
	h := x.w.Header()
	x.passHeaders(h, resp)
	x.status = resp.StatusCode
	x.w.WriteHeader(resp.StatusCode)
	x.wrote = time.Now()
	if x.r.Method == http.MethodHead || resp.ContentLength == 0 {
		return
	}
	var err error
	if opaque {
		err = x.copyBody(resp, nil)
	} else {
		st := known.NewStream("response")
		err = x.copyBody(resp, st)
		x.masked += st.Hits()
	}
	if err == nil {
		return
	}
	if x.r.Context().Err() != nil {
		x.fail(codeClientGone, nil)
	} else {
		x.fail(codeCutShort, upstream.Explain(resp.Request.URL.Host, err))
	}
	// The head is out, so the only honest way to say "cut short" is to cut the
	// connection; a client that ended its own side alone still reads. All of the
	// head goes first: what ends in the middle of one curl takes for a whole answer.
	http.NewResponseController(x.w).Flush()
	panic(http.ErrAbortHandler)
}

// passHeaders fills the client's header map from the answer.
func (x *exchange) passHeaders(h http.Header, resp *http.Response) {
	stripResponse(resp.Header)
	if x.via == viaRoute {
		rewriteURLs(resp.Header, x.t, x.r.Host)
	}
	scratch := scratchPool.Get().(*[]byte)
	maskHeaders(resp.Header, x.s.known, *scratch)
	scratchPool.Put(scratch)
	for k, vs := range resp.Header {
		h[k] = vs
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // or net/http would guess one
	}
}

// copyBody streams the answer: what one read brings is scrubbed, written and,
// unless it was the end, flushed.
func (x *exchange) copyBody(resp *http.Response, st *redact.Stream) error {
	buf := bufPool.Get().(*[]byte)
	defer bufPool.Put(buf)
	rc := http.NewResponseController(x.w)
	left := resp.ContentLength // -1 where unknown
	for {
		n, rerr := resp.Body.Read(*buf)
		if n > 0 {
			out := (*buf)[:n]
			if st != nil {
				out = st.Next(out)
			}
			if _, err := x.w.Write(out); err != nil {
				x.fail(codeClientGone, nil)
				return nil // closing the body ends the upstream side
			}
			if left > 0 {
				left -= int64(n)
			}
			if rerr == nil && left != 0 && len(out) > 0 {
				if err := rc.Flush(); err != nil {
					x.fail(codeClientGone, nil)
					return nil
				}
			}
		}
		if rerr != nil {
			var rest []byte
			if st != nil {
				rest = st.Close()
			}
			if rerr != io.EOF {
				return rerr // the rest, perhaps the beginning of a key, is not for an answer that is cut
			}
			x.w.Write(rest)
			if left != 0 {
				return x.r.Context().Err() // an upstream that is given up may end what it says as if it were whole
			}
			return nil
		}
	}
}

// unreachable answers when no answer came.
func (x *exchange) unreachable(out *http.Request, err error) {
	if bad := x.framing(); bad != nil {
		x.w.Header().Set("Connection", "close")
		x.refuse(http.StatusBadRequest, codeFraming, bad.Error(), nil)
		return
	}
	var attach errAttach
	switch {
	case errors.As(err, &attach):
		x.err = err
		x.refuse(http.StatusServiceUnavailable, codeNoKey, "the key "+x.t.Key.Name()+" cannot be attached: "+attach.Error(), nil)
		return
	case errors.Is(err, context.Canceled) && x.r.Context().Err() != nil:
		x.fail(codeClientGone, nil)
		panic(http.ErrAbortHandler) // an empty 200 would be a lie
	}
	hostport := out.URL.Host
	if out.URL.Port() == "" {
		hostport += ":443"
	}
	err = upstream.Explain(hostport, err)
	var ue *upstream.Error
	status, code := http.StatusBadGateway, codeUnreachable
	msg := "the request to " + hostport + " failed"
	if errors.As(err, &ue) {
		msg = ue.Error()
		x.t.metrics.failure(ue.Kind)
		if ue.Kind == "timeout" {
			status, code = http.StatusGatewayTimeout, codeTimeout
		}
	}
	x.refuse(status, code, msg, err)
}

// noKey answers 503 where no version is usable; nothing is forwarded (I11).
func (x *exchange) noKey() {
	why, passing := "no version of it is usable", false
	if x.s.why != nil {
		why, passing = x.s.why(x.t.Key.Name())
	}
	if passing {
		x.w.Header().Set("Retry-After", "2")
	}
	x.refuse(http.StatusServiceUnavailable, codeNoKey, "no usable provider key "+x.t.Key.Name()+": "+why, nil)
}
