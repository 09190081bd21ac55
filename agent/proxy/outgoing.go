package proxy

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/postern-proxy/postern/agent/proxy/h1"
)

// headRoom bounds what appendHead appends: the buffer is not left behind,
// grown, with a key in it.
func (x *exchange) headRoom() int {
	n := len(x.req.Method) + len(x.t.Provider.Before("/")) + len(x.path) + len(x.target.query) + len(x.to.header) + x.t.Provider.Room(x.fields) + 256
	for i := range x.req.Fields {
		f := &x.req.Fields[i]
		n += len(f.Name) + len(f.Value) + len(": \r\n")
	}
	return n
}

// appendHead appends the head that the provider gets: its own host, the path byte
// for byte, the client's fields without hop-by-hop and credentials,
// and then the key.
func (x *exchange) appendHead(dst []byte) ([]byte, error) {
	dst = append(append(dst, x.req.Method...), ' ')
	dst = x.appendTarget(dst)
	some := false
	if len(x.target.query) > 0 {
		dst, some = appendQuery(dst, x.target.query, x.credential)
	}
	dst, err := x.t.Provider.AppendQuery(dst, some, x.fields)
	if err != nil {
		return dst, err
	}
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(append(dst, x.to.header...), "\r\n"...)
	for i := range x.req.Fields {
		f := &x.req.Fields[i]
		if v, ok := x.passed(f); ok {
			dst = appendField(dst, view(f.Name), v)
		}
	}
	if x.upgrade {
		dst = append(dst, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	dst = append(dst, "Accept-Encoding: identity\r\n"...)
	dst = x.appendFraming(dst)
	dst, err = x.t.Provider.AppendHeaders(dst, x.fields)
	return append(dst, "\r\n"...), err
}

// appendTarget appends the path at the provider. In a tunnel or an absolute URL
// the client named the host itself, so its path is the provider's own.
func (x *exchange) appendTarget(dst []byte) []byte {
	if x.via == viaRoute {
		dst = append(dst, x.t.Provider.Before(view(x.path))...)
	}
	return append(dst, x.path...)
}

// appendFraming says how the body ends. Many servers want to hear of an empty
// one where the method is one that has a body (RFC 9110 section 8.6).
func (x *exchange) appendFraming(dst []byte) []byte {
	switch method := view(x.req.Method); {
	case x.req.Chunked:
		return append(dst, "Transfer-Encoding: chunked\r\n"...)
	case x.req.Length > 0, method == http.MethodPost, method == http.MethodPut, method == http.MethodPatch:
		dst = append(dst, "Content-Length: "...)
		return append(strconv.AppendInt(dst, x.req.Length, 10), "\r\n"...)
	}
	return dst
}

func appendField(dst []byte, name, value string) []byte {
	dst = append(append(dst, name...), ": "...)
	return append(append(dst, value...), "\r\n"...)
}

// isWebSocket reports a client's opening handshake (RFC 6455 section 4.1). Any
// other upgrade is not passed on (h2c least of all), so that the request goes
// on as what it is.
func (x *exchange) isWebSocket() bool {
	r := x.req
	if len(r.Connection) == 0 || view(r.Method) != http.MethodGet || r.Minor != 1 || r.Chunked || r.Length > 0 {
		return false
	}
	if protocol, n := r.Get("Upgrade"); n != 1 || !h1.EqualFold(protocol, "websocket") {
		return false
	}
	for _, v := range r.Connection {
		if h1.HasToken(v, "upgrade") {
			return true
		}
	}
	return false
}

// subprotocols is what a Sec-WebSocket-Protocol field keeps: those by which
// browsers, which can set no header on a WebSocket, send a key go
// ("openai-insecure-api-key.sk-…", OpenAI's Realtime API with WebSockets).
func subprotocols(value string) string {
	var kept []string
	for p := range strings.SplitSeq(value, ",") {
		if p = strings.Trim(p, " \t"); p != "" && !strings.Contains(strings.ToLower(p), "api-key") {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, ", ")
}
