package provider

import (
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

func TestCapability(t *testing.T) {
	openai := map[string]string{ // below the provider's prefix
		"POST /chat/completions":             "chat",
		"GET /chat/completions/chatcmpl-1":   "chat",
		"POST /completions":                  "chat",
		"POST /responses":                    "chat",
		"DELETE /responses/resp_1":           "chat",
		"POST /responses/resp_1/cancel":      "chat",
		"POST /embeddings":                   "embeddings",
		"POST /images/generations":           "images",
		"POST /images/edits":                 "images",
		"POST /audio/speech":                 "audio",
		"POST /audio/transcriptions":         "audio",
		"POST /moderations":                  "moderations",
		"GET /realtime":                      "realtime",
		"POST /files":                        "files",
		"GET /files/file-1/content":          "files",
		"POST /uploads/u/parts":              "files",
		"POST /batches":                      "batches",
		"POST /batches/b/cancel":             "batches",
		"POST /fine_tuning/jobs":             "fine_tuning",
		"GET /models":                        "models",
		"GET /models/meta-llama/Llama-3":     "models",
		"DELETE /models/ft:gpt":              "fine_tuning",
		"POST /models":                       "",
		"POST /realtime/client_secrets":      "", // hands out a credential
		"POST /realtime/sessions":            "",
		"POST /realtime/calls":               "realtime",
		"GET /organization/projects":         "",
		"POST /organization/admin_api_keys":  "",
		"POST /chat%2fcompletions":           "",
		"POST /Chat/Completions":             "",
		"POST /embeddings/":                  "",
		"POST /organization/chat/completion": "",
		"POST /../chat/completions":          "",
	}
	prefixes := map[string][]string{
		"openai": {"/v1"}, "groq": {"/openai/v1"}, "deepseek": {"", "/v1"}, "xai": {"/v1"}, "openrouter": {"/api/v1"}, "perplexity": {"", "/v1"},
		"huggingface": {"/v1"}, "together": {"/v1"}, "fireworks": {"/inference/v1"}, "qubittron": {"/v1"}, "mistral": {"/v1"},
		"azure-openai": {"/openai", "/openai/v1", "/openai/deployments/gpt"},
	}
	for name, list := range prefixes {
		p := catalog(t, name, spec.Spec{})
		for _, prefix := range list {
			for request, want := range openai {
				check(t, p, prefix, request, want)
			}
		}
		check(t, p, "/elsewhere", "POST /chat/completions", "")
	}

	for name, rows := range map[string]map[string]string{
		"anthropic": {
			"POST /v1/messages": "chat", "POST /v1/messages/count_tokens": "chat", "POST /v1/messages/batches": "batches", "GET /v1/messages/batches/b/results": "batches",
			"GET /v1/models": "models", "GET /v1/models/claude": "models", "POST /v1/models": "", "POST /v1/files": "files", "POST /v1/complete": "chat",
			"POST /v1/organizations/api_keys/k": "", "POST /messages": "",
		},
		"gemini": {
			"POST /v1beta/models/gemini-2.5-pro:generateContent": "chat", "POST /v1beta/models/gemini-2.5-pro:streamGenerateContent": "chat",
			"POST /v1/models/g:countTokens": "chat", "POST /v1beta/tunedModels/t:generateContent": "chat", "POST /v1beta/tunedModels": "fine_tuning",
			"POST /v1beta/models/e:embedContent": "embeddings", "POST /v1beta/models/e:batchEmbedContents": "embeddings", "POST /v1beta/models/imagen:predict": "images",
			"POST /v1beta/models/g:batchGenerateContent": "batches", "GET /v1beta/batches/b": "batches",
			"POST /upload/v1beta/files": "files", "GET /v1beta/files/f": "files", "GET /download/v1beta/files/f:download": "files",
			"GET /ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent": "realtime",
			"GET /v1beta/models": "models", "GET /v1beta/models/g": "models", "POST /v1alpha/auth_tokens": "",
			"POST /v1beta/openai/chat/completions": "chat", "POST /v1beta/models/g%3AgenerateContent": "",
		},
		"vertex": {
			"POST /v1/projects/p/locations/us-central1/publishers/google/models/gemini:generateContent":            "chat",
			"POST /v1/projects/p/locations/us-central1/publishers/anthropic/models/claude:streamRawPredict":        "chat",
			"POST /v1/projects/p/locations/us-central1/publishers/google/models/text-embedding-005:predict":        "embeddings",
			"POST /v1/projects/p/locations/us-central1/publishers/google/models/imagen-4.0-generate-001:predict":   "images",
			"POST /v1/projects/p/locations/us-central1/publishers/google/models/veo:predict":                       "",
			"POST /v1/projects/p/locations/us-central1/endpoints/openapi/chat/completions":                         "chat",
			"POST /v1/projects/p/locations/us-central1/customJobs":                                                 "",
			"POST /v1beta1/projects/p/locations/us-central1/publishers/google/models/gemini:streamGenerateContent": "chat",
		},
		"bedrock": {
			"POST /model/anthropic.claude/converse": "chat", "POST /model/anthropic.claude/converse-stream": "chat", "POST /model/anthropic.claude/invoke": "chat",
			"POST /model/arn%3Aaws%3Abedrock%3Aeu%3A1%3Ainference-profile%2Fx/converse": "chat",
			"POST /model/amazon.titan-embed-text-v2%3A0/invoke":                         "embeddings", "POST /model/stability.sd3/invoke": "images",
			"POST /guardrail/g/version/1/apply": "moderations", "POST /async-invoke": "batches", "GET /foundation-models": "models", "POST /model-customization-jobs": "",
		},
		"cohere": {
			"POST /v2/chat": "chat", "POST /v1/chat": "chat", "POST /v2/embed": "embeddings", "POST /v2/rerank": "rerank", "GET /v1/models": "models",
			"POST /v1/embed-jobs": "batches", "POST /v1/check-api-key": "", "POST /compatibility/v1/chat/completions": "chat",
		},
		"mistral":     {"POST /v1/chat/moderations": "moderations", "POST /v1/fim/completions": "chat", "POST /v1/batch/jobs": "batches"},
		"huggingface": {"POST /together/v1/chat/completions": "chat", "POST /hf-inference/models/a/b/pipeline/feature-extraction": "embeddings", "GET /api/models": ""},
		"deepseek":    {"GET /user/balance": "", "POST /anthropic/v1/messages": "chat", "POST /beta/completions": "chat"},
		"xai":         {"POST /v1/messages": "chat", "GET /v1/api-key": "", "GET /v1/language-models": "models"},
		"openrouter":  {"POST /api/v1/messages": "chat", "POST /api/v1/keys": "", "GET /api/v1/key": ""},
		"together":    {"POST /v1/rerank": "rerank", "POST /v1/fine-tunes": "fine_tuning"},
	} {
		p := catalog(t, name, spec.Spec{})
		for request, want := range rows {
			check(t, p, "", request, want)
		}
	}
}

func check(t *testing.T, p *Provider, prefix, request, want string) {
	t.Helper()
	var method, path string
	for i := range request {
		if request[i] == ' ' {
			method, path = request[:i], prefix+request[i+1:]
			break
		}
	}
	if got := p.Capability(method, path); got != want {
		t.Errorf("%s: %s %s is for %q, want %q", p.Name(), method, path, got, want)
	}
}

// Patterns begin where the base URL's path ends.
func TestCapabilityBelowTheBasePath(t *testing.T) {
	p := catalog(t, "openai", spec.Spec{BaseURL: "https://api.openai.com/corp"})
	check(t, p, "", "POST /corp/v1/chat/completions", "chat")
	check(t, p, "", "POST /v1/chat/completions", "")
	check(t, p, "", "POST /corporate/v1/chat/completions", "")
	check(t, p, "", "POST /corp", "")
}

// A provider described in full speaks OpenAI's API unless it says otherwise.
func TestCapabilityOfADescribedProvider(t *testing.T) {
	house := func(e spec.Spec) *Provider {
		e.Name, e.Hosts, e.Attach = "house", []string{"llm.corp.example"}, spec.Attach{Header: "X-Api-Key"}
		s, problems := spec.Resolve(e, "", nil)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		p, err := New(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := house(spec.Spec{})
	check(t, p, "", "POST /chat/completions", "chat")
	check(t, p, "", "POST /v1/embeddings", "embeddings")
	check(t, p, "", "POST /admin/models", "")
	p = house(spec.Spec{DefaultPrefix: "/api/v3"})
	check(t, p, "", "POST /api/v3/embeddings", "embeddings")
	check(t, p, "", "POST /v1/embeddings", "")
	p = house(spec.Spec{Capabilities: []spec.Capability{{Path: "/generate", Name: "chat", Methods: []string{"POST"}}}})
	check(t, p, "", "POST /a/generate", "chat")
	check(t, p, "", "GET /a/generate", "")
	check(t, p, "", "POST /v1/embeddings", "")
}
