package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
)

// maxBody bounds a request's body, in bytes: a key of the greatest length, each
// of its characters written as an escape, and room for the rest.
const maxBody = 6*secret.MaxKey + 32<<10

// readBody reads a JSON body whole. The caller wipes it; whatever it outgrew is
// wiped already. nil without an error: there is none.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, refusal(codeUnsupportedMedia, "the body is compressed: send it as it is")
	}
	body := http.MaxBytesReader(w, r.Body, maxBody)
	b := make([]byte, 0, min(max(r.ContentLength, 0), maxBody)+512)
	for {
		if len(b) == cap(b) {
			next := append(make([]byte, 0, 2*cap(b)), b...)
			secret.Wipe(b)
			b = next
		}
		n, err := body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		var tooLarge *http.MaxBytesError
		switch {
		case err == io.EOF:
			return b, checkMedia(r, len(b))
		case errors.As(err, &tooLarge):
			secret.Wipe(b)
			return nil, refusal(codeTooLarge, "the body is longer than %d bytes", maxBody)
		case err != nil:
			secret.Wipe(b)
			return nil, refusal(codeInvalid, "the body broke off")
		}
	}
}

// checkMedia wants a body to be JSON. Browsers cannot send that to another site unasked.
func checkMedia(r *http.Request, length int) error {
	if length == 0 {
		return nil
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || media != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return refusal(codeUnsupportedMedia, "the body must be JSON: send Content-Type: application/json")
	}
	return nil
}

// setters store the members of a JSON object. A value is JSON text within the
// body: a setter must not keep it.
type setters map[string]func(value []byte) error

// decode reads a JSON object strictly: a member that has no setter, one that is
// there twice or null, and anything behind the object are refused by name. An
// empty body is an object without members.
func decode(body []byte, set setters) error {
	if len(body) == 0 {
		return nil
	}
	if !json.Valid(body) || !utf8.Valid(body) {
		return refusal(codeInvalid, "the body is no valid JSON")
	}
	seen := map[string]bool{}
	return members(body, func(name string, value []byte) error {
		f := set[name]
		switch {
		case f == nil:
			return unknownField(name, set)
		case seen[name]:
			return badField(name, "is there twice")
		case bytes.Equal(value, []byte("null")):
			return badField(name, "is null: leave it out")
		}
		seen[name] = true
		if err := f(value); err != nil {
			return badField(name, "%v", err)
		}
		return nil
	})
}

// unknownField repeats a name only if it can be nothing else.
func unknownField(name string, set setters) error {
	known := make([]string, 0, len(set))
	for n := range set {
		known = append(known, n)
	}
	slices.Sort(known)
	if !plainName(name) {
		name = "(a name that is not repeated here)"
	}
	if len(known) == 0 {
		return badField(name, "is not known here: this operation takes no fields")
	}
	return badField(name, "is not known here: there are %s", strings.Join(known, ", "))
}

// plainName reports whether a text looks like a field's name rather than like something pasted.
func plainName(s string) bool {
	return len(s) <= 24 && s != "" && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' })
}

// members calls f with each member of the JSON object that valid JSON text is.
func members(text []byte, f func(name string, value []byte) error) error {
	i := skipSpace(text, 0)
	if text[i] != '{' {
		return refusal(codeInvalid, "the body must be a JSON object")
	}
	i = skipSpace(text, i+1)
	for text[i] != '}' {
		end := skipValue(text, i)
		var name string
		if err := json.Unmarshal(text[i:end], &name); err != nil {
			return refusal(codeInvalid, "the body is no valid JSON")
		}
		i = skipSpace(text, skipSpace(text, end)+1) // the colon
		end = skipValue(text, i)
		if err := f(name, text[i:end]); err != nil {
			return err
		}
		i = skipSpace(text, end)
		if text[i] == ',' {
			i = skipSpace(text, i+1)
		}
	}
	return nil
}

func skipSpace(text []byte, i int) int {
	for i < len(text) && (text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the end of the value that begins at i, in valid JSON.
func skipValue(text []byte, i int) int {
	depth := 0
	for ; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			if depth == 0 {
				return i // the end of what the value is in
			}
			depth--
		case ',', ':', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
			continue
		default:
			continue // of a number or a word: it ends before one of the above
		}
		if depth == 0 {
			return i + 1
		}
	}
	return i
}

// secretField is a string that is a key: it goes from the body straight into
// the arena and never becomes a Go string.
type secretField struct{ value *secret.Value }

// UnmarshalJSON takes a JSON string. It keeps nothing of b.
func (s *secretField) UnmarshalJSON(b []byte) error {
	if len(b) < 2 || b[0] != '"' || b[len(b)-1] != '"' {
		return errors.New("must be a string")
	}
	content, ok := b[1:len(b)-1], true
	v, err := secret.Make(len(content), func(dst []byte) (n int) {
		n, ok = unquote(dst, content)
		return n
	})
	if err != nil {
		return err
	}
	if !ok {
		v.Destroy()
		return errors.New("is no valid JSON string")
	}
	s.value.Destroy()
	s.value = v
	return nil
}

// unquote writes what a JSON string's content stands for to dst, which is as long as content.
func unquote(dst, content []byte) (n int, ok bool) {
	for i := 0; i < len(content); i++ {
		c := content[i]
		if c != '\\' {
			dst[n], n = c, n+1
			continue
		}
		if i++; i == len(content) {
			return 0, false
		}
		if content[i] == 'u' {
			r, used := unicodeEscape(content[i-1:])
			if used == 0 {
				return 0, false
			}
			n += utf8.EncodeRune(dst[n:], r) // an escape is longer than what it stands for
			i += used - 2
			continue
		}
		at := bytes.IndexByte([]byte(`"\/bfnrt`), content[i])
		if at < 0 {
			return 0, false
		}
		dst[n], n = "\"\\/\b\f\n\r\t"[at], n+1
	}
	return n, true
}

// unicodeEscape reads \u and four hexadecimal digits, or a surrogate pair of two, and how many bytes it took; 0 if it is none.
func unicodeEscape(b []byte) (r rune, used int) {
	r, ok := hex4(b)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 6
	}
	if low, ok := hex4(b[6:]); ok {
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, 12
		}
	}
	return utf8.RuneError, 6
}

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 + rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 + rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// text takes a string of at most `most` characters, without control characters.
func (a *api) text(dst *string, most int) func([]byte) error {
	return func(value []byte) error {
		var s string
		if json.Unmarshal(value, &s) != nil {
			return errors.New("must be a string")
		}
		if err := a.checkText(s, most); err != nil {
			return err
		}
		*dst = s
		return nil
	}
}

// checkText refuses what does not belong into a field that is written down in
// clear: above all, what has the form of a key or a token.
func (a *api) checkText(s string, most int) error {
	switch {
	case s == "":
		return errors.New("is empty: leave it out, or write something")
	case utf8.RuneCountInString(s) > most:
		return fmt.Errorf("is longer than %d characters", most)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == utf8.RuneError }):
		return errors.New("holds a control character")
	case string(a.o.Scrub([]byte(s))) != s:
		return errors.New("holds what looks like a key or a token; if it is one, replace it")
	}
	return nil
}

func boolean(dst *bool) func([]byte) error {
	return func(value []byte) error {
		if json.Unmarshal(value, dst) != nil {
			return errors.New("must be true or false")
		}
		return nil
	}
}

// maxVersionList bounds versions: a key has no more.
const maxVersionList = 100

func versions(dst *[]int) func([]byte) error {
	return func(value []byte) error {
		var list []int
		if json.Unmarshal(value, &list) != nil {
			return errors.New("must be a list of version numbers, as in [3]")
		}
		if len(list) == 0 || len(list) > maxVersionList {
			return fmt.Errorf("must name 1 to %d versions", maxVersionList)
		}
		for _, n := range list {
			if n < 1 {
				return errors.New("must hold numbers from 1 on")
			}
		}
		*dst = list
		return nil
	}
}

// maxSpan bounds the durations of a request.
const maxSpan = 365 * 24 * time.Hour

func span(dst **time.Duration) func([]byte) error {
	return func(value []byte) error {
		var s string
		d, err := time.Duration(0), json.Unmarshal(value, &s)
		if err == nil {
			d, err = time.ParseDuration(s)
		}
		if err != nil || d < 0 || d > maxSpan {
			return errors.New(`must be a duration up to a year, as in "10m"`)
		}
		*dst = &d
		return nil
	}
}

// maxRampSteps bounds a ramp, as the configuration does.
const maxRampSteps = 20

func ramp(dst **rotation.Ramp) func([]byte) error {
	return func(value []byte) error {
		const want = `must be a list of steps, as in [{"weight": 10, "for": "2m"}]`
		d := json.NewDecoder(bytes.NewReader(value))
		d.DisallowUnknownFields()
		var steps []struct {
			Weight int    `json:"weight"`
			For    string `json:"for"`
		}
		if d.Decode(&steps) != nil {
			return errors.New(want)
		}
		if len(steps) > maxRampSteps {
			return fmt.Errorf("has %d steps: at most %d are allowed", len(steps), maxRampSteps)
		}
		r := rotation.Ramp{}
		for i, s := range steps {
			length, err := time.ParseDuration(s.For)
			if err != nil || length <= 0 || length > maxSpan {
				return fmt.Errorf(`step %d: for must be a duration above 0, as in "2m"`, i+1)
			}
			if i > 0 && s.Weight < steps[i-1].Weight {
				return fmt.Errorf("step %d: weights must not fall", i+1)
			}
			r = append(r, rotation.RampStep{Weight: s.Weight, For: length})
		}
		if err := r.Check(); err != nil {
			return err
		}
		*dst = &r
		return nil
	}
}
