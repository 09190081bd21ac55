package proxy

import (
	"net/http"
	"strconv"
	"time"

	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/proxy/h1"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/upstream"
)

// respond passes the answer on.
func (x *exchange) respond() {
	t := x.trip
	if t.res.Status == http.StatusSwitchingProtocols {
		x.relay()
		return
	}
	opaque := coded(&t.res.Head, "Content-Encoding") || coded(&t.res.Head, "Grpc-Encoding")
	if opaque {
		x.t.metrics.opaque.Inc()
		if x.t.Provider.Spec().Echoes {
			x.refuse(http.StatusBadGateway, codeUnscrubbable,
				"the provider compressed its answer although it was asked not to, so it cannot be checked for the key", nil)
			return
		}
	}
	x.status = t.res.Status
	chunked := x.frameAnswer()
	x.passFields()
	x.endHead(chunked)
	if t.bodiless() {
		t.release()
		x.sentAll(x.c.flush())
		return
	}
	var err error
	if opaque {
		err = x.copyBody(nil, chunked)
	} else {
		before := x.c.scrub.Hits()
		err = x.copyBody(x.c.scrub, chunked)
		if hits := x.c.scrub.Hits() - before; hits > 0 {
			x.masked += hits
		}
	}
	if err != nil {
		x.cutShort(err)
	}
}

// coded reports whether a field says that the body is compressed, or each message in it.
func coded(h *h1.Head, name string) bool {
	v := values(h, name)
	return len(v) > 0 && !h1.EqualFold(v, "identity")
}

// sentAll ends an answer whose last bytes were written, or were not.
func (x *exchange) sentAll(err error) {
	if err != nil {
		x.fail(codeClientGone, nil)
		x.aborted = true
	}
}

// cutShort ends an answer that broke off. The head is out, so the only honest
// way to say so is to cut the connection; a client that ended its own side
// alone still reads.
func (x *exchange) cutShort(err error) {
	x.aborted = true
	if err == errClient || x.c.ctx.Err() != nil {
		x.fail(codeClientGone, nil)
		return
	}
	x.fail(codeCutShort, upstream.Explain(x.to.hostport, err))
}

// frameAnswer begins the answer's head and decides how its body ends (RFC 9112
// section 6.3).
func (x *exchange) frameAnswer() (chunked bool) {
	res := &x.trip.res
	x.beginHead(res.Status)
	switch {
	case res.Status == http.StatusNoContent:
	case res.Declared >= 0:
		x.c.out = appendLength(x.c.out, res.Declared)
	case x.trip.bodiless():
	case x.req.Minor == 1:
		return true
	default:
		x.last = true // the end of the connection ends the body
	}
	return false
}

// beginHead writes the status line.
func (x *exchange) beginHead(status int) {
	x.c.begin()
	out := append(x.c.out, "HTTP/1.1 "...)
	out = append(strconv.AppendInt(out, int64(status), 10), ' ')
	x.c.out = append(append(out, http.StatusText(status)...), "\r\n"...)
}

func appendLength(dst []byte, n int64) []byte {
	dst = append(dst, "Content-Length: "...)
	return append(strconv.AppendInt(dst, n, 10), "\r\n"...)
}

// passFields writes the answer's fields, scrubbed, without those of its connection.
func (x *exchange) passFields() {
	t := x.trip
	if t.h2 == nil {
		x.s.known.Mask((*t.in)[t.from:t.r], redact.WhereHeader)
	}
	dated := false
	for i := range t.res.Fields {
		f := &t.res.Fields[i]
		if t.h2 != nil && len(f.Value) >= shortest {
			x.s.known.Mask(f.Value, redact.WhereHeader)
		}
		if stripAnswer.has(f.Name) || nominated(&t.res.Head, f.Name) {
			continue
		}
		dated = dated || h1.EqualFold(f.Name, "Date")
		value := view(f.Value)
		if x.via == viaRoute && urlFields.has(f.Name) {
			value = rewritten(*f, x.t, x.host)
		}
		x.c.out = appendField(x.c.out, view(f.Name), value)
	}
	if !dated {
		x.c.out = appendDate(x.c.out)
	}
}

func appendDate(dst []byte) []byte {
	dst = append(dst, "Date: "...)
	return append(time.Now().UTC().AppendFormat(dst, http.TimeFormat), "\r\n"...)
}

// endHead writes what the connection needs, and the head's end.
func (x *exchange) endHead(chunked bool) {
	out := x.c.out
	if chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	x.last = x.last || x.req.Close || x.s.closing.Load()
	if x.last {
		out = append(out, "Connection: close\r\n"...)
	}
	x.c.out = append(out, "\r\n"...)
	x.wrote = time.Now()
}

// copyBody streams the answer: what one read brings is scrubbed and goes out
// before the next is waited for, the first of it together with the head. st is
// nil where nothing can be scrubbed.
func (x *exchange) copyBody(st *redact.Stream, chunked bool) error {
	for {
		if !x.trip.atHand() {
			if err := x.c.flush(); err != nil {
				return errClient
			}
			x.c.rest()
			x.trip.rest()
		}
		data, end, err := x.trip.next()
		if err != nil {
			x.c.flush()
			return err // and what was held back stays so: it may be a key's beginning
		}
		if st != nil {
			data = st.Next(data)
		}
		if end {
			x.trip.release()
		}
		if x.put(data, chunked) != nil {
			return errClient
		}
		if end {
			return x.endBody(st, chunked)
		}
	}
}

// endBody writes what the scrubber held back, and the body's end.
func (x *exchange) endBody(st *redact.Stream, chunked bool) error {
	if st != nil && x.put(st.Close(), chunked) != nil {
		return errClient
	}
	if chunked {
		x.takeTrailers()
		x.c.ready()
		x.c.out = append(x.c.out, h1.LastChunk...)
	}
	if x.c.flush() != nil {
		return errClient
	}
	return nil
}

// errClient: the client takes nothing any more.
const errClient = clientError("the client has left")

type clientError string

func (e clientError) Error() string { return string(e) }

// put writes a piece of the body, behind what is to be written: in one buffer,
// as long as it fits.
func (x *exchange) put(p []byte, chunked bool) error {
	if len(p) == 0 {
		return nil
	}
	c := x.c
	c.ready()
	if chunked {
		c.out = h1.AppendChunkHead(c.out, len(p))
	}
	if c.room(len(p) + len("\r\n") + len(h1.LastChunk)) {
		c.out = append(c.out, p...)
	} else {
		if err := c.flush(); err != nil {
			return err
		}
		if _, err := c.conn.Write(p); err != nil {
			return err
		}
	}
	if chunked {
		c.out = append(c.out, "\r\n"...)
	}
	return nil
}

// refuse answers with an error of our own, in the matched provider's shape so
// that its SDK raises its typed error with our sentence. msg is for the client;
// err, if any, for the log.
func (x *exchange) refuse(status int, code, msg string, err error) {
	x.fail(code, err)
	shape := "problem"
	if x.t != nil {
		shape = x.t.Provider.Spec().Errors
	}
	ct, body := provider.ErrorBody(shape, code, status, msg, x.passing)
	x.status = status
	x.c.out = x.c.out[:0]
	x.beginHead(status)
	out := appendLength(x.c.out, int64(len(body)))
	out = appendField(out, "Content-Type", ct)
	out = appendField(out, "Cache-Control", "no-store")
	out = appendField(out, errorField, code)
	switch {
	case x.passing:
		out = appendField(out, "Retry-After", "2")
	case status != http.StatusBadGateway && status != http.StatusGatewayTimeout:
		out = appendField(out, "X-Should-Retry", "false")
	}
	x.c.out = appendDate(out)
	x.endHead(false)
	if view(x.req.Method) != http.MethodHead {
		x.c.out = append(x.c.out, body...)
	}
	x.sentAll(x.c.flush())
}
