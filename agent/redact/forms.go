package redact

import (
	"bytes"
	"strings"

	"github.com/postern-proxy/postern/agent/secret"
)

// The lengths of a value in bytes: a key's. A shorter one could not be told from
// ordinary text.
const (
	MinValue = secret.MinKey
	MaxValue = secret.MaxKey
)

// wordSpan is how many bytes the eight words of a form cover together.
const wordSpan = 15

// form is where one encoding of a value stands among its entry's bytes.
type form struct {
	pos, n int
	off    int // where its first word begins: behind what is public, if that leaves eight words
}

// encodeForms writes every form of raw into dst, each once, and returns where
// they stand and how much of dst they take. The first pub bytes of raw are public.
func encodeForms(dst, raw []byte, pub int) (forms []form, used int) {
	add := func(n, pub int) {
		fresh := dst[used : used+n]
		for _, f := range forms {
			if bytes.Equal(dst[f.pos:f.pos+f.n], fresh) {
				return
			}
		}
		forms = append(forms, form{pos: used, n: n, off: max(0, min(pub, n-wordSpan))})
		used += n
	}
	add(copy(dst[used:], raw), pub)
	for _, alphabet := range alphabets {
		for shift := range 3 {
			n := encodeBase64(dst[used:], raw, alphabet, shift)
			add(n, base64Len(pub, shift))
		}
	}
	for _, s := range stylesFor(raw) {
		add(s.encode(dst[used:], raw), s.encodedLen(raw[:pub]))
	}
	return forms, used
}

const alnum = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

var alphabets = [2]string{alnum + "+/", alnum + "-_"}

// sharedBits is how many of the value's first bits share a character with the
// bytes before it, when the value begins shift bytes behind a multiple of three.
var sharedBits = [3]int{0, 4, 2}

// base64Len is the number of characters that n bytes determine alone.
func base64Len(n, shift int) int { return max(0, (8*n-sharedBits[shift])/6) }

func encodeBase64(dst, raw []byte, alphabet string, shift int) int {
	n := base64Len(len(raw), shift)
	for i := range n {
		bit := sharedBits[shift] + 6*i
		pair := uint(raw[bit/8]) << 8
		if bit%8 > 2 {
			pair |= uint(raw[bit/8+1])
		}
		dst[i] = alphabet[pair>>(10-bit%8)&63]
	}
	return n
}

const (
	lowerHex = "0123456789abcdef"
	upperHex = "0123456789ABCDEF"
)

// style encodes byte by byte. What keep holds stays; the rest is escaped.
type style struct {
	percent bool
	keep    string // percent: what stays as it is
	plus    bool   // percent: a space becomes "+"
	hex     string
	escape  string // JSON: what becomes \u00XX
	slash   bool   // JSON: "/" becomes "\/"
}

// unreserved is what every percent-encoder leaves alone. The common encoders
// differ in all the rest.
const unreserved = alnum + "-._"

// What the encoders of the common languages leave alone beside it.
var percentKeeps = []string{
	"~",                          // RFC 3986: Go's QueryEscape, Python's quote_plus
	"*",                          // HTML forms, URLSearchParams, Java's URLEncoder
	"~!*'()",                     // JavaScript's encodeURIComponent
	"~$&+:=@",                    // Go: a path segment
	"~$&+,/:;=@",                 // Go: a path
	"~!()*$&+,/:;=?@",            // Go: a fragment
	"~$&+,;=",                    // Go: user and password
	"~/",                         // Python's quote
	"~:/?#[]@!$&'()*+,;=",        // encodeURI
	"~!$&'()*+,/:;=@[]|%\\^",     // the URL Standard: a path
	"~!$&'()*+,%",                // user and password
	"~!$&()*+,/:;=?@[]|%\\^`{}'", // a query
	"~!$&()*+,/:;=?@[]|%\\^`{}",  // a query of http: and https:
	"~!'()*",                     // a component
}

// fewSpecial is up to how many different characters beyond the unreserved ones
// every choice of which to encode is a form; base64 has three.
const fewSpecial = 3

// stylesFor lists how raw may be escaped.
func stylesFor(raw []byte) []style {
	keeps := percentKeeps
	if special := specialIn(raw); len(special) <= fewSpecial {
		keeps = nil
		for choice := range 1 << len(special) {
			var keep []byte
			for i, c := range special {
				if choice>>i&1 != 0 {
					keep = append(keep, c)
				}
			}
			keeps = append(keeps, string(keep))
		}
	}
	var list []style
	for _, hex := range []string{upperHex, lowerHex} {
		for _, keep := range keeps {
			list = append(list, style{percent: true, keep: unreserved + keep, hex: hex})
			if bytes.IndexByte(raw, ' ') >= 0 {
				list = append(list, style{percent: true, keep: unreserved + keep, hex: hex, plus: true})
			}
		}
		list = append(list, style{percent: true, hex: hex}) // every byte
	}
	return append(list, jsonStyles...)
}

// specialIn lists the bytes of raw beyond the unreserved ones, each once; of
// more than fewSpecial not all.
func specialIn(raw []byte) []byte {
	var special []byte
	for _, c := range raw {
		if strings.IndexByte(unreserved, c) < 0 && c != ' ' && bytes.IndexByte(special, c) < 0 {
			if special = append(special, c); len(special) > fewSpecial {
				break
			}
		}
	}
	return special
}

// formsRoom is enough room for every form of raw, duplicates included.
func formsRoom(raw []byte) int {
	n := len(raw) + len(alphabets)*3*base64Len(len(raw), 0)
	for _, s := range stylesFor(raw) {
		n += s.encodedLen(raw)
	}
	return n
}

var jsonStyles = []style{
	{},
	{slash: true},                  // PHP
	{escape: "<>&", hex: lowerHex}, // Go
	{escape: "<>&", hex: lowerHex, slash: true},    //
	{escape: "<>&", hex: upperHex},                 //
	{escape: "<>&'", hex: lowerHex},                // Rails, Django
	{escape: "<>&'", hex: upperHex},                //
	{escape: "\"<>&'+`", hex: upperHex},            // .NET
	{escape: "\"<>&'", hex: upperHex},              // PHP's JSON_HEX_*
	{escape: "<>&'=", hex: lowerHex},               // Gson
	{escape: "\"<>&'", hex: upperHex, slash: true}, //
}

func (s *style) encode(dst, raw []byte) int {
	n := 0
	for _, c := range raw {
		n += s.encodeByte(dst[n:], c)
	}
	return n
}

func (s *style) encodedLen(raw []byte) int {
	var room [6]byte
	n := 0
	for _, c := range raw {
		n += s.encodeByte(room[:], c)
	}
	return n
}

func (s *style) encodeByte(dst []byte, c byte) int {
	if s.percent {
		if strings.IndexByte(s.keep, c) >= 0 {
			dst[0] = c
			return 1
		}
		if c == ' ' && s.plus {
			dst[0] = '+'
			return 1
		}
		dst[0], dst[1], dst[2] = '%', s.hex[c>>4], s.hex[c&15]
		return 3
	}
	hex := s.hex
	if hex == "" {
		hex = lowerHex
	}
	short := byte(0)
	switch {
	case strings.IndexByte(s.escape, c) >= 0:
	case c == '"' || c == '\\' || c == '/' && s.slash:
		short = c
	case c == '\n':
		short = 'n'
	case c == '\r':
		short = 'r'
	case c == '\t':
		short = 't'
	case c == '\b':
		short = 'b'
	case c == '\f':
		short = 'f'
	case c >= 0x20:
		dst[0] = c
		return 1
	}
	if short != 0 {
		dst[0], dst[1] = '\\', short
		return 2
	}
	return copy(dst, []byte{'\\', 'u', '0', '0', hex[c>>4], hex[c&15]})
}
