package spec

import (
	"strings"
	"testing"
)

func TestPattern(t *testing.T) {
	rows := []struct {
		pattern string
		yes, no []string
	}{
		{"/chat/completions", []string{"/chat/completions", "/v1/chat/completions", "/a/b/chat/completions"},
			[]string{"", "chat/completions", "/chat/completions/", "/xchat/completions", "/chat/completionsx", "/chat%2fcompletions", "/Chat/completions", "/completions"}},
		{"^/v1/models", []string{"/v1/models"}, []string{"/v1/models/", "/v1/models/x", "/v1", "/x/v1/models", "/v1/model"}},
		{"^/v1/models/*", []string{"/v1/models/gpt", "/v1/models/a%2Fb"}, []string{"/v1/models", "/v1/models/", "/v1/models/a/b"}},
		{"^/v1/files/**", []string{"/v1/files", "/v1/files/", "/v1/files/a", "/v1/files/a/content"}, []string{"/v1/filesx", "/v1", "/v2/files/a"}},
		{":generateContent", []string{"/v1beta/models/gemini:generateContent", "/:generateContent"},
			[]string{"/v1beta/models/gemini:streamGenerateContent", "/v1beta/models/gemini:generateContent/x", "/v1beta/models/gemini%3AgenerateContent"}},
		{"^/model/*embed*/invoke", []string{"/model/amazon.titan-embed-text-v2:0/invoke", "/model/embed/invoke"},
			[]string{"/model/amazon.nova/invoke", "/model/x/embed/invoke", "/model/embed/invoke/x"}},
		{"^/a*b*c/d", []string{"/abc/d", "/axbxc/d", "/abbc/d", "/abcbc/d"}, []string{"/acb/d", "/ab/d", "/abcx/d", "/xabc/d"}},
		{"^/*", []string{"/x"}, []string{"/", "/x/y", ""}},
	}
	for _, row := range rows {
		p, err := ParsePattern(row.pattern)
		if err != nil {
			t.Fatalf("%s: %v", row.pattern, err)
		}
		for _, s := range row.yes {
			if !p.Match(s) {
				t.Errorf("%s does not match %q", row.pattern, s)
			}
		}
		for _, s := range row.no {
			if p.Match(s) {
				t.Errorf("%s matches %q", row.pattern, s)
			}
		}
		if n := testing.AllocsPerRun(100, func() { p.Match("/v1/chat/completions") }); n > 0 {
			t.Errorf("%s allocates %v times", row.pattern, n)
		}
	}
}

func TestParsePatternRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"": "pattern", "chat": "pattern", "/": "pattern", "^": "pattern", "^chat": "pattern", "^/": "pattern",
		"/a//b": "empty", "/a/": "empty", "/a/../b": "dot", "/./b": "dot",
		"/files/**": "^/", "^/**": "^/", "^/a/**/b": "last", "^/a**": "last",
		"/a?b": "query", "/a b": "escape", "/a\\b": "escape", "/ü": "escape", "^^/a": "pattern",
	} {
		if _, err := ParsePattern(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error about %q", in, err, want)
		}
	}
}

func TestParseFormat(t *testing.T) {
	for in, want := range map[string][]Piece{
		"":                 nil,
		"{api_key}":        {{Field: "api_key"}},
		"Bearer {api_key}": {{Literal: "Bearer "}, {Field: "api_key"}},
		"{a}:{B_2}!":       {{Field: "a"}, {Literal: ":"}, {Field: "B_2"}, {Literal: "!"}},
	} {
		got, err := ParseFormat(in)
		if err != nil || len(got) != len(want) {
			t.Errorf("%q: %v %v", in, got, err)
			continue
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%q: %v", in, got)
			}
		}
	}
	for _, in := range []string{"{", "}", "{}", "{a", "a}", "{{a}}", "{1}", "{a b}", "{" + strings.Repeat("a", 65) + "}", "a\tb", "ü"} {
		if got, err := ParseFormat(in); err == nil {
			t.Errorf("%q was read as %v", in, got)
		}
	}
}
