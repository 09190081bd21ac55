package proxy

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/proxy/h1"
	"github.com/postern-proxy/postern/agent/upstream"
)

// overHTTP2 is overHTTP1 by net/http's transport: the same fields pass, the
// same key is attached, the same answer comes of it.
func (x *exchange) overHTTP2() error {
	t := x.trip
	t.begin(x.c, nil)
	out, err := x.request()
	if err != nil {
		return err
	}
	if x.sent.IsZero() {
		x.sent = time.Now()
	}
	resp, err := x.t.Transport.RoundTrip(out)
	if err != nil {
		return err
	}
	t.h2, t.in = resp.Body, borrow(largeBuf)
	if x.c.ofStream() && resp.ProtoMajor == 2 {
		t.trailer = &resp.Trailer
	}
	t.res = h1.Response{Status: resp.StatusCode, Declared: resp.ContentLength}
	t.res.Length = resp.ContentLength
	if out.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
		t.res.Length = 0
	}
	t.left = t.res.Length
	for k, vs := range resp.Header {
		for _, v := range vs {
			f := h1.Field{Name: []byte(k), Value: []byte(v)}
			if !f.Valid() { // from a server of HTTP/1.1, which net/http reads leniently
				return errAnswer("a field whose name is no token, or a control character in its value")
			}
			t.res.Fields = append(t.res.Fields, f)
		}
	}
	return nil
}

// request is the request as net/http takes it.
func (x *exchange) request() (*http.Request, error) {
	path := string(x.appendTarget(nil))
	plain, err := url.PathUnescape(path)
	if err != nil {
		return nil, err
	}
	u := &url.URL{Scheme: x.to.scheme, Host: x.to.header, Path: plain, RawPath: path}
	if u.EscapedPath() != path {
		u.Opaque = path // or net/url would escape what it finds missing
	}
	if len(x.target.query) > 0 {
		query, some := appendQuery(nil, x.target.query, x.credential)
		if some {
			u.RawQuery = string(query[1:])
		}
	}
	h := http.Header{}
	for _, f := range x.req.Fields {
		if v, ok := x.passed(&f); ok {
			h.Add(string(f.Name), string([]byte(v)))
		}
	}
	if x.upgrade {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	if te, _ := x.req.Get("Te"); x.c.ofStream() && h1.EqualFold(te, "trailers") {
		h["Te"] = []string{"trailers"} // servers of gRPC want it; theirs pass (RFC 9113 section 8.2.2)
	}
	h["Accept-Encoding"] = []string{"identity"}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = nil // or net/http would sign with its own name
	}
	if err := x.t.Provider.Attach(h, u, x.fields); err != nil {
		return nil, errAttach{err}
	}
	out := &http.Request{
		Method: string(x.req.Method), URL: u, Host: x.to.header, Header: h,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: x.req.Length,
	}
	if x.body != nil {
		out.Body = x.body
		if x.req.Chunked {
			out.ContentLength = -1
		}
	}
	return out.WithContext(upstream.Carrying(x.c.ctx, x.fields[keyring.KeyField].Fingerprint())), nil
}

func (t *trip) nextHTTP2() (data []byte, end bool, err error) {
	for {
		n, err := t.h2.Read(*t.in)
		if t.left > 0 {
			t.left -= int64(n)
		}
		switch {
		case err == io.EOF && t.left > 0:
			return nil, false, io.ErrUnexpectedEOF
		case err != nil && err != io.EOF:
			return nil, false, err
		case err == io.EOF && t.left < 0 && t.c.ctx.Err() != nil:
			return nil, false, context.Canceled // an upstream that is given up may end what it says as if it were whole
		}
		t.over = err == io.EOF || t.left == 0
		if n > 0 || t.over {
			return (*t.in)[:n], t.over, nil
		}
	}
}
