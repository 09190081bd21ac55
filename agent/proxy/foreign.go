package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/elazarl/goproxy"

	"github.com/postern-proxy/postern/agent/proxy/h1"
	"github.com/postern-proxy/postern/agent/upstream"
)

// httpRequest is the session's request as net/http reads it. Its head was found
// to be unambiguous before; its body is the session's to read.
func (c *session) httpRequest() (*http.Request, error) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(c.in[:c.head])))
	if err != nil {
		return nil, err
	}
	r.Body = http.NoBody
	r.RemoteAddr = c.conn.RemoteAddr().String()
	return r.WithContext(c.ctx), nil
}

// foreign serves an absolute-form request to a host that is not configured:
// passed on as it is, without a key, or refused.
func (x *exchange) foreign(host, port string) {
	hostport := net.JoinHostPort(host, port)
	if !x.rt.Tunnel {
		x.refuse(http.StatusForbidden, codeUnmatched, foreignText(hostport), nil)
		return
	}
	if !x.target.is("http") {
		x.refuse(http.StatusBadRequest, codeBadHost, "an https URL of a host that is not configured goes through CONNECT", nil)
		return
	}
	r, err := x.c.httpRequest()
	if err != nil {
		x.last = true
		x.refuse(http.StatusBadRequest, codeFraming, "the request cannot be read as HTTP/1.1", nil)
		return
	}
	defer x.settle()
	if !x.c.body.none() {
		x.body = newBody(&x.c.body, &x.s.bodies, false)
		r.Body = x.body
	}
	for _, f := range x.req.Fields {
		if foreignStrip.has(f.Name) || nominated(&x.req.Head, f.Name) {
			r.Header.Del(string(f.Name))
			delete(r.Header, string(f.Name))
		}
	}
	x.code = "tunnelled"
	w := x.c.newResponse()
	x.s.front.ServeHTTP(flushing{w}, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
	x.aborted = !w.finish()
	x.last = w.close
}

// foreignStrip leaves the client's credentials alone: they are its own, for a
// host that is not ours to care for.
var foreignStrip = newNames(hopByHop, forwarded, []string{"Proxy-Authorization"})

// foreignAnswer is what the client gets of a plain request to a host that is
// not configured: its answer, or our error where there is none. No upgrade was
// asked for, and goproxy would act on one.
func foreignAnswer(resp *http.Response, ctx *goproxy.ProxyCtx) *http.Response {
	err := ctx.Error
	if resp != nil {
		stripForeign(resp.Header)
		if resp.StatusCode >= http.StatusOK {
			return resp
		}
		err = errors.New("malformed HTTP: a status that is none")
	}
	err = upstream.Explain(ctx.Req.URL.Host, err)
	status, code := failure(err)
	if x, ok := ctx.Req.Context().Value(exchangeKey{}).(*exchange); ok {
		x.status = status
		x.fail(code, err)
	}
	resp = problemResponse(status, code, clientText(err))
	resp.Request = ctx.Req
	return resp
}

// exchangeKey is the context key under which goproxy's handlers find the exchange.
type exchangeKey struct{}

// stripForeign removes an answer's hop-by-hop fields, and names with a space in
// them, which net/http lets through: a client may read "Content-Length : 5" as
// the framing of an answer that is framed in another way (RFC 9112 section 5.1).
func stripForeign(h http.Header) {
	for k := range h {
		if strings.IndexByte(k, ' ') >= 0 {
			delete(h, k)
		}
	}
	for _, list := range h["Connection"] {
		for rest := []byte(list); len(rest) > 0; {
			var name []byte
			name, rest = h1.NextToken(rest)
			h.Del(string(name))
		}
	}
	for _, n := range hopByHop {
		delete(h, n)
	}
}

// flushing flushes every write, because goproxy flushes only what calls itself an event stream.
type flushing struct{ *response }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.response.Write(p)
	if err == nil {
		err = f.FlushError()
	}
	return n, err
}
