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
	header   string // canonical; or
	query    string
	name     string // query, escaped
	basic    bool   // pieces are username:password, sent in base64
	pieces   []spec.Piece
	literals [][]byte // of the pieces that have one
}

func compile(a spec.Attach) (form, error) {
	f := form{header: textproto.CanonicalMIMEHeaderKey(a.Header), query: a.Query, name: url.QueryEscape(a.Query)}
	format := a.Format
	if a.Basic != nil {
		f = form{header: "Authorization", basic: true}
		format = a.Basic.Username + ":" + a.Basic.Password
	}
	var err error
	f.pieces, err = spec.ParseFormat(format)
	for _, p := range f.pieces {
		f.literals = append(f.literals, []byte(p.Literal))
	}
	return f, err
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

// Room is at least as much as AppendHeaders and AppendQuery together append: a
// buffer that has it is not left behind, grown, with a key in it.
func (p *Provider) Room(fields map[string]*secret.Value) int {
	n := p.attach.room(fields)
	for i := range p.also {
		n += p.also[i].room(fields)
	}
	return n
}

// AppendHeaders is Attach's headers as field lines, straight from the arena to
// dst: no other copy is made, and nothing is allocated where dst has Room. The
// caller has left out what Attached names, and wipes dst. Where there is an
// error, dst holds no part of a key.
func (p *Provider) AppendHeaders(dst []byte, fields map[string]*secret.Value) ([]byte, error) {
	return p.appendAll(dst, fields, (*form).line)
}

// AppendQuery is Attach's parameters, as AppendHeaders; raw says whether dst
// ends in a query already.
func (p *Provider) AppendQuery(dst []byte, raw bool, fields map[string]*secret.Value) ([]byte, error) {
	return p.appendAll(dst, fields, func(f *form, dst []byte, fields map[string]*secret.Value) ([]byte, error) {
		if f.query == "" {
			return dst, nil
		}
		switch {
		case !raw:
			dst, raw = append(dst, '?'), true
		case dst[len(dst)-1] != '&':
			dst = append(dst, '&')
		}
		return f.append(append(append(dst, f.name...), '='), fields)
	})
}

func (p *Provider) appendAll(dst []byte, fields map[string]*secret.Value, one func(*form, []byte, map[string]*secret.Value) ([]byte, error)) ([]byte, error) {
	n := len(dst)
	var err error
	for i := range p.also {
		if f := &p.also[i]; err == nil && f.present(fields) {
			dst, err = one(f, dst, fields)
		}
	}
	if err == nil {
		dst, err = one(&p.attach, dst, fields)
	}
	if err != nil {
		secret.Wipe(dst[n:])
		return dst[:n], err
	}
	return dst, nil
}

// line appends the field line of a header.
func (f *form) line(dst []byte, fields map[string]*secret.Value) ([]byte, error) {
	if f.header == "" {
		return dst, nil
	}
	dst, err := f.append(append(append(dst, f.header...), ": "...), fields)
	return append(dst, "\r\n"...), err
}

// Attached reports whether Attach puts a value into this header, so that
// whatever the client wrote there, in any spelling, is to be left out.
func (p *Provider) Attached(name []byte, fields map[string]*secret.Value) bool {
	if p.attach.names(name) {
		return true
	}
	for i := range p.also {
		if f := &p.also[i]; f.names(name) && f.present(fields) {
			return true
		}
	}
	return false
}

func (f *form) names(name []byte) bool {
	return f.header != "" && len(name) == len(f.header) && sameHeader(name, f.header)
}

// AttachedQuery is Attached for a query parameter's name, decoded.
func (p *Provider) AttachedQuery(name string, fields map[string]*secret.Value) bool {
	if p.attach.query != "" && strings.EqualFold(p.attach.query, name) {
		return true
	}
	for i := range p.also {
		if f := &p.also[i]; f.query != "" && strings.EqualFold(f.query, name) && f.present(fields) {
			return true
		}
	}
	return false
}

// sameHeader reports whether some server would read both names as one.
func sameHeader[T string | []byte](a T, b string) bool {
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

// value is the credential as one string; the buffer it was built in is wiped.
func (f *form) value(fields map[string]*secret.Value) (string, error) {
	buf := make([]byte, 0, f.room(fields))
	defer func() { secret.Wipe(buf[:cap(buf)]) }()
	buf, err := f.append(buf, fields)
	return string(buf), err
}

// room bounds what line and append add to a buffer.
func (f *form) room(fields map[string]*secret.Value) int {
	n := f.size(fields)
	switch {
	case f.query != "":
		n = 3*n + len(f.name) + len("&=")
	case f.basic:
		n = len(basicScheme) + base64.StdEncoding.EncodedLen(n)
	}
	return n + len(f.header) + len(": \r\n")
}

// size is the length of the pieces, as far as the secret has them.
func (f *form) size(fields map[string]*secret.Value) int {
	n := 0
	for _, p := range f.pieces {
		if p.Field == "" {
			n += len(p.Literal)
		} else {
			n += fields[p.Field].Len()
		}
	}
	return n
}

const basicScheme = "Basic "

// append appends the credential as it is sent.
func (f *form) append(dst []byte, fields map[string]*secret.Value) ([]byte, error) {
	switch {
	case f.basic:
		return f.appendBasic(dst, fields)
	case f.query != "":
		return f.appendPieces(dst, fields, true)
	}
	return f.appendPieces(dst, fields, false)
}

// appendBasic appends the scheme and user:password in base64.
func (f *form) appendBasic(dst []byte, fields map[string]*secret.Value) ([]byte, error) {
	var room [512]byte
	plain := room[:0]
	if size := f.size(fields); size > len(room) {
		plain = make([]byte, 0, size)
	}
	defer func() { secret.Wipe(plain[:cap(plain)]) }()
	plain, err := f.appendPieces(plain, fields, false)
	if err != nil {
		return dst, err
	}
	return base64.StdEncoding.AppendEncode(append(dst, basicScheme...), plain), nil
}

func (f *form) appendPieces(dst []byte, fields map[string]*secret.Value, escaped bool) ([]byte, error) {
	for i := range f.pieces {
		p := &f.pieces[i]
		if p.Field == "" {
			dst = appendBytes(dst, f.literals[i], escaped)
			continue
		}
		v := fields[p.Field]
		if v.Len() == 0 {
			return dst, fmt.Errorf("the secret has no field %q, or it is empty", p.Field)
		}
		fit := true
		if !v.Use(func(b []byte) {
			if fit = fits(b); fit {
				dst = appendBytes(dst, b, escaped)
			}
		}) {
			return dst, fmt.Errorf("field %q of the secret was wiped: its version is no longer in use", p.Field)
		}
		if !fit {
			return dst, fmt.Errorf("field %q of the secret holds a character that cannot be sent (a line break, a space at its edge, or one outside ASCII); store it again without", p.Field)
		}
	}
	return dst, nil
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

func appendBytes(dst, b []byte, escaped bool) []byte {
	if escaped {
		return appendEscaped(dst, b)
	}
	return append(dst, b...)
}

// appendEscaped percent-encodes everything but RFC 3986's unreserved characters.
func appendEscaped(dst, raw []byte) []byte {
	for _, c := range raw {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
	}
	return dst
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
