package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
)

// Two keys of usual shape, one with every character that encoders treat
// specially, one as short as allowed, one whose prefix leaves less than 15 bytes.
var testKeys = []struct{ value, prefix string }{
	{"sk-proj-9fK2mQ7xT4vB8nZ1cL6wR3yH5jD0sG_aE-uP", "sk-proj-"},
	{"sk-ant-api03-Zq8Wn2Lk5Tr9Xc4Vb7Ym1Ph6Js3Df0Ga-AA", "sk-ant-api03-"},
	{`k"\/<>&+='~!*()%?#:@$,;[]{}|^` + "`" + `0123456789`, "k"},
	{"0a9b8c7d6e5f4g3h", ""},
	{"pre-fix-0123456789ab", "pre-fix-"},
}

var regexpPercent = regexp.MustCompile("%..")

func newSet(t testing.TB, o Options) *Set {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func value(t testing.TB, s string) *secret.Value {
	t.Helper()
	v, err := secret.New([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Destroy)
	return v
}

func add(t testing.TB, s *Set, l Label, key, prefix string) *Entry {
	t.Helper()
	e, err := s.Add(l, value(t, key), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// knowing returns a set of all test keys, and the entries.
func knowing(t testing.TB, o Options) (*Set, []*Entry) {
	s := newSet(t, o)
	var es []*Entry
	for i, k := range testKeys {
		es = append(es, add(t, s, Label{fmt.Sprint("key", i), i + 1}, k.value, k.prefix))
	}
	return s, es
}

// innerBase64 is what of the encoding of before+key+after every before and
// after of these lengths have in common, found by encoding, not by arithmetic.
func innerBase64(enc *base64.Encoding, key string, before int) string {
	var common []byte
	var known []bool
	for _, fill := range []string{"\x00", "\xff", "\x5a", "\xa5"} {
		text := enc.EncodeToString([]byte(strings.Repeat(fill, before) + key + strings.Repeat(fill, 3)))
		if common == nil {
			common, known = []byte(text), make([]bool, len(text))
			for i := range known {
				known[i] = true
			}
		}
		for i := range common {
			known[i] = known[i] && common[i] == text[i]
		}
	}
	// The longest run: characters of the filling differ, the key's do not.
	best := ""
	for i := 0; i < len(known); i++ {
		j := i
		for j < len(known) && known[j] {
			j++
		}
		if j-i > len(best) {
			best = string(common[i:j])
		}
		i = j
	}
	return best
}

// referenceForms are a value's forms as the standard library's encoders make them.
func referenceForms(key string) map[string]string {
	forms := map[string]string{"raw": key}
	for before := range 3 {
		forms[fmt.Sprint("base64 std ", before)] = innerBase64(base64.StdEncoding, key, before)
		forms[fmt.Sprint("base64 url ", before)] = innerBase64(base64.URLEncoding, key, before)
	}
	forms["query"] = url.QueryEscape(key)
	forms["path"] = url.PathEscape(key)
	forms["user"] = url.User(key).String()
	forms["fragment"] = (&url.URL{Fragment: key}).EscapedFragment()
	forms["whole path"] = (&url.URL{Path: key}).EscapedPath()
	hex := regexpPercent.ReplaceAllStringFunc(url.QueryEscape(key), strings.ToLower)
	forms["query lower"] = hex
	var up, low strings.Builder
	for _, c := range []byte(key) {
		fmt.Fprintf(&up, "%%%02X", c)
		fmt.Fprintf(&low, "%%%02x", c)
	}
	forms["every byte"], forms["every byte lower"] = up.String(), low.String()
	for _, html := range []bool{true, false} {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(html)
		if err := enc.Encode(key); err != nil {
			panic(err)
		}
		text := strings.TrimSuffix(strings.TrimSpace(b.String()), `"`)[1:]
		forms[fmt.Sprint("json html=", html)] = text
		forms[fmt.Sprint("json slash html=", html)] = strings.ReplaceAll(text, "/", `\/`)
	}
	return forms
}

// span is an occurrence in the reference's eyes.
type span struct{ start, end, off int }

// allForms lists every form of every key that the package makes, with the place
// where its words begin. That these are the right forms is TestForms' matter.
func allForms(keys ...struct{ value, prefix string }) (forms []struct {
	text string
	off  int
}) {
	for _, k := range keys {
		dst := make([]byte, formsRoom([]byte(k.value)))
		fs, _ := encodeForms(dst, []byte(k.value), commonPrefix([]byte(k.value), k.prefix))
		for _, f := range fs {
			forms = append(forms, struct {
				text string
				off  int
			}{string(dst[f.pos : f.pos+f.n]), f.off})
		}
	}
	return forms
}

// naive finds every occurrence of every form by looking at every place.
func naive(b []byte, keys ...struct{ value, prefix string }) []span {
	seen := map[span]bool{}
	var out []span
	for _, f := range allForms(keys...) {
		for at := 0; at+len(f.text) <= len(b); at++ {
			if string(b[at:at+len(f.text)]) == f.text {
				if k := (span{at, at + len(f.text), 0}); !seen[k] {
					seen[k] = true
					out = append(out, span{at, at + len(f.text), f.off})
				}
			}
		}
	}
	return out
}

func naiveMask(b []byte, spans []span) []byte {
	out := bytes.Clone(b)
	for _, s := range spans {
		for i := s.start; i < s.end; i++ {
			out[i] = '*'
		}
	}
	return out
}

// soup makes a text of random bytes, whole forms, pieces of forms and forms that
// overlap, from any bytes.
func soup(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	forms := allForms(testKeys...)
	var b []byte
	for len(b) < n {
		f := forms[r.IntN(len(forms))].text
		switch r.IntN(7) {
		case 0, 1:
			b = append(b, f...)
		case 2:
			b = append(b, f[:r.IntN(len(f)+1)]...)
		case 3:
			b = append(b, f[r.IntN(len(f)+1):]...)
		case 4: // a beginning, then all of it
			b = append(append(b, f[:r.IntN(len(f)+1)]...), f...)
		default:
			for range r.IntN(40) {
				b = append(b, alphabets[0][r.IntN(64)])
			}
		}
	}
	return b
}

// clock is a time that moves when told.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time          { return c.now }
func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }
func newClock() *clock                   { return &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }
