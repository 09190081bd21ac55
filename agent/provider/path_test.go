package provider

import (
	"net/url"
	"strings"
	"testing"
)

func TestCleanPath(t *testing.T) {
	for _, p := range []string{
		"/", "/v1/models", "/v1/models/", "/v1/models/ft:gpt-4o:org::id", "/v1/models/org%2Fname", "/v1/.well-known", "/a..b/c", "/...", "/v1beta/models/gemini:generateContent", "/%20", "/a%25b",
	} {
		if !CleanPath(p) {
			t.Errorf("%q was refused", p)
		}
	}
	for _, p := range []string{
		"", "v1", "*", "/..", "/../v1", "/v1/../admin", "/v1/./a", "/.", "/v1/%2e%2e/admin", "/v1/%2E./a", "/v1/.%2e", "/%2e", "/v1%2f..%2fadmin", "/v1/..%2fadmin",
		"//v1", "/v1//models", "/v1\\..\\a", "/v1%5c..%5ca", "/%25%32%65", "/a%2f%25%32e%252%65/b", "/%25%2532%65", "/a%00b", "/a%0d%0ab", "/a%7f", "/%zz", "/%",
	} {
		if CleanPath(p) {
			t.Errorf("%q passed", p)
		}
	}
}

// FuzzCleanPath: whoever decodes what passes, as often as there is something to
// decode, and cuts it at slashes, backslashes and semicolons, sees no dot segment.
func FuzzCleanPath(f *testing.F) {
	for _, s := range []string{"/v1/models", "/v1/%2e%2e/admin", "/a%2f..%2fb", "/\\", "/%5c", "/%25%32%65", "/%252%65;x", "/%25%2532%65"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if !CleanPath(p) {
			return
		}
		for plain, times := p, 0; ; times++ {
			for seg := range strings.SplitSeq(strings.ReplaceAll(plain, "\\", "/"), "/") {
				if seg, _, _ = strings.Cut(seg, ";"); seg == "." || seg == ".." {
					t.Fatalf("%q passed with a dot segment, decoded %d times", p, times)
				}
			}
			next, err := url.PathUnescape(plain)
			if err != nil && times == 0 {
				t.Fatalf("%q passed: %v", p, err)
			}
			if err != nil || next == plain || times > maxNesting {
				return
			}
			plain = next
		}
	})
}
