package proxy

import (
	"net/http"
	"net/textproto"
	"strings"

	"github.com/postern-proxy/postern/agent/redact"
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

// stripSet is every request field that never passes, by canonical name.
func stripSet(auth []string) map[string]bool {
	set := map[string]bool{}
	for _, names := range [][]string{hopByHop, forwarded, auth} {
		for _, n := range names {
			set[textproto.CanonicalMIMEHeaderKey(n)] = true
		}
	}
	return set
}

// stripRequest removes from h whatever the client may not send on: the fields
// its Connection names, hop-by-hop fields, and every credential that any known
// provider would take, also where '_' stands for '-' (some servers read both
// alike). It runs before the key is attached, so that nothing the client writes
// can remove the key (golang/go#50580).
func stripRequest(h http.Header, strip map[string]bool) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for k := range h {
		if strip[k] || strings.IndexByte(k, '_') >= 0 && strip[textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(k, "_", "-"))] {
			delete(h, k)
		}
	}
}

// stripResponse removes hop-by-hop fields from an answer, and names with a space
// in them, which net/http lets through: a client may read "Content-Length : 5"
// as the framing of an answer that is framed in another way (RFC 9112 section 5.1).
func stripResponse(h http.Header) {
	for k := range h {
		if strings.IndexByte(k, ' ') >= 0 {
			delete(h, k)
		}
	}
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, n := range hopByHop {
		delete(h, n)
	}
}

// shortest is the length below which no known value can be; see secret.CheckKey.
const shortest = 16

// maskHeaders overwrites known values in an answer's fields.
func maskHeaders(h http.Header, known *redact.Set, scratch []byte) {
	for _, vs := range h {
		for i, v := range vs {
			if len(v) < shortest {
				continue
			}
			scratch = append(scratch[:0], v...)
			if known.Mask(scratch, "header") > 0 {
				vs[i] = string(scratch)
			}
		}
	}
}

// Fields whose absolute URLs lead back to the provider, past the agent.
var urlFields = []string{"Location", "Content-Location", "X-Goog-Upload-Url", "Operation-Location", "Link"}

// rewriteURLs turns absolute URLs to the matched host into URLs of the route,
// so that a client following them comes back through the agent.
func rewriteURLs(h http.Header, t *Target, selfHost string) {
	for _, f := range urlFields {
		vs := h[f]
		for i, v := range vs {
			if f == "Link" {
				vs[i] = rewriteLink(v, t, selfHost)
			} else {
				vs[i] = rewriteURL(v, t, selfHost)
			}
		}
	}
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
	host, port, err := authority(hostport, map[bool]string{true: "443", false: "80"}[strings.EqualFold(scheme, "https")])
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
