package vault

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// A small JSON reader over the bytes of one answer. It never copies: values are
// sub-slices of the text, and a string's content is unescaped into memory that
// the caller chose, so that nothing of a secret is left on the heap. Unlike
// encoding/json it refuses invalid UTF-8 and lone surrogates, for silently
// replacing them would change a key. Its errors tell where, never what.

// maxDepth bounds how deep objects and arrays may nest: as deep as what Vault
// itself takes from whoever may write, so that nobody stores what cannot be read.
const maxDepth = 10_000

var (
	errKind = errors.New("a JSON value has another type than expected")
	errUTF8 = errors.New("a JSON string is not valid Unicode")
)

type syntaxError int // the offset

func (e syntaxError) Error() string { return fmt.Sprintf("not JSON at byte %d", int(e)) }

// document returns the one JSON value that b consists of, without white space around it.
func document(b []byte) ([]byte, error) {
	start := skipSpace(b, 0)
	end, err := scanValue(b, start, 0)
	if err != nil {
		return nil, err
	}
	if rest := skipSpace(b, end); rest != len(b) {
		return nil, syntaxError(rest)
	}
	return b[start:end], nil
}

// members calls f for each member of an object with its quoted name and its
// value, in order. v must come from document, members or elements.
func members(v []byte, f func(name, value []byte) error) error {
	if len(v) == 0 || v[0] != '{' {
		return errKind
	}
	i := skipSpace(v, 1)
	for v[i] != '}' {
		nameEnd, err := scanString(v, i)
		if err != nil {
			return err
		}
		name := v[i:nameEnd]
		i = skipSpace(v, nameEnd)
		start := skipSpace(v, i+1) // behind the colon
		end, err := scanValue(v, start, 0)
		if err != nil {
			return err
		}
		if err := f(name, v[start:end]); err != nil {
			return err
		}
		i = skipSpace(v, end)
		if v[i] == ',' {
			i = skipSpace(v, i+1)
		}
	}
	return nil
}

// elements calls f for each element of an array.
func elements(v []byte, f func(value []byte) error) error {
	if len(v) == 0 || v[0] != '[' {
		return errKind
	}
	i := skipSpace(v, 1)
	for v[i] != ']' {
		end, err := scanValue(v, i, 0)
		if err != nil {
			return err
		}
		if err := f(v[i:end]); err != nil {
			return err
		}
		i = skipSpace(v, end)
		if v[i] == ',' {
			i = skipSpace(v, i+1)
		}
	}
	return nil
}

// isNull reports whether a value is missing or null.
func isNull(v []byte) bool { return len(v) == 0 || v[0] == 'n' }

// unquote writes a quoted string's content to dst, which needs room for len(v)
// bytes at most, and returns how many it wrote.
func unquote(dst, v []byte) (int, error) {
	if len(v) < 2 || v[0] != '"' {
		return 0, errKind
	}
	n := 0
	for i := 1; i < len(v)-1; {
		c := v[i]
		if c != '\\' {
			dst[n] = c
			n++
			i++
			continue
		}
		i++
		if v[i] != 'u' {
			dst[n] = unescape(v[i])
			n++
			i++
			continue
		}
		r, size := escapedRune(v[i+1:])
		if r < 0 {
			return 0, errUTF8
		}
		n += utf8.EncodeRune(dst[n:n+4:n+4], r)
		i += 1 + size
	}
	return n, nil
}

// escapedRune reads what follows \u: four hex digits, or a pair of surrogates
// with \u between. It returns how many bytes that were, or -1 for a lone surrogate.
func escapedRune(v []byte) (rune, int) {
	r := hex4(v)
	if !utf16.IsSurrogate(r) {
		return r, 4
	}
	if len(v) < 10 || v[4] != '\\' || v[5] != 'u' {
		return -1, 0
	}
	low := hex4(v[6:])
	if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
		return -1, 0
	}
	return r, 10
}

// hex4 reads four hex digits, -1 if they are none.
func hex4(v []byte) rune {
	if len(v) < 4 {
		return -1
	}
	var r rune
	for _, c := range v[:4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return -1
		}
	}
	return r
}

// unescape is the byte that a one-letter escape stands for, 0 if there is no such escape.
func unescape(c byte) byte {
	switch c {
	case '"', '\\', '/':
		return c
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return 0
}

// text returns a string's content as a Go string. It is for what is no secret; null is "".
func text(v []byte) (string, error) {
	if isNull(v) {
		return "", nil
	}
	buf := make([]byte, len(v))
	n, err := unquote(buf, v)
	return string(buf[:n]), err
}

// integer returns a number without fraction; null is 0.
func integer(v []byte) (int64, error) {
	if isNull(v) {
		return 0, nil
	}
	if c := v[0]; c != '-' && (c < '0' || c > '9') {
		return 0, errKind
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil {
		return 0, errKind
	}
	return n, nil
}

// boolean returns true or false; null is false.
func boolean(v []byte) (bool, error) {
	switch {
	case isNull(v), v[0] == 'f':
		return false, nil
	case v[0] == 't':
		return true, nil
	}
	return false, errKind
}

// instant returns an RFC 3339 time in UTC; "" and null are the zero time.
func instant(v []byte) (time.Time, error) {
	s, err := text(v)
	if err != nil || s == "" {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, errKind
	}
	return t.UTC(), nil
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// scanValue checks the value that begins at i and returns where it ends.
func scanValue(b []byte, i, depth int) (int, error) {
	if i >= len(b) || depth > maxDepth {
		return 0, syntaxError(i)
	}
	switch b[i] {
	case '{':
		return scanList(b, i, depth, '}', true)
	case '[':
		return scanList(b, i, depth, ']', false)
	case '"':
		return scanString(b, i)
	case 't':
		return scanWord(b, i, "true")
	case 'f':
		return scanWord(b, i, "false")
	case 'n':
		return scanWord(b, i, "null")
	}
	return scanNumber(b, i)
}

// scanList checks an object (with names) or an array.
func scanList(b []byte, i, depth int, closing byte, names bool) (int, error) {
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == closing {
		return i + 1, nil
	}
	for {
		var err error
		if names {
			if i >= len(b) || b[i] != '"' {
				return 0, syntaxError(i)
			}
			if i, err = scanString(b, i); err != nil {
				return 0, err
			}
			if i = skipSpace(b, i); i >= len(b) || b[i] != ':' {
				return 0, syntaxError(i)
			}
			i = skipSpace(b, i+1)
		}
		if i, err = scanValue(b, i, depth+1); err != nil {
			return 0, err
		}
		i = skipSpace(b, i)
		switch {
		case i < len(b) && b[i] == closing:
			return i + 1, nil
		case i < len(b) && b[i] == ',':
			i = skipSpace(b, i+1)
		default:
			return 0, syntaxError(i)
		}
	}
}

// scanString checks the string whose opening quote is at i.
func scanString(b []byte, i int) (int, error) {
	start := i
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			if !utf8.Valid(b[start:i]) {
				return 0, errUTF8
			}
			return i + 1, nil
		case c < 0x20:
			return 0, syntaxError(i)
		case c == '\\':
			i++
			switch {
			case i >= len(b):
				return 0, syntaxError(i)
			case b[i] == 'u':
				if hex4(b[i+1:]) < 0 {
					return 0, syntaxError(i)
				}
				i += 4
			case unescape(b[i]) == 0:
				return 0, syntaxError(i)
			}
		}
	}
	return 0, syntaxError(len(b))
}

func scanWord(b []byte, i int, word string) (int, error) {
	if !bytes.HasPrefix(b[i:], []byte(word)) {
		return 0, syntaxError(i)
	}
	return i + len(word), nil
}

func scanNumber(b []byte, i int) (int, error) {
	digits := func() bool {
		from := i
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
		}
		return i > from
	}
	if b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if !digits() {
		return 0, syntaxError(i)
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return 0, syntaxError(i)
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return 0, syntaxError(i)
		}
	}
	return i, nil
}

// appendQuoted appends b as a JSON string. b must be valid UTF-8; at most
// [quotedLen] bytes are added.
func appendQuoted(dst, b []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, c := range b {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

// quotedLen is the most bytes that appendQuoted adds for n bytes.
func quotedLen(n int) int { return 2 + 6*n }
