package h1

import "bytes"

// What a byte may be part of.
const (
	isToken = 1 << iota // RFC 9110 section 5.6.2
	isText              // of a field value: no control character but the tab
)

var chars = func() (t [256]byte) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") {
		t[c] |= isToken
	}
	for c := range t {
		if c >= ' ' && c != 0x7f || c == '\t' {
			t[c] |= isText
		}
	}
	return t
}()

// folded maps a byte of a field name to what every reader takes it for: lower
// case, and '-' for '_', which some servers do not tell apart.
var folded = func() (t [256]byte) {
	for c := range t {
		t[c] = byte(c)
		if c >= 'A' && c <= 'Z' {
			t[c] = byte(c) | 0x20
		}
	}
	t['_'] = '-'
	return t
}()

func token(b []byte) bool { return len(b) > 0 && tokenLength(b) == len(b) }

// tokenLength is how many bytes at b's beginning are a token.
func tokenLength(b []byte) int {
	for i, c := range b {
		if chars[c]&isToken == 0 {
			return i
		}
	}
	return len(b)
}

// valueLength is how many bytes at b's beginning are a token or a quoted string
// (RFC 9110 section 5.6.4), 0 where neither is there.
func valueLength(b []byte) int {
	if len(b) == 0 || b[0] != '"' {
		return tokenLength(b)
	}
	for i := 1; i < len(b) && chars[b[i]]&isText != 0; i++ {
		switch b[i] {
		case '"':
			return i + 1
		case '\\':
			if i++; i == len(b) || chars[b[i]]&isText == 0 {
				return 0
			}
		}
	}
	return 0
}

func skipBlanks(b []byte) []byte { return bytes.TrimLeft(b, " \t") }

func text(b []byte) bool {
	for _, c := range b {
		if chars[c]&isText == 0 {
			return false
		}
	}
	return true
}

// Valid reports whether a field is one that Parse would have taken: for those
// that come by other ways.
func (f Field) Valid() bool { return token(f.Name) && text(f.Value) }

// Fold is c as Same compares it.
func Fold(c byte) byte { return folded[c] }

// Same reports whether some server would read name as want, which is in lower
// case with '-': the case is folded, and '_' stands for '-'.
func Same(name []byte, want string) bool {
	if len(name) != len(want) {
		return false
	}
	for i, c := range name {
		if folded[c] != want[i] {
			return false
		}
	}
	return true
}

// equalFold compares ASCII without case. a and b have the same length.
func equalFold(a []byte, b string) bool {
	for i, c := range a {
		if c != b[i] && lower(c) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// EqualFold reports whether a is b but for the case of ASCII letters.
func EqualFold(a []byte, b string) bool { return len(a) == len(b) && equalFold(a, b) }

// TrimSpace is b without spaces and tabs at its ends.
func TrimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// NextToken cuts the first member off a comma-separated list.
func NextToken(list []byte) (member, rest []byte) {
	for i, c := range list {
		if c == ',' {
			return TrimSpace(list[:i]), list[i+1:]
		}
	}
	return TrimSpace(list), nil
}

// HasToken reports whether a comma-separated list has a member, in any case.
func HasToken(list []byte, want string) bool {
	for len(list) > 0 {
		var member []byte
		if member, list = NextToken(list); EqualFold(member, want) {
			return true
		}
	}
	return false
}
