package redact

import (
	"bytes"
	"cmp"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var keyPatterns = []string{
	`sk-(proj|svcacct|admin)-[\w-]{20,}`, `sk-[\w-]{20,}`, `sk-ant-(api03|admin01|oat01)-[\w-]{20,}`,
	`AIza[\w-]{35}`, `AQ\.[\w-]{20,}`, `ya29\.[\w-]+`, `ABSK[\w+/=]{20,}`, `gsk_\w{48,}`, `xai-\w{40,}`,
	`sk-or-v1-[0-9a-f]{64}`, `pplx-\w{48}`, `hf_\w{34}`, `qbt_\w+`, `\bpstn_[\w-]{16,}\b`,
}

func TestText(t *testing.T) {
	s, _ := knowing(t, Options{Patterns: keyPatterns})
	one := testKeys[0].value
	for in, want := range map[string]string{
		"":             "",
		"nothing here": "nothing here",
		one:            "[redacted]",
		"a " + one + "," + testKeys[3].value + " b": "a [redacted],[redacted] b",
		one + one:                                                      "[redacted]", // the pattern takes both for one
		testKeys[3].value + testKeys[3].value:                          "[redacted][redacted]",
		"unknown sk-abcdefghijklmnopqrstuvwxyz!":                       "unknown [redacted]!",
		"Incorrect API key provided: sk-f23aa***cda9":                  "Incorrect API key provided: sk-f23aa***cda9",
		"known, then more: " + one + "-more":                           "known, then more: [redacted]",
		"AIza" + strings.Repeat("x", 35) + " AIzashort":                "[redacted] AIzashort",
		"pstn_0123456789abcdef and xpstn_0123456789abcdef":             "[redacted] and xpstn_0123456789abcdef",
		`{"k":"k\"\\/<>&+='~!*()%?#:@$,;[]{}|^` + "`" + `0123456789"}`: `{"k":"[redacted]"}`,
		"already [redacted] here":                                      "already [redacted] here",
	} {
		b := []byte(in)
		if got := string(s.Text(b)); got != want {
			t.Errorf("%q\n got %q\nwant %q", in, got, want)
		}
		if string(b) != in {
			t.Errorf("Text wrote to its argument: %q", b)
		}
		if got := s.Text(b); in == want && len(b) > 0 && &got[0] != &b[0] {
			t.Errorf("%q: nothing to replace, but not the same bytes", in)
		}
	}
}

func TestPatternsAreForTextAlone(t *testing.T) {
	s := newSet(t, Options{Patterns: keyPatterns})
	b := []byte("sk-abcdefghijklmnopqrstuvwxyz is somebody's key")
	if s.Mask(b, WhereResponse) != 0 || !bytes.HasPrefix(s.NewStream(WhereResponse).Next(b), []byte("sk-abc")) {
		t.Error("a pattern changed a response")
	}
	if s.Hits() != 0 {
		t.Error("it was counted")
	}
}

func TestBadPatterns(t *testing.T) {
	for _, p := range []string{`(`, `a*`, `(?=x)abc`} {
		if _, err := New(Options{Patterns: []string{`sk-.+`, p}}); err == nil || !strings.Contains(err.Error(), "pattern 2") {
			t.Errorf("%q: %v", p, err)
		}
	}
	if _, err := New(Options{Patterns: slices.Repeat([]string{`abc`}, maxPatterns+1)}); err == nil {
		t.Error("too many patterns were accepted")
	}
}

func TestBeginnings(t *testing.T) {
	for expr, want := range map[string][]string{
		`sk-[\w-]{20,}`:                {"sk-"},
		`sk-(proj|svcacct|admin)-\w+`:  {"sk-proj-", "sk-svcacct-", "sk-admin-"},
		`\b(?:gsk|xai)[-_]\w{40}`:      {"gsk-", "gsk_", "xai-", "xai_"},
		`^AIza[\w-]{35}`:               {"AIza"},
		`ABSK[A-Za-z0-9+/=]+`:          {"ABSK"},
		`hf_\w{34}`:                    {"hf_"},
		`(abc)+x`:                      {"abc"},
		`abc?d`:                        nil, // "ab" is too short to look for
		`abcd?e`:                       {"abc"},
		`(?i)sk-\w+`:                   nil,
		`[A-Z]{4}-\w+`:                 nil,
		`(sk-|)\w{40}`:                 nil,
		`.*secret`:                     nil,
		`a|bcd`:                        nil,
		`key_(live|test)?_[0-9a-f]{8}`: {"key_"},
	} {
		got := beginnings(expr)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// The prefilter changes nothing: wherever the text stands, a pattern matches as
// it does by itself.
func TestPatternsAtEveryPlace(t *testing.T) {
	s := newSet(t, Options{Patterns: append(keyPatterns, `(?i)bearer [a-z]{8}`, `[0-9]{6}-[0-9]{6}`)})
	for _, match := range []string{
		"sk-proj-abcdefghijklmnopqrstu", "sk-ant-oat01-abcdefghijklmnopqrstu", "AIza" + strings.Repeat("y", 35),
		"AQ.abcdefghijklmnopqrstu", "ya29.a", "ABSKabcdefghijklmnopqrstuv==", "gsk_" + strings.Repeat("z", 48),
		"xai-" + strings.Repeat("z", 40), "pplx-" + strings.Repeat("q", 48), "hf_" + strings.Repeat("q", 34), "qbt_1",
		"bEaReR aBcDeFgH", "123456-123456",
	} {
		for shift := range 5 {
			pad := strings.Repeat(".", shift)
			if got := string(s.Text([]byte(pad + match))); got != pad+Redacted {
				t.Errorf("%q after %d bytes: %q", match, shift, got)
			}
		}
	}
}

// naiveText is Text by the slowest means.
func naiveText(b []byte, patterns []string, keys ...struct{ value, prefix string }) string {
	spans := naive(b, keys...)
	for _, p := range patterns {
		for _, m := range regexp.MustCompile(p).FindAllIndex(b, -1) {
			if !slices.ContainsFunc(spans, func(s span) bool { return s.start <= m[0] && m[1] <= s.end }) {
				spans = append(spans, span{m[0], m[1], 0})
			}
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(a.start-b.start, b.end-a.end) })
	var out strings.Builder
	at := 0
	for i, s := range spans {
		if i == 0 || s.start >= at {
			out.Write(b[at:s.start])
			out.WriteString(Redacted)
		}
		at = max(at, s.end)
	}
	out.Write(b[at:])
	return out.String()
}

func FuzzText(f *testing.F) {
	s, es := knowing(f, Options{Patterns: keyPatterns})
	s.Retire(es[1])
	for seed := range uint64(20) {
		f.Add(soup(seed, 200))
	}
	f.Add([]byte("sk-proj-abcdefghijklmnopqrstuvwxyz hf_0123456789012345678901234567890123 task-force qbt_x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := string(b)
		got := s.Text(b)
		if want := naiveText(b, keyPatterns, testKeys...); string(got) != want {
			t.Errorf(" in %q\ngot %q\nwant %q", b, got, want)
		}
		if string(b) != in {
			t.Error("Text wrote to its argument")
		}
		if len(naive(got, testKeys...)) != 0 && len(naive(b, testKeys...)) == 0 {
			t.Errorf("replacing made a value: %q", got)
		}
	})
}
