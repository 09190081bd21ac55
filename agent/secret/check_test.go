package secret

import (
	"strings"
	"testing"
)

func TestCheckKey(t *testing.T) {
	good := []string{
		"0123456789abcdef", strings.Repeat("k", MaxKey), "sk-proj-" + strings.Repeat("A_-9", 20),
		"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", Placeholder + "x",
	}
	for _, k := range good {
		if err := CheckKey([]byte(k)); err != nil {
			t.Errorf("%.20q… is refused: %v", k, err)
		}
	}
	bad := map[string]string{
		"":                              "empty",
		"0123456789abcde":               "shorter than 16",
		strings.Repeat("k", MaxKey+1):   "longer than 16384",
		"0123456789abcdef\n":            "line break at the end",
		"0123456789abcdef \r\n":         "space at the end",
		"01234567\r\n89abcdef":          "byte 9 of 18 is a line break",
		"0123456 89abcdef0":             "byte 8 of 17 is a space;",
		"0123456\x0089abcdef0":          "control character",
		"0123456\x7f89abcdef0":          "control character",
		"clé-0123456789abcdef":          "not ASCII",
		Placeholder:                     "placeholder",
		"${OPENAI_API_KEY_PRODUCTION}":  "unresolved template",
		"sk-{{.Values.key}}-0123456789": "unresolved template",
	}
	for k, want := range bad {
		err := CheckKey([]byte(k))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q in it", k, err, want)
		}
		if err != nil && len(k) > 4 && k != Placeholder && strings.Contains(err.Error(), k[:min(8, len(k))]) {
			t.Errorf("the error holds the value: %v", err)
		}
	}
}

func FuzzCheckKey(f *testing.F) {
	f.Add([]byte("sk-proj-0123456789abcdef"))
	f.Add([]byte("0123456789abcdef\n"))
	f.Add([]byte("${X}............."))
	f.Fuzz(func(t *testing.T, b []byte) {
		if CheckKey(b) != nil {
			return
		}
		if len(b) < MinKey || len(b) > MaxKey {
			t.Errorf("%d bytes were accepted", len(b))
		}
		for _, c := range b {
			if c < 0x21 || c > 0x7e {
				t.Errorf("byte %#x was accepted", c)
			}
		}
	})
}
