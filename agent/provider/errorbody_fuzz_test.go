package provider

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// FuzzErrorBody: in every shape the body is one line of JSON that says the
// message, and nothing but it, where that shape's SDKs look for it; a problem
// has the members of RFC 9457.
func FuzzErrorBody(f *testing.F) {
	f.Add("no_usable_key", 503, "no usable provider key openai", true)
	f.Add("bad_framing", 400, "a \"quoted\" <b>\\ \n\x00\x7f\u2028 \xff", false)
	f.Add("", 0, "", false)
	f.Add("x", 99999, strings.Repeat("é", 5000), true)
	f.Fuzz(func(t *testing.T, code string, status int, message string, retry bool) {
		for _, shape := range append([]string{"", "problem", "no such shape"}, spec.Shapes()...) {
			contentType, body := ErrorBody(shape, code, status, message, retry)
			if bytes.ContainsAny(body, "\n\r\x00") || !utf8.Valid(body) {
				t.Fatalf("%s: %q is not one line of text", shape, body)
			}
			var m map[string]any
			dec := json.NewDecoder(bytes.NewReader(body))
			dec.UseNumber()
			if err := dec.Decode(&m); err != nil || dec.More() {
				t.Fatalf("%s: %q: %v", shape, body, err)
			}
			problem := contentType == "application/problem+json"
			if !problem && contentType != "application/json" {
				t.Fatalf("%s: %s", shape, contentType)
			}
			where := m
			if inner, ok := m["error"].(map[string]any); ok {
				where = inner
			}
			said := where["message"]
			if problem {
				said = where["detail"]
				if number, ok := m["status"].(json.Number); !ok || number.String() != json.Number(jsonText(t, status)).String() || m["type"] != "about:blank" || m["code"] != plain(code) || m["retry"] != retry {
					t.Errorf("%s: %q", shape, body)
				}
				if _, ok := m["title"].(string); !ok {
					t.Errorf("%s: no title: %q", shape, body)
				}
			}
			if said != plain(message) {
				t.Errorf("%s: %q says %q, not %q", shape, body, said, message)
			}
		}
	})
}

// plain is a text as JSON carries it.
func plain(s string) string { return string([]rune(s)) }

func jsonText(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
