package proxy

import (
	"bytes"
	"strings"
)

// target is a request's target, in parts of the client's buffer.
type target struct {
	absolute    bool
	scheme      string
	authority   string
	path, query []byte // as they are escaped
}

// parseTarget splits origin-form ("/path?query", "*") and absolute-form
// ("scheme://authority/path?query"); false for anything else.
func parseTarget(raw []byte) (t target, ok bool) {
	rest := raw
	if raw[0] != '/' && !bytes.Equal(raw, []byte{'*'}) {
		i := bytes.IndexByte(raw, ':')
		if i <= 0 || !isScheme(raw[:i]) {
			return t, false
		}
		t.absolute, t.scheme = true, view(raw[:i])
		if rest, ok = bytes.CutPrefix(raw[i+1:], []byte("//")); !ok {
			return t, true // without an authority, which no request's may be
		}
		end := bytes.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		t.authority, rest = view(rest[:end]), rest[end:]
	}
	t.path, t.query, _ = bytes.Cut(rest, []byte{'?'})
	if len(t.path) == 0 {
		t.path = []byte{'/'}
	}
	return t, true
}

// isScheme is RFC 3986 section 3.1.
func isScheme(b []byte) bool {
	for i, c := range b {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '+' && c != '-' && c != '.') {
			return false
		}
	}
	return len(b) > 0
}

// is reports whether the scheme is this one, in any case.
func (t *target) is(scheme string) bool { return strings.EqualFold(t.scheme, scheme) }
