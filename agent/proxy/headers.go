package proxy

import (
	"bytes"
	"strings"
	"unsafe"

	"github.com/postern-proxy/postern/agent/proxy/h1"
)

// Fields that concern one connection only (RFC 9110 section 7.6.1), and those
// by which proxies speak to each other.
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Expect",
}

// Fields by which a client could speak in a proxy's name to an upstream that trusts them.
var forwarded = []string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Real-Ip", "Via",
}

// own are the fields that the agent writes itself, once, or leaves out: without
// Grpc-Accept-Encoding the messages come as they can be scrubbed.
var own = []string{"Host", "Content-Length", "Accept-Encoding", "Grpc-Accept-Encoding"}

// names is a set of field names, found in any case and with '_' for '-': some
// servers read both alike. Looking allocates nothing.
type names struct {
	byLen [][]string // lower case, with '-'
}

func newNames(lists ...[]string) *names {
	s := &names{}
	for _, l := range lists {
		for _, n := range l {
			for len(s.byLen) <= len(n) {
				s.byLen = append(s.byLen, nil)
			}
			b := []byte(n)
			for i, c := range b {
				b[i] = h1.Fold(c)
			}
			s.byLen[len(n)] = append(s.byLen[len(n)], string(b))
		}
	}
	return s
}

func (s *names) has(name []byte) bool {
	if len(name) >= len(s.byLen) {
		return false
	}
	for _, n := range s.byLen[len(name)] {
		if h1.Same(name, n) {
			return true
		}
	}
	return false
}

// stripSet is every request field that is not passed as it came.
func stripSet(auth []string) *names { return newNames(hopByHop, forwarded, own, auth) }

// stripAnswer is every field of an answer that is not: those of its connection
// and, since the body is framed anew, its length.
var stripAnswer = newNames(hopByHop, []string{"Content-Length"})

// nominated reports whether one of the Connection fields names a field.
func nominated(h *h1.Head, name []byte) bool {
	for _, list := range h.Connection {
		for len(list) > 0 {
			var member []byte
			if member, list = h1.NextToken(list); len(member) == len(name) && h1.EqualFold(name, view(member)) {
				return true
			}
		}
	}
	return false
}

// passed is what goes on of a field of the client's: nothing of one that its
// Connection names, that is hop-by-hop, that any known provider would take a
// credential from, or that the key is attached in. It is asked before the key is
// attached, so that nothing the client writes can remove the key (golang/go#50580).
func (x *exchange) passed(f *h1.Field) (value string, ok bool) {
	if x.rt.strip.has(f.Name) || nominated(&x.req.Head, f.Name) || x.t.Provider.Attached(f.Name, x.fields) {
		return "", false
	}
	if x.upgrade {
		switch {
		case h1.Same(f.Name, "sec-websocket-extensions"):
			return "", false // permessage-deflate could not be scrubbed
		case h1.Same(f.Name, "sec-websocket-protocol"):
			value = subprotocols(view(f.Value))
			return value, value != ""
		}
	}
	return view(f.Value), true
}

// view is b as a string that is valid only as long as b is left alone.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// shortest is the length below which no known value can be; see secret.CheckKey.
const shortest = 16

// Fields whose absolute URLs lead back to the provider, past the agent.
var urlFields = newNames([]string{"Location", "Content-Location", "X-Goog-Upload-Url", "Operation-Location", "Link"})

// rewritten is a field's value as a client of the route has to see it: absolute
// URLs to the matched host become URLs of the route, so that a client following
// them comes back through the agent.
func rewritten(f h1.Field, t *Target, selfHost string) string {
	if len(f.Name) == len("Link") {
		return rewriteLink(string(f.Value), t, selfHost)
	}
	return rewriteURL(string(f.Value), t, selfHost)
}

// rewriteURL rewrites one URL; what does not lead to the target stays.
func rewriteURL(v string, t *Target, selfHost string) string {
	route := "/" + t.Name
	if strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "//") {
		return route + t.Provider.RoutePath(v)
	}
	scheme, rest, ok := strings.Cut(v, "://")
	if !ok || !strings.EqualFold(scheme, "https") && !strings.EqualFold(scheme, "http") {
		return v
	}
	hostport, path := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		hostport, path = rest[:i], rest[i:]
	}
	host, port, err := authority(hostport, defaultPort(scheme))
	if err != nil || !t.Provider.Lists(host, port) {
		return v
	}
	return "http://" + selfHost + route + t.Provider.RoutePath(path)
}

// rewriteLink rewrites the targets of a Link field (RFC 8288): <URL>; rel=…
func rewriteLink(v string, t *Target, selfHost string) string {
	var b strings.Builder
	for {
		open := strings.IndexByte(v, '<')
		if open < 0 {
			break
		}
		end := strings.IndexByte(v[open:], '>')
		if end < 0 {
			break
		}
		b.WriteString(v[:open+1])
		b.WriteString(rewriteURL(v[open+1:open+end], t, selfHost))
		v = v[open+end:]
	}
	b.WriteString(v)
	return b.String()
}

// values are all values of a field, as one list.
func values(h *h1.Head, name string) []byte {
	v, n := h.Get(name)
	if n <= 1 {
		return v
	}
	var all [][]byte
	for _, f := range h.Fields {
		if h1.EqualFold(f.Name, name) {
			all = append(all, f.Value)
		}
	}
	return bytes.Join(all, []byte{','})
}
