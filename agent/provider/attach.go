package provider

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/secret"
)

// form is a compiled spec.Attach.
type form struct {
	header string // canonical; or
	query  string
	basic  bool // pieces are username:password, sent in base64
	pieces []spec.Piece
}

func compile(a spec.Attach) (form, error) {
	if a.Basic != nil {
		pieces, err := spec.ParseFormat(a.Basic.Username + ":" + a.Basic.Password)
		return form{header: "Authorization", basic: true, pieces: pieces}, err
	}
	pieces, err := spec.ParseFormat(a.Format)
	return form{header: textproto.CanonicalMIMEHeaderKey(a.Header), query: a.Query, pieces: pieces}, err
}

// Attach puts the credential onto a request: exactly one value, which replaces
// whatever stood in its header (in any spelling) or query parameter, and those
// of `also` whose fields the secret has. The key's bytes become one string, in
// h or in u; every other copy is wiped before Attach returns.
//
// The error names the field that is missing, empty, destroyed or unfit for a
// header; the request must then not be sent.
func (p *Provider) Attach(h http.Header, u *url.URL, fields map[string]*secret.Value) error {
	for i := range p.also {
		if f := &p.also[i]; f.present(fields) {
			if err := f.put(h, u, fields); err != nil {
				return err
			}
		}
	}
	return p.attach.put(h, u, fields)
}

// present reports whether the secret has every field that the form refers to.
func (f *form) present(fields map[string]*secret.Value) bool {
	for _, p := range f.pieces {
		if p.Field != "" && fields[p.Field].Len() == 0 {
			return false
		}
	}
	return true
}

func (f *form) put(h http.Header, u *url.URL, fields map[string]*secret.Value) error {
	v, err := f.value(fields)
	if err != nil {
		return err
	}
	if f.query != "" {
		u.RawQuery = setQuery(u.RawQuery, f.query, v)
		return nil
	}
	for k := range h {
		if len(k) == len(f.header) && k != f.header && sameHeader(k, f.header) {
			delete(h, k)
		}
	}
	h[f.header] = []string{v}
	return nil
}

// sameHeader reports whether some server would read both names as one.
func sameHeader(a, b string) bool {
	for i := range len(a) {
		if plainHeader(a[i]) != plainHeader(b[i]) {
			return false
		}
	}
	return true
}

func plainHeader(c byte) byte {
	switch {
	case c >= 'A' && c <= 'Z':
		return c | 0x20
	case c == '_':
		return '-'
	}
	return c
}

// value builds the credential in a buffer of the right size, which is wiped.
func (f *form) value(fields map[string]*secret.Value) (string, error) {
	size := 0
	for _, p := range f.pieces {
		if p.Field == "" {
			size += len(p.Literal)
			continue
		}
		v := fields[p.Field]
		if v.Len() == 0 {
			return "", fmt.Errorf("the secret has no field %q, or it is empty", p.Field)
		}
		size += v.Len()
	}
	var room [512]byte
	buf := room[:0]
	if size > len(room) {
		buf = make([]byte, 0, size)
	}
	defer func() { secret.Wipe(buf[:cap(buf)]) }()
	for _, p := range f.pieces {
		if p.Field == "" {
			buf = append(buf, p.Literal...)
			continue
		}
		fit := true
		if !fields[p.Field].Use(func(b []byte) {
			if fit = fits(b); fit {
				buf = append(buf, b...) // never grows: size counted it
			}
		}) {
			return "", fmt.Errorf("field %q of the secret was wiped: its version is no longer in use", p.Field)
		}
		if !fit {
			return "", fmt.Errorf("field %q of the secret holds a character that cannot be sent (a line break, a space at its edge, or one outside ASCII); store it again without", p.Field)
		}
	}
	switch {
	case f.basic:
		return basic(buf), nil
	case f.query != "":
		return escape(buf), nil
	}
	return string(buf), nil
}

// fits wants printable ASCII without a space at either end.
func fits(b []byte) bool {
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return len(b) == 0 || b[0] != ' ' && b[len(b)-1] != ' '
}

func basic(userpass []byte) string {
	const scheme = "Basic "
	b := make([]byte, len(scheme)+base64.StdEncoding.EncodedLen(len(userpass)))
	defer secret.Wipe(b)
	base64.StdEncoding.Encode(b[copy(b, scheme):], userpass)
	return string(b)
}

// escape percent-encodes everything but RFC 3986's unreserved characters.
func escape(raw []byte) string {
	b := make([]byte, 0, 3*len(raw))
	defer func() { secret.Wipe(b[:cap(b)]) }()
	for _, c := range raw {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b = append(b, c)
		} else {
			b = append(b, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
	}
	return string(b)
}

// setQuery returns raw with name=value as its last and only such parameter.
// What stays keeps its order and spelling. A ";" separates, too: some servers
// still read it so.
func setQuery(raw, name, value string) string {
	var b strings.Builder
	b.Grow(len(raw) + len(name) + len(value) + 2)
	for raw != "" {
		end := strings.IndexAny(raw, "&;")
		sep := ""
		part := raw
		if end >= 0 {
			part, sep, raw = raw[:end], raw[end:end+1], raw[end+1:]
		} else {
			raw = ""
		}
		key, _, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(key); part == "" || err == nil && strings.EqualFold(plain, name) {
			continue
		}
		b.WriteString(part)
		if sep == "" {
			sep = "&"
		}
		b.WriteString(sep)
	}
	b.WriteString(url.QueryEscape(name))
	b.WriteByte('=')
	b.WriteString(value)
	return b.String()
}
