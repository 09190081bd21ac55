package spec

import (
	"errors"
	"fmt"
	"strings"
)

// KeyField is the secret's field that holds the key itself.
const KeyField = "api_key"

// Piece is one part of a format: a literal, or a secret's field. Exactly one is set.
type Piece struct {
	Literal string
	Field   string
}

// ParseFormat splits a format as "Bearer {api_key}" into its pieces. "" gives
// none. Braces cannot be escaped: a credential's frame has no use for them.
func ParseFormat(s string) ([]Piece, error) {
	var out []Piece
	for s != "" {
		open := strings.IndexByte(s, '{')
		if open < 0 {
			open = len(s)
		}
		if lit := s[:open]; lit != "" {
			for i := 0; i < len(lit); i++ {
				if lit[i] == '}' {
					return nil, errors.New("has a } without its {; fields are written {name}")
				}
				if lit[i] < 0x20 || lit[i] > 0x7e {
					return nil, errors.New("may hold printable ASCII only")
				}
			}
			out = append(out, Piece{Literal: lit})
		}
		if s = s[open:]; s == "" {
			break
		}
		end := strings.IndexByte(s, '}')
		if end < 0 {
			return nil, errors.New("has a { without its }; fields are written {name}")
		}
		name := s[1:end]
		if !isField(name) {
			return nil, fmt.Errorf("refers to {%s}; a field's name is letters, digits and _ (at most 64), as in {api_key}", printable(name))
		}
		out = append(out, Piece{Field: name})
		s = s[end+1:]
	}
	return out, nil
}

func isField(s string) bool {
	if s == "" || len(s) > 64 || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !isAlnum(c) && c != '_' {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// printable shortens what a configuration says for a message.
func printable(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
