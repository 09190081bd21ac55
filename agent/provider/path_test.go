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
		"//v1", "/v1//models", "/v1\\..\\a", "/v1%5c..%5ca", "/a%00b", "/a%0d%0ab", "/a%7f", "/%zz", "/%",
	} {
		if CleanPath(p) {
			t.Errorf("%q passed", p)
		}
	}
}

func FuzzCleanPath(f *testing.F) {
	for _, s := range []string{"/v1/models", "/v1/%2e%2e/admin", "/a%2f..%2fb", "/\\", "/%5c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if !CleanPath(p) {
			return
		}
		plain, err := url.PathUnescape(p)
		if err != nil {
			t.Fatalf("%q passed", p)
		}
		for _, sep := range []string{"/", "\\"} {
			for _, seg := range strings.Split(plain, sep) {
				if seg == "." || seg == ".." {
					t.Fatalf("%q passed with a dot segment", p)
				}
			}
		}
	})
}
