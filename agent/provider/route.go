package provider

import (
	"slices"
	"strings"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// RouteURL says where a route leads: rest is the escaped path after "/<name>"
// ("" or "/v1/chat/completions"), and path the escaped path at host (host:port
// unless the port is the scheme's), below the base URL's. The default prefix is
// put between the two where rest begins with neither an API version nor the
// prefix's own first segment. Nothing is decoded or cleaned: a rest that could
// mean another path to somebody else (dot segments in any encoding, empty
// segments, backslashes, control characters, a broken escape) gives three empty
// strings and must be refused. RouteURL allocates only where it has something to put before rest.
func (p *Provider) RouteURL(rest string) (scheme, host, path string) {
	if rest == "" {
		rest = "/"
	}
	if !CleanPath(rest) {
		return "", "", ""
	}
	return p.scheme, p.host, p.Before(rest) + rest
}

// Before is what RouteURL puts before rest, which is a clean path. It does not allocate.
func (p *Provider) Before(rest string) string {
	if p.prefix != "" && !p.prefixed(rest) {
		return p.full
	}
	return p.base
}

// RoutePath is RouteURL backwards: of the provider's path (escaped, with or
// without a query and fragment) it returns what follows "/<name>" in the route
// that leads there. A path outside the base URL's has no route and is returned
// as it is.
func (p *Provider) RoutePath(path string) string {
	if rest, ok := strings.CutPrefix(path, p.base); ok && (rest == "" || strings.IndexByte("/?#", rest[0]) >= 0) {
		return rest
	}
	return path
}

// prefixed reports whether rest needs no default prefix.
func (p *Provider) prefixed(rest string) bool {
	seg, _, _ := strings.Cut(rest[1:], "/")
	return seg == p.first || isVersion(seg)
}

// isVersion reports whether a segment is v1, v2, v1beta, v1alpha, v1beta1, v1p1beta1 …
func isVersion(seg string) bool {
	s, ok := strings.CutPrefix(seg, "v")
	n := digits(s)
	if !ok || n == 0 || n > 3 {
		return false
	}
	s = s[n:]
	if strings.HasPrefix(s, "p") && digits(s[1:]) > 0 {
		s = s[1+digits(s[1:]):]
	}
	if s == "" {
		return true
	}
	after, ok := strings.CutPrefix(s, "alpha")
	if !ok {
		after, ok = strings.CutPrefix(s, "beta")
	}
	return ok && digits(after) == len(after)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// CleanPath reports whether every reader of an escaped path sees the same
// segments and none of them climbs: no empty segment but the last, no dot
// segment in any encoding, no backslash, no control character. Escapes are
// looked through as often as they nest, for the check only.
func CleanPath(path string) bool {
	if path == "" || path[0] != '/' || strings.Contains(path, "//") {
		return false
	}
	dots, other, skip := 0, false, false // of the segment so far; skip: after its ;
	for i := 0; i < len(path); {
		c, n := lookThrough(path[i:])
		if n == 1 && (c <= ' ' || c >= 0x7f || c == '\\' || c == '?' || c == '#' || c == '%') {
			return false
		}
		if c < ' ' || c == 0x7f {
			return false
		}
		i += n
		switch {
		case c == '/' || c == '\\':
			if climbs(dots, other) {
				return false
			}
			dots, other, skip = 0, false, false
		case c == ';':
			skip = true
		case skip:
		case c == '.':
			dots++
		default:
			other = true
		}
	}
	return !climbs(dots, other)
}

func climbs(dots int, other bool) bool { return !other && (dots == 1 || dots == 2) }

// lookThrough returns the first character of s as the most eager decoder sees
// it, and the bytes it takes. A % that begins no escape is itself.
func lookThrough(s string) (c byte, n int) { return lookDeep(s, 0) }

// maxNesting is how deep digits of an escape may be escapes themselves.
const maxNesting = 8

func lookDeep(s string, depth int) (c byte, n int) {
	c, n = s[0], 1
	for c == '%' {
		hi, a := digitAt(s[n:], n > 1, depth)
		if hi < 0 {
			break
		}
		lo, b := digitAt(s[n+a:], n > 1, depth)
		if lo < 0 {
			break
		}
		c, n = byte(hi<<4|lo), n+a+b
	}
	return c, n
}

// digitAt reads a hexadecimal digit and says how many bytes it takes. Behind a %
// that was an escape it may be one too: %25%32%65 is %2e to who decodes once,
// and a dot to who decodes twice.
func digitAt(s string, escaped bool, depth int) (digit, n int) {
	switch {
	case s == "":
		return -1, 0
	case s[0] == '%' && escaped && depth < maxNesting:
		c, n := lookDeep(s, depth+1)
		return unhex(c), n
	}
	return unhex(s[0]), 1
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

type capability struct {
	pattern spec.Pattern
	name    string
	methods []string // empty: any
}

// Capability says what a request is for: chat, embeddings, images, audio,
// moderations, realtime, files, batches, fine_tuning, models, rerank, or a name
// that the configuration gives. path is the escaped path at the provider,
// without a query. "" means unknown, also for a path outside the base URL's or
// one that could be read in two ways. It does not allocate.
func (p *Provider) Capability(method, path string) string {
	rest, ok := strings.CutPrefix(path, p.base)
	if !ok || !CleanPath(rest) {
		return ""
	}
	for _, c := range p.capabilities {
		if (len(c.methods) == 0 || slices.Contains(c.methods, method)) && c.pattern.Match(rest) {
			return c.name
		}
	}
	return ""
}
