package issuer

import (
	"encoding/json"
	"errors"

	"github.com/postern-proxy/postern/agent/secret"
)

// hidden is a JSON string that goes straight into the arena: decoding leaves no
// copy of it on the heap. null and a missing member leave it empty.
type hidden struct{ v *secret.Value }

var errHidden = errors.New("not a string of ASCII")

// UnmarshalJSON takes the string's content. Its error says nothing of it.
func (h *hidden) UnmarshalJSON(b []byte) error {
	h.v.Destroy()
	h.v = nil
	if string(b) == "null" {
		return nil
	}
	if len(b) < 2 || b[0] != '"' || b[len(b)-1] != '"' {
		return errHidden
	}
	ok := true
	v, err := secret.Make(len(b), func(dst []byte) int {
		var n int
		n, ok = unquote(dst, b[1:len(b)-1])
		return n
	})
	if err != nil {
		return err
	}
	if !ok {
		v.Destroy()
		return errHidden
	}
	h.v = v
	return nil
}

// unquote writes a JSON string's content, which is never longer than the string
// itself. Only ASCII is let through: credentials are nothing else.
func unquote(dst, s []byte) (n int, ok bool) {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' {
			if i++; i >= len(s) {
				return 0, false
			}
			switch s[i] {
			case '"', '\\', '/':
				c = s[i]
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			case 'f':
				c = '\f'
			case 'u':
				if c, ok = hexASCII(s[i+1:]); !ok {
					return 0, false
				}
				i += 4
			default:
				return 0, false
			}
		}
		if c >= 0x80 {
			return 0, false
		}
		dst[n] = c
		n++
	}
	return n, true
}

// hexASCII reads the four digits behind \u.
func hexASCII(s []byte) (byte, bool) {
	if len(s) < 4 {
		return 0, false
	}
	r := 0
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | int(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | int(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | int(c-'A'+10)
		default:
			return 0, false
		}
	}
	return byte(r), r < 0x80
}

// take gives the value away, or says why it is no credential.
func (h *hidden) take() (*secret.Value, error) {
	if h.v == nil {
		return nil, errors.New("it holds no key")
	}
	var err error
	h.v.Use(func(b []byte) { err = secret.CheckKey(b) })
	if err != nil {
		return nil, err
	}
	v := h.v
	h.v = nil
	return v, nil
}

// drop wipes what was not taken.
func (h *hidden) drop() {
	h.v.Destroy()
	h.v = nil
}

// object is a JSON object with one member or more, for requests without a secret.
func object(pairs ...string) []byte {
	m := map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	b, err := json.Marshal(m)
	if err != nil { // a map of strings has none
		return []byte("{}")
	}
	return b
}

func wipe(b []byte) { secret.Wipe(b[:cap(b)]) }
