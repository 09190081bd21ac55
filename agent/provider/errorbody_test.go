package provider

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

const sentence = `no usable key for "openai": add one with <postern keys add openai> & try again`

// What each kind of SDK reads of an error, from the bytes.
func TestErrorBodyHasWhatSDKsRead(t *testing.T) {
	rows := []struct {
		shape  string
		status int
		retry  bool
		want   map[string]any // path → value
	}{
		{"openai", 503, false, map[string]any{"error.message": sentence, "error.type": "server_error", "error.code": "no_key", "error.param": nil}},
		{"openai", 429, true, map[string]any{"error.type": "rate_limit_error"}},
		{"openai", 403, false, map[string]any{"error.type": "invalid_request_error"}},
		{"anthropic", 503, false, map[string]any{"type": "error", "error.type": "api_error", "error.message": sentence}},
		{"anthropic", 503, true, map[string]any{"error.type": "overloaded_error"}},
		{"anthropic", 400, false, map[string]any{"error.type": "invalid_request_error"}},
		{"anthropic", 401, false, map[string]any{"error.type": "authentication_error"}},
		{"anthropic", 402, false, map[string]any{"error.type": "billing_error"}},
		{"anthropic", 403, false, map[string]any{"error.type": "permission_error"}},
		{"anthropic", 404, false, map[string]any{"error.type": "not_found_error"}},
		{"anthropic", 413, false, map[string]any{"error.type": "request_too_large"}},
		{"anthropic", 429, true, map[string]any{"error.type": "rate_limit_error"}},
		{"anthropic", 504, true, map[string]any{"error.type": "timeout_error"}},
		{"google", 503, true, map[string]any{"error.code": 503., "error.message": sentence, "error.status": "UNAVAILABLE"}},
		{"google", 400, false, map[string]any{"error.status": "INVALID_ARGUMENT"}},
		{"google", 401, false, map[string]any{"error.status": "UNAUTHENTICATED"}},
		{"google", 403, false, map[string]any{"error.status": "PERMISSION_DENIED"}},
		{"google", 404, false, map[string]any{"error.status": "NOT_FOUND"}},
		{"google", 409, false, map[string]any{"error.status": "ABORTED"}},
		{"google", 429, true, map[string]any{"error.status": "RESOURCE_EXHAUSTED"}},
		{"google", 500, false, map[string]any{"error.status": "INTERNAL"}},
		{"google", 501, false, map[string]any{"error.status": "UNIMPLEMENTED"}},
		{"google", 504, true, map[string]any{"error.status": "DEADLINE_EXCEEDED"}},
		{"aws", 503, false, map[string]any{"message": sentence, "__type": "ServiceUnavailableException"}},
		{"aws", 403, false, map[string]any{"__type": "AccessDeniedException"}},
		{"aws", 404, false, map[string]any{"__type": "ResourceNotFoundException"}},
		{"aws", 429, true, map[string]any{"__type": "ThrottlingException"}},
		{"aws", 400, false, map[string]any{"__type": "ValidationException"}},
		{"aws", 500, false, map[string]any{"__type": "InternalServerException"}},
		{"aws", 504, false, map[string]any{"__type": "ModelTimeoutException"}},
		{"cohere", 503, false, map[string]any{"message": sentence, "code": "no_key"}},
		{"problem", 503, true, map[string]any{"type": "about:blank", "title": "Service Unavailable", "status": 503., "detail": sentence, "code": "no_key", "retry": true}},
		{"", 421, false, map[string]any{"title": "Misdirected Request", "detail": sentence, "retry": false}},
		{"xml", 503, false, map[string]any{"detail": sentence}},
	}
	for _, row := range rows {
		ct, body := ErrorBody(row.shape, "no_key", row.status, sentence, row.retry)
		wantCT := "application/json"
		if row.shape == "" || row.shape == "problem" || row.shape == "xml" {
			wantCT = "application/problem+json"
		}
		if ct != wantCT {
			t.Errorf("%s: content type %s", row.shape, ct)
		}
		var got map[string]any
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v in %s", row.shape, err, body)
		}
		for path, want := range row.want {
			var v any = got
			for name := range strings.SplitSeq(path, ".") {
				m, _ := v.(map[string]any)
				if _, ok := m[name]; !ok {
					t.Errorf("%s %d: no %s in %s", row.shape, row.status, path, body)
				}
				v = m[name]
			}
			if v != want {
				t.Errorf("%s %d: %s is %v, want %v", row.shape, row.status, path, v, want)
			}
		}
		if row.shape == "aws" {
			if _, ok := got["code"]; ok {
				t.Error("an AWS SDK would take code for the exception's name")
			}
		}
		if strings.Contains(string(body), `\u003c`) || strings.HasSuffix(string(body), "\n") {
			t.Errorf("%s: %q is printed as it is by some SDKs", row.shape, body)
		}
	}
}

func TestErrorBodyKnowsEveryShape(t *testing.T) {
	seen := map[string]string{}
	for _, shape := range spec.Shapes() {
		_, body := ErrorBody(shape, "code", 503, "m", false)
		if other, ok := seen[string(body)]; ok {
			t.Errorf("%s and %s are answered alike", shape, other)
		}
		seen[string(body)] = shape
	}
	_, body := ErrorBody("openai", "code", 503, "a\r\n\x00\"\xff", false)
	if !json.Valid(body) {
		t.Errorf("%s", body)
	}
}
