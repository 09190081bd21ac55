package spec

import (
	"regexp"
	"strings"
	"testing"
)

// FuzzPattern: a pattern fits what the regular expression fits that its comment describes.
func FuzzPattern(f *testing.F) {
	for _, s := range [][2]string{
		{"/chat/completions", "/v1/chat/completions"}, {"^/v1/models", "/v1/models"}, {"^/v1/models/*", "/v1/models/a"}, {"^/v1/files/**", "/v1/files"}, {"^/v1/files/**", "/v1/files/a/b"},
		{":generateContent", "/v1beta/models/gemini:generateContent"}, {"/a*b*c", "/aXbXbc"}, {"^/*", "/"}, {"/a", "a"}, {"^/a/**", "/a/"}, {"/*", "/"}, {"/a*a", "/a"}, {"/**", "/x"}, {"^/a", "/a/"},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		p, err := ParsePattern(pattern)
		if err != nil {
			return
		}
		if got, want := p.Match(path), model(pattern).MatchString(path); got != want {
			t.Errorf("%q fits %q: %v, want %v", pattern, path, got, want)
		}
	})
}

// model is a pattern as a regular expression over the whole path.
func model(pattern string) *regexp.Regexp {
	if strings.HasPrefix(pattern, ":") {
		pattern = "/*" + pattern
	}
	pattern, anchored := strings.CutPrefix(pattern, "^")
	pattern, rest := strings.CutSuffix(pattern, "/**")
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	if !anchored {
		b.WriteString(`(/.*)?`)
	}
	for seg := range strings.SplitSeq(pattern[1:], "/") {
		one := strings.ReplaceAll(regexp.QuoteMeta(seg), `\*`, `[^/]*`)
		if strings.Trim(seg, "*") == "" { // a segment of nothing else takes no empty one
			one = `[^/]+`
		}
		b.WriteString("/" + one)
	}
	if rest {
		b.WriteString(`(/.*)?`)
	}
	return regexp.MustCompile(b.String() + `\z`)
}

// FuzzFormat: pieces say again what the format said, and no literal holds a brace.
func FuzzFormat(f *testing.F) {
	for _, s := range []string{"", "Bearer {api_key}", "{a}{b}", "{", "}", "{}", "{1}", "a{b", "{a b}", "é", "{" + strings.Repeat("a", 65) + "}"} {
		f.Add(s)
	}
	legal := regexp.MustCompile(`\A([ -z|~]|\{[A-Za-z_][A-Za-z0-9_]{0,63}\})*\z`)
	f.Fuzz(func(t *testing.T, s string) {
		pieces, err := ParseFormat(s)
		if (err == nil) != legal.MatchString(s) {
			t.Fatalf("%q: %v", s, err)
		}
		if err != nil {
			if len(err.Error()) > 400 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Errorf("%q: %q", s, err)
			}
			return
		}
		var again strings.Builder
		for _, p := range pieces {
			switch {
			case (p.Literal == "") == (p.Field == ""):
				t.Fatalf("%q: piece %+v", s, p)
			case p.Field != "":
				again.WriteString("{" + p.Field + "}")
			}
			again.WriteString(p.Literal)
		}
		if again.String() != s {
			t.Errorf("%q was read as %q", s, again.String())
		}
	})
}
