package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// FuzzRoute sends a request with whatever target to a server with a route
// named openai. Nothing is forwarded but what that route's name begins, and of
// that what follows the name, as it was written: it climbs out of no path in
// any reading of its escapes.
func FuzzRoute(f *testing.F) {
	for _, s := range []string{
		"/openai/v1/models", "/openai/models?a=b", "/openai", "/openai?x", "/openai/", "/openai2/v1", "/OPENAI/v1", "/open%61i/v1", "//openai/v1", "/openai//v1",
		"/openai/v1/../x", "/openai/v1/%2e%2e/x", "/openai/v1/..;/x", "/openai/v1%2fx", `/openai/v1\x`, "/openai/{x}", "/openai/%", "/openai/%zz", "/openai/%00", "/openai/%25%32%65",
		"*", "openai/v1", "http://openai/v1", "/openai/v1?a=%zz;b", "/openai/\"<>^`|", "/openai/v1beta1/x", "/openai/a/./b", "/openai/é", "/openai/v1#f",
	} {
		f.Add(s)
	}
	w := newWorld(f, nil)
	f.Fuzz(func(t *testing.T, target string) {
		if target == "" || strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return // no target: a matter of framing
		}
		before := len(w.requests())
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET "+target+" HTTP/1.1\r\nHost: "+w.addr+"\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%q: %v", target, err)
		}
		readAll(t, resp)
		seen := w.requests()[before:]
		rest, ours := strings.CutPrefix(target, "/openai")
		ours = ours && (rest == "" || rest[0] == '/' || rest[0] == '?')
		switch {
		case len(seen) == 0 && resp.Header.Get(errorField) == "":
			t.Fatalf("%q: %s, and nothing was forwarded", target, resp.Status)
		case len(seen) == 0:
			return
		case len(seen) > 1 || !ours:
			t.Fatalf("%q: forwarded %d requests, the first %s", target, len(seen), seen[0].RequestURI)
		}
		if got := seen[0].RequestURI; !written(rest, got) || climbsOut(got) {
			t.Fatalf("%q became %q", target, got)
		}
	})
}

// written reports whether an upstream's target is rest, with or without the
// prefix of the API's version. What RFC 3986 has no place for in a path may be escaped.
func written(rest, got string) bool {
	path, query, asked := strings.Cut(rest, "?")
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	if asked && query != "" { // a question mark alone asks nothing, and is dropped
		query = "?" + query
	}
	escaped := strings.NewReplacer(`"`, "%22", "<", "%3C", ">", "%3E", "^", "%5E", "`", "%60", "{", "%7B", "|", "%7C", "}", "%7D").Replace(path)
	for _, p := range []string{path, escaped} {
		if got == p+query || got == "/v1"+p+query {
			return true
		}
	}
	return false
}

// climbsOut reports whether a server that decodes as often as there is something
// to decode, takes a backslash for a slash and parameters out of segments sees a dot segment.
func climbsOut(target string) bool {
	path, _, _ := strings.Cut(target, "?")
	for {
		for seg := range strings.SplitSeq(strings.ReplaceAll(path, `\`, "/"), "/") {
			if seg, _, _ = strings.Cut(seg, ";"); seg == "." || seg == ".." {
				return true
			}
		}
		next, err := url.PathUnescape(path)
		if err != nil || next == path {
			return false
		}
		path = next
	}
}

var (
	modelName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)
	modelPort = regexp.MustCompile(`^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$`)
)

// modelAuthority is authority as its comment has it, by other means.
func modelAuthority(s string) (host, port string, ok bool) {
	host, port = s, "443"
	switch i := strings.LastIndex(s, ":"); {
	case strings.HasSuffix(s, "]"):
	case i >= 0:
		host, port = s[:i], s[i+1:]
	}
	if !modelPort.MatchString(port) {
		return "", "", false
	}
	if inner, six := strings.CutPrefix(host, "["); six {
		inner, six = strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		return a.String(), port, six && err == nil && a.Is6() && !a.Is4In6() && a.Zone() == ""
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.String(), port, a.Is4()
	}
	return strings.ToLower(host), port, len(host) <= 253 && modelName.MatchString(host)
}
