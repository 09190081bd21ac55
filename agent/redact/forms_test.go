package redact

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// Every form the standard library can make of a key is masked, all of it and
// nothing else.
func TestForms(t *testing.T) {
	for _, k := range testKeys {
		s := newSet(t, Options{})
		add(t, s, Label{"k", 1}, k.value, k.prefix)
		for name, form := range referenceForms(k.value) {
			for shift := range 9 {
				text := strings.Repeat(".", shift) + form + " and more"
				b := []byte(text)
				n := s.Mask(b, WhereResponse)
				if want := strings.Repeat(".", shift) + strings.Repeat("*", len(form)) + " and more"; n != 1 || string(b) != want {
					t.Errorf("%s of %q: %d hits, %s", name, k.value, n, b)
				}
			}
		}
	}
}

func TestFormsAreMinimalAndDistinct(t *testing.T) {
	plain := testKeys[0]
	seen := map[string]bool{}
	for _, f := range allForms(plain) {
		if len(f.text) < MinValue {
			t.Errorf("a form of %d bytes: %q", len(f.text), f.text)
		}
		if seen[f.text] {
			t.Errorf("twice: %q", f.text)
		}
		seen[f.text] = true
		if f.off+wordSpan > len(f.text) {
			t.Errorf("the words of %q reach past its end", f.text)
		}
	}
	// raw, three alignments of one alphabet, %XX in both cases: the others equal raw.
	if len(seen) != 6 {
		t.Errorf("%d forms of an ordinary key: %v", len(seen), seen)
	}
	if !seen[plain.value] {
		t.Error("no raw form")
	}
}

func TestWordsBeginBehindThePublicPrefix(t *testing.T) {
	for _, f := range allForms(testKeys[0]) {
		if strings.HasPrefix(f.text, "sk-proj-") && f.off != 8 {
			t.Errorf("%q: words begin at %d", f.text, f.off)
		}
		if strings.HasPrefix(f.text, "%") && f.off != 24 {
			t.Errorf("%q: words begin at %d", f.text, f.off)
		}
	}
	if fs := allForms(testKeys[4]); fs[0].off != len(fs[0].text)-wordSpan {
		t.Errorf("a prefix that leaves too little: %+v", fs[0])
	}
	// A prefix the value does not have is not its prefix.
	if n := commonPrefix([]byte("sk-abc"), "sk-proj-"); n != 3 {
		t.Errorf("common prefix %d", n)
	}
}

// Wherever a key stands inside a longer encoded text, it is found.
func TestInsideLongerBase64(t *testing.T) {
	for _, k := range testKeys {
		s := newSet(t, Options{})
		add(t, s, Label{"k", 1}, k.value, k.prefix)
		for before := range 7 {
			for after := range 4 {
				for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
					text := "Basic " + enc.EncodeToString([]byte(strings.Repeat("u", before)+k.value+strings.Repeat("p", after))) + "\r\n"
					b := []byte(text)
					if s.Mask(b, WhereHeader) != 1 {
						t.Fatalf("not found: %s", text)
					}
					// What stays of the key: at most 4 bits at either end.
					stars := bytes.Count(b, []byte("*"))
					if stars < (len(k.value)*8-8)/6 {
						t.Errorf("%d of %d characters masked: %s", stars, len(text), b)
					}
				}
			}
		}
	}
}

func TestEscapesOfOtherEncoders(t *testing.T) {
	key := testKeys[2].value
	s := newSet(t, Options{})
	add(t, s, Label{"k", 1}, key, "k")
	escape := func(special, format string) string {
		var b strings.Builder
		for _, c := range []byte(key) {
			switch {
			case strings.IndexByte(special, c) >= 0:
				fmt.Fprintf(&b, format, c)
			case format[0] == '\\' && (c == '"' || c == '\\'):
				b.WriteString(`\` + string(c))
			default:
				b.WriteByte(c)
			}
		}
		return b.String()
	}
	for name, text := range map[string]string{
		"encodeURIComponent":  escape("\"\\/<>&+=%?#:@$,;[]{}|^`", "%%%02X"),
		"URLSearchParams":     escape("\"\\/<>&+='~!()%?#:@$,;[]{}|^`", "%%%02X"),
		"quote":               escape("\"\\<>&+='!*()%?#:@$,;[]{}|^`", "%%%02X"),
		"System.Text.Json":    escape("\"<>&'+`", `\u%04X`),
		"script-safe JSON":    escape("<>&'", `\u%04x`),
		"Jackson, upper case": escape("<>&", `\u%04X`),
	} {
		b := []byte("x=" + text)
		if s.Mask(b, WhereResponse) != 1 || strings.Trim(string(b), "*") != "x=" {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func TestEveryControlCharacterInJSON(t *testing.T) {
	key := "line one\nline two\r\n\ttabbed\b\f\x01\x1f end of the value"
	s := newSet(t, Options{})
	add(t, s, Label{"k", 1}, key, "")
	for name, form := range referenceForms(key) {
		b := []byte(form)
		if s.Mask(b, WhereResponse) != 1 || strings.Trim(string(b), "*") != "" {
			t.Errorf("%s: %q", name, b)
		}
	}
}

func TestLongestValue(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	key := make([]byte, MaxValue)
	for i := range key {
		key[i] = byte(0x21 + r.IntN(0x5e))
	}
	s := newSet(t, Options{})
	add(t, s, Label{"k", 1}, string(key), "")
	add(t, s, Label{"all of it escaped", 1}, strings.Repeat("\x01 \x02\x1f", MaxValue/4), "")
	for name, form := range referenceForms(string(key)) {
		if n := s.Mask([]byte("ab"+form), WhereResponse); n != 1 {
			t.Errorf("%s: %d hits", name, n)
		}
	}
}

func FuzzForms(f *testing.F) {
	for _, k := range testKeys {
		f.Add([]byte(k.value), len(k.prefix))
	}
	f.Add([]byte("\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff\x00\xff"), 3)
	f.Fuzz(func(t *testing.T, key []byte, pub int) {
		if len(key) < MinValue || len(key) > 2000 {
			return
		}
		pub = min(max(pub, 0), len(key))
		dst := make([]byte, formsRoom(key))
		forms, used := encodeForms(dst, key, pub)
		if used > len(dst) {
			t.Fatalf("%d bytes of forms in a room of %d", used, len(dst))
		}
		have := map[string]bool{}
		for _, f := range forms {
			if f.n < MinValue || f.off < 0 || f.off+wordSpan > f.n {
				t.Errorf("form %+v", f)
			}
			have[string(dst[f.pos:f.pos+f.n])] = true
		}
		for name, want := range referenceForms(string(key)) {
			if strings.HasPrefix(name, "json") && !json7bit(key) {
				continue // encoding/json replaces what is no UTF-8, and escapes U+2028
			}
			if !have[want] {
				t.Errorf("%s is missing: %q", name, want)
			}
		}
	})
}

func json7bit(b []byte) bool {
	for _, c := range b {
		if c >= 0x7f {
			return false
		}
	}
	return true
}
