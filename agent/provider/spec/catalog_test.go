package spec

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// params that the catalog's entries need.
var params = map[string]map[string]string{
	"azure-openai": {"resource": "acme"},
	"vertex":       {"region": "us-central1"},
	"bedrock":      {"region": "eu-west-1"},
}

func resolved(t *testing.T, name string) Spec {
	t.Helper()
	s, problems := Resolve(Spec{}, name, params[name])
	if len(problems) > 0 {
		t.Fatalf("%s: %v", name, problems)
	}
	return s
}

// Every catalog entry, as an agent uses it.
func TestCatalog(t *testing.T) {
	const key = "{api_key}"
	bearer := Attach{Header: "Authorization", Format: "Bearer {api_key}"}
	rows := []struct {
		name, hosts, prefix, probe, errors string
		attach                             Attach
		key                                string // a key of its form, "" if there is none
	}{
		{"openai", "api.openai.com", "/v1", "GET /v1/models", "openai", bearer, "sk-proj-" + strings.Repeat("aB3_", 12)},
		{"anthropic", "api.anthropic.com", "/v1", "GET /v1/models?limit=1", "anthropic", Attach{Header: "X-Api-Key", Format: key}, "sk-ant-api03-" + strings.Repeat("aB3-", 23)},
		{"azure-openai", "acme.openai.azure.com", "", "GET /openai/models?api-version=2024-10-21", "openai", Attach{Header: "Api-Key", Format: key}, ""},
		{"gemini", "generativelanguage.googleapis.com", "", "GET /v1beta/models?pageSize=1", "google", Attach{Header: "X-Goog-Api-Key", Format: key}, "AIza" + strings.Repeat("x", 35)},
		{"vertex", "us-central1-aiplatform.googleapis.com", "", "", "google", bearer, "ya29." + strings.Repeat("x", 40)},
		{"bedrock", "bedrock-runtime.eu-west-1.amazonaws.com bedrock.eu-west-1.amazonaws.com", "", "GET bedrock.eu-west-1.amazonaws.com/foundation-models", "aws", bearer, "ABSK" + strings.Repeat("Qm", 30)},
		{"cohere", "api.cohere.com", "", "POST /v1/check-api-key", "cohere", bearer, ""},
		{"mistral", "api.mistral.ai", "/v1", "GET /v1/models", "openai", bearer, ""},
		{"groq", "api.groq.com", "/openai/v1", "GET /openai/v1/models", "openai", bearer, "gsk_" + strings.Repeat("x", 48)},
		{"deepseek", "api.deepseek.com", "", "GET /user/balance", "openai", bearer, "sk-" + strings.Repeat("a1", 16)},
		{"xai", "api.x.ai", "/v1", "GET /v1/api-key", "openai", bearer, "xai-" + strings.Repeat("x", 80)},
		{"openrouter", "openrouter.ai", "/api/v1", "GET /api/v1/key", "openai", bearer, "sk-or-v1-" + strings.Repeat("a1", 32)},
		{"perplexity", "api.perplexity.ai", "", "", "openai", bearer, "pplx-" + strings.Repeat("x", 48)},
		{"huggingface", "router.huggingface.co huggingface.co", "", "GET huggingface.co/api/whoami-v2", "openai", bearer, "hf_" + strings.Repeat("x", 34)},
		{"together", "api.together.xyz api.together.ai", "/v1", "GET /v1/models", "openai", bearer, ""},
		{"fireworks", "api.fireworks.ai", "/inference/v1", "GET /inference/v1/models", "openai", bearer, ""},
		{"qubittron", "api.qubittron.ai", "/v1", "GET /v1/models", "openai", bearer, "qbt_" + strings.Repeat("x", 32)},
	}
	if got := len(Catalog()); got != len(rows) {
		t.Errorf("the catalog has %d entries, the table %d: add a row", got, len(rows))
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s := resolved(t, row.name)
			if s.Name != row.name || strings.Join(s.Hosts, " ") != row.hosts || s.DefaultPrefix != row.prefix || s.Errors != row.errors {
				t.Errorf("got name %q hosts %q prefix %q errors %q", s.Name, s.Hosts, s.DefaultPrefix, s.Errors)
			}
			if want := "https://" + s.Hosts[0]; s.BaseURL != want {
				t.Errorf("base URL %q, want %q: a client replaces scheme and host by the route", s.BaseURL, want)
			}
			if s.Attach != row.attach {
				t.Errorf("attach %+v, want %+v", s.Attach, row.attach)
			}
			if got := strings.TrimSpace(s.Probe.Method + " " + s.Probe.Host + s.Probe.Path); got != row.probe {
				t.Errorf("probe %q, want %q", got, row.probe)
			}
			if s.Probe.Path != "" && (!slices.Equal(s.Probe.Live, []int{200}) || !slices.Contains(s.Probe.Dead, 401) || s.Probe.Timeout != DefaultProbeTimeout) {
				t.Errorf("probe defaults: %+v", s.Probe)
			}
			if !slices.Contains(s.Dead, 401) {
				t.Errorf("dead %v lacks 401", s.Dead)
			}
			if len(s.Capabilities) == 0 {
				t.Error("no path has a capability")
			}
			for i, c := range s.Capabilities {
				if !strings.HasPrefix(c.Path, "^/") && !strings.HasPrefix(c.Path, ":") {
					t.Errorf("capabilities[%d] %q is not anchored: a path of another API could end like it", i, c.Path)
				}
			}
			if (row.key == "") != (s.KeyPattern == "") {
				t.Fatalf("key pattern %q, sample %q", s.KeyPattern, row.key)
			}
			if m := regexp.MustCompile(s.KeyPattern).FindString(row.key); m != row.key {
				t.Errorf("pattern %q finds %q in a key of its form", s.KeyPattern, m)
			}
			if !strings.HasPrefix(row.key, s.KeyPrefix) && row.key != "" {
				t.Errorf("prefix %q does not begin the sample", s.KeyPrefix)
			}
		})
	}
}

// The variables, as the SDKs read them, of a lone entry of each provider.
func TestCatalogSDKEnv(t *testing.T) {
	const route, ph = "{route}", "{placeholder}"
	rows := map[string]map[string]string{
		"openai":       {"OPENAI_BASE_URL": route + "/v1", "OPENAI_API_BASE": route + "/v1", "OPENAI_API_KEY": ph},
		"anthropic":    {"ANTHROPIC_BASE_URL": route, "ANTHROPIC_API_KEY": ph},
		"azure-openai": {"AZURE_OPENAI_ENDPOINT": route, "AZURE_OPENAI_API_KEY": ph},
		"gemini":       {"GOOGLE_GEMINI_BASE_URL": route, "GEMINI_API_KEY": ph},
		"vertex":       {"GOOGLE_VERTEX_BASE_URL": route},
		"bedrock":      {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": route, "AWS_BEARER_TOKEN_BEDROCK": ph},
		"cohere":       {"CO_API_URL": route, "CO_API_KEY": ph},
		"mistral":      {"MISTRAL_API_KEY": ph},
		"groq":         {"GROQ_BASE_URL": route, "GROQ_API_KEY": ph},
		"deepseek":     {"DEEPSEEK_API_KEY": ph},
		"xai":          {"XAI_API_KEY": ph},
		"openrouter":   {"OPENROUTER_API_KEY": ph},
		"perplexity":   {"PERPLEXITY_API_KEY": ph},
		"huggingface":  nil,
		"together":     {"TOGETHER_BASE_URL": route + "/v1", "TOGETHER_API_KEY": ph},
		"fireworks":    {"FIREWORKS_API_KEY": ph},
		"qubittron":    {"QUBITTRON_API_KEY": ph},
	}
	for _, s := range Catalog() {
		want, ok := rows[s.Name]
		if !ok {
			t.Errorf("%s: add a row", s.Name)
		}
		got := resolved(t, s.Name).SDKEnv
		if !maps.Equal(got.Vars, want) || got.Shared != nil {
			t.Errorf("%s sets %v (shared %v), want %v", s.Name, got.Vars, got.Shared, want)
		}
		for name, v := range got.Vars {
			if v == ph && !slices.Contains(got.Keys, name) {
				t.Errorf("%s: %s holds a key but is not in keys", s.Name, name)
			}
		}
		if len(got.Keys) == 0 && s.Name != "vertex" {
			t.Errorf("%s: no variable is known to hold its key", s.Name)
		}
	}
}

// `sdk_env: true` makes an OpenAI-compatible provider the owner of OpenAI's variables.
func TestSharedVariablesNeedAnOwner(t *testing.T) {
	yes, no := true, false
	for name, base := range map[string]string{
		"deepseek": "/v1", "xai": "/v1", "openrouter": "/api/v1", "perplexity": "", "fireworks": "/inference/v1",
		"qubittron": "/v1", "groq": "/openai/v1", "together": "/v1", "mistral": "/v1", "huggingface": "/v1",
	} {
		owner, problems := Resolve(Spec{SDKEnv: SDKEnv{Own: &yes}}, name, nil)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		env := owner.SDKEnv.Vars
		if env["OPENAI_BASE_URL"] != "{route}"+base || env["OPENAI_API_BASE"] != "{route}"+base || env["OPENAI_API_KEY"] != "{placeholder}" {
			t.Errorf("%s as owner sets %v", name, env)
		}
		for k, v := range resolved(t, name).SDKEnv.Vars {
			if env[k] != v {
				t.Errorf("%s as owner loses its own %s", name, k)
			}
		}
	}
	silent, problems := Resolve(Spec{SDKEnv: SDKEnv{Own: &no}}, "openai", nil)
	if len(problems) > 0 || len(silent.SDKEnv.Vars) > 0 || len(silent.SDKEnv.Keys) == 0 {
		t.Errorf("sdk_env: false must set nothing and still know the key variables: %+v %v", silent.SDKEnv, problems)
	}
}

func TestCatalogIsACopy(t *testing.T) {
	for _, s := range Catalog() {
		scribble(reflect.ValueOf(&s).Elem())
	}
	for _, s := range Catalog() {
		if strings.Contains(strings.Join(s.Hosts, " ")+s.Attach.Header, "scribble") || s.Dead != nil && s.Dead[0] == 999 {
			t.Fatalf("%s was changed through a copy", s.Name)
		}
		resolved(t, s.Name)
	}
	if _, ok := Lookup("nobody"); ok {
		t.Error("found an entry that is not there")
	}
	s, ok := Lookup("openai")
	if !ok || s.Name != "openai" {
		t.Error("openai is not there")
	}
}

// scribble overwrites every element of every slice and map below v.
func scribble(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			scribble(v.Field(i))
		}
	case reflect.Slice:
		for i := range v.Len() {
			scribble(v.Index(i))
		}
	case reflect.Map:
		if v.Len() > 0 {
			v.Clear()
		}
	case reflect.Pointer:
		if !v.IsNil() {
			scribble(v.Elem())
		}
	case reflect.String:
		v.SetString("scribble")
	case reflect.Int:
		v.SetInt(999)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	}
}

func TestParseCatalogIsStrict(t *testing.T) {
	for text, want := range map[string]string{
		"providers:\n- {name: a, host: x}\n":                            "host",
		"providers:\n- {name: a, sdk_env: {variables: {}}}\n":           "variables",
		"providers:\n- {name: a}\n- {name: a}\n":                        "twice",
		"providers:\n- {name: a, capabilities: [{path: /x, nam: y}]}\n": "nam",
	} {
		if _, err := parseCatalog([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error about %q", text, err, want)
		}
	}
}
