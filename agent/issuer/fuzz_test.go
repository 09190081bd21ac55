package issuer

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"unicode"

	"github.com/postern-proxy/postern/agent/secret"
)

// FuzzAnswers: whatever a vendor answers, an operation ends with a usable
// credential, with success, or with a reason in one short line.
func FuzzAnswers(f *testing.F) {
	for _, body := range []string{
		"", "null", "{}", "[]", `""`, `{"error":null}`, `{"error":{"code":null,"type":"a"}}`, `{"error":{"code":42}}`, `{"error":"invalid_client"}`,
		`{"id":"svc_acct_1","api_key":{"value":"sk-0123456789abcdef","expires_at":1}}`,
		`{"id":"svc_acct_1","api_key":{"value":"sk-0123456789abcdef","value":"\u0073k-1123456789abcdef"}}`,
		`{"id":"../x","api_key":{"value":"sk-0123456789abcdef"}}`, `{"id":"a","api_key":null}`, `{"id":"a","api_key":{"value":7}}`, `{"id":"a","api_key":{"value":"short"}}`,
		`{"data":{"hash":"h1","expires_at":"2030-01-01T00:00:00Z"},"key":"sk-or-v1-0123456789abcdef"}`, `{"data":{"hash":"h1","expires_at":"soon"},"key":"sk-or-v1-0123456789abcdef"}`,
		`{"data":[{"id":"a","name":"postern prod px_acme openai 8","hash":"b"},{}],"has_more":true,"last_id":"a","deleted":true}`,
		`{"key1":"0123456789abcdef","key2":"0123456789abcdef","access_token":"eyJ.a.b"}`, `{"status":"inactive"}`, `{"access_token":"a b"}`, "\xff{", `{"key":"\ud800"}`,
	} {
		for _, status := range []int{200, 400} {
			f.Add(status, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 100 || status > 999 {
			status = 200
		}
		admin := (&house{}).admin(map[string]string{"api_key": adminKey, "tenant_id": "t", "client_id": "c", "client_secret": adminKey})
		for _, kind := range []string{OpenAI, OpenRouter, Anthropic, Azure} {
			requests := 0
			i, err := New(Options{
				Kind: kind, Admin: admin, Project: "p", Subscription: "s", ResourceGroup: "r", Account: "a", Spare: "key1",
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					if requests++; strings.Contains(r.URL.Path, "..") || strings.Count(r.URL.String(), "?") > 1 || r.URL.Fragment != "" {
						t.Fatalf("asked for %s", r.URL)
					}
					return answer(status, string(body))(r)
				}),
			})
			if err != nil {
				t.Fatal(err)
			}
			got, err := i.Create(t.Context(), Request{Label: label, Current: "key1"})
			judge(t, err)
			if (got == nil) == (err == nil) {
				t.Fatalf("%s: %v and %v", kind, got, err)
			}
			if got != nil {
				if !got.Fields["api_key"].Use(func(b []byte) { err = secret.CheckKey(b) }) || err != nil || i.Revoke(t.Context(), got.ID) != nil && !idForm.MatchString(got.ID) {
					t.Errorf("%s: %+v, %v", kind, got, err)
				}
				got.Destroy()
			}
			judge(t, i.Revoke(t.Context(), "key1"))
			judge(t, i.Sweep(t.Context(), label, nil))
			if requests > maxPages+200 {
				t.Errorf("%s: %d requests", kind, requests)
			}
		}
	})
}

// judge checks what holds of every error.
func judge(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Reason == nil || len(err.Error()) > 600 || strings.Contains(err.Error(), adminKey) || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("%T: %q", err, err)
	}
}

// FuzzHidden: a string of ASCII is read as encoding/json reads it, and nothing else is.
func FuzzHidden(f *testing.F) {
	for _, s := range []string{`"abc"`, `"\"\\\/\b\f\n\r\t"`, `"\u0041\u007f"`, `"\u0080"`, `"\ud83d\ude00"`, `"é"`, `null`, `7`, `["a"]`, `""`, `"\u00"`, `"`, "\"\xff\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h hidden
		defer h.drop()
		err := json.Unmarshal(b, &h)
		var want *string
		stdErr := json.Unmarshal(b, &want)
		ascii := want != nil && !strings.ContainsFunc(*want, func(r rune) bool { return r >= 0x80 })
		switch {
		case stdErr != nil:
			if err == nil {
				t.Errorf("%q was read as %q", b, reveal(h.v))
			}
		case want == nil:
			if err != nil || h.v != nil {
				t.Errorf("%q: %v", b, err)
			}
		case (err == nil) != ascii:
			t.Errorf("%q: %v", b, err)
		case ascii && reveal(h.v) != *want:
			t.Errorf("%q was read as %q", b, reveal(h.v))
		}
		// On its own, without the check that comes before it in a document.
		var alone hidden
		defer alone.drop()
		if alone.UnmarshalJSON(b) == nil && err != nil && json.Valid(b) {
			t.Errorf("%q is read alone only", b)
		}
	})
}
