package clientenv

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/secret"
)

var update = flag.Bool("update", false, "write the expected answers in testdata")

// entry is a resolved provider: "name", or "name=catalog", with parameters.
func entry(t *testing.T, name string, own *bool, with ...string) Provider {
	t.Helper()
	name, base, _ := strings.Cut(name, "=")
	params := map[string]string{}
	for i := 0; i < len(with); i += 2 {
		params[with[i]] = with[i+1]
	}
	s, problems := spec.Resolve(spec.Spec{Name: name, SDKEnv: spec.SDKEnv{Own: own}}, base, params)
	if len(problems) > 0 {
		t.Fatalf("%s: %v", name, problems)
	}
	return Provider{Name: name, Spec: s}
}

func entries(t *testing.T, names ...string) []Provider {
	t.Helper()
	var out []Provider
	for _, n := range names {
		out = append(out, entry(t, n, nil))
	}
	return out
}

var yes, no = true, false

func holding(pairs ...string) func(string) (string, bool) {
	vars := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		vars[pairs[i]] = pairs[i+1]
	}
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

// realKeys stand in the environments of the cases, and may stand nowhere in the answers.
const (
	realOpenAI = "sk-proj-0f1e2d3c4b5a69788796a5b4c3d2e1f0"
	realGoogle = "AIzaSyA0123456789abcdefghijklmnopqrstuv"
	password   = "hunter2"
)

func cases(t *testing.T) map[string]Input {
	all := append(entries(t, "openai", "anthropic", "gemini", "groq", "together", "mistral", "cohere"),
		entry(t, "azure=azure-openai", nil, "resource", "acme"), entry(t, "bedrock", nil, "region", "eu-central-1"))
	const proxy, ca, bundle = "http://127.0.0.1:8700", "/run/postern/ca.pem", "/run/postern/bundle.pem"
	return map[string]Input{
		"routes":  {Proxy: proxy, Providers: all},
		"forward": {Mode: Forward, Proxy: proxy, Providers: entries(t, "openai", "anthropic", "mistral"), CAFile: ca, BundleFile: bundle, VaultHost: "vault.example"},
		"both":    {Mode: Both, Proxy: proxy + "/", Providers: entries(t, "openai", "gemini"), CAFile: ca, BundleFile: bundle, NoProxy: []string{"10.0.0.0/8", "registry.example"}},
		"routes-in-use": {Proxy: proxy, Providers: entries(t, "openai", "anthropic", "gemini", "huggingface"), Existing: holding(
			"OPENAI_API_KEY", realOpenAI, "OPENAI_BASE_URL", "https://user:"+password+"@gateway.example:8443/"+realOpenAI+"?k="+password,
			"OPENAI_API_BASE", "http://127.0.0.1:8700/openai/v1", "OPENAI_ADMIN_KEY", "", "ANTHROPIC_AUTH_TOKEN", realOpenAI,
			"ANTHROPIC_API_KEY", Placeholder, "GOOGLE_API_KEY", realGoogle, "GOOGLE_GEMINI_BASE_URL", "::not a url::", "HF_TOKEN", realOpenAI,
			"HTTPS_PROXY", "http://u:"+password+"@corp.example:3128", "no_proxy", "corp.example, localhost")},
		"forward-in-use": {Mode: Forward, Proxy: proxy, Providers: entries(t, "openai", "anthropic", "gemini"), CAFile: ca, BundleFile: bundle, Existing: holding(
			"OPENAI_API_KEY", realOpenAI, "OPENAI_BASE_URL", "https://user:"+password+"@gateway.example/v1", "ANTHROPIC_BASE_URL", "https://api.anthropic.com",
			"HTTP_PROXY", "http://u:"+password+"@corp.example:3128", "https_proxy", "http://u:"+password+"@corp.example:3128", "http_proxy", proxy,
			"NO_PROXY", "*,api.openai.com,.googleapis.com,intranet.example,Anthropic.com:443,10.1.0.0/16",
			"SSL_CERT_FILE", "/etc/corp.pem", "NODE_EXTRA_CA_CERTS", "/etc/corp.pem", "CURL_CA_BUNDLE", bundle, "NODE_USE_ENV_PROXY", "0")},
		"shared":            {Proxy: proxy, Providers: append(entries(t, "openai", "openai-eu=openai"), entry(t, "deepseek", nil))},
		"shared-owned":      {Proxy: proxy, Providers: append(entries(t, "openai", "openai-eu=openai"), entry(t, "deepseek", &yes))},
		"shared-first":      {Proxy: proxy, Providers: entries(t, "openai-us=openai", "openai-eu=openai")},
		"shared-later":      {Proxy: proxy, Providers: entries(t, "openai-eu=openai", "openai")},
		"kept-out":          {Proxy: proxy, Providers: []Provider{entry(t, "openai", &no)}, Existing: holding("OPENAI_API_KEY", realOpenAI, "OPENAI_BASE_URL", "https://gateway.example")},
		"socket":            {Mode: Both, Proxy: "unix:///run/postern.sock", Providers: entries(t, "openai")},
		"nothing":           {Proxy: proxy},
		"google-both":       {Proxy: proxy, Providers: entries(t, "gemini"), Existing: holding("GOOGLE_API_KEY", realGoogle, "GEMINI_API_KEY", realGoogle)},
		"forward-own-route": {Mode: Forward, Proxy: proxy, Providers: entries(t, "openai"), Existing: holding("OPENAI_BASE_URL", "http://127.0.0.1:8700/openai/v1")},
		"setting": {Proxy: proxy, Providers: []Provider{{Name: "house", Spec: spec.Spec{SDKEnv: spec.SDKEnv{
			Vars: map[string]string{"HOUSE_URL": "{route}/v2?key={placeholder}", "HOUSE_VERSION": "3", "HOUSE_REGION": "eu"}, Keys: []string{"HOUSE_KEY"}}}}},
			Existing: holding("HOUSE_REGION", "us", "HOUSE_KEY", "k")},
	}
}

func TestVars(t *testing.T) {
	for name, in := range cases(t) {
		t.Run(name, func(t *testing.T) {
			set, notes := Vars(in)
			got := render(set, notes)
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			for _, secret := range []string{realOpenAI, realGoogle, password} {
				if strings.Contains(got, secret) {
					t.Errorf("the answer holds %s", secret)
				}
			}
		})
	}
}

func TestEveryCaseIsUsed(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	known := cases(t)
	for _, f := range files {
		if _, ok := known[strings.TrimSuffix(filepath.Base(f), ".txt")]; !ok {
			t.Errorf("%s belongs to no case", f)
		}
	}
}

func render(set []Var, notes []Note) string {
	var b strings.Builder
	for _, v := range set {
		how := "set     "
		if v.Replaces {
			how = "replace "
		}
		fmt.Fprintf(&b, "%s%s=%s\n        %s: %s\n", how, v.Name, v.Value, []string{"setting", "base URL", "key", "proxy", "trust"}[v.Kind], v.Why)
	}
	b.WriteString("\n" + Summary(set, notes) + "\n")
	return b.String()
}

// What a child's environment is set to twice is what it was set to once.
func TestVarsAreStable(t *testing.T) {
	for name, in := range cases(t) {
		first, _ := Vars(in)
		env, before := map[string]string{}, in.Existing
		for _, v := range first {
			if _, twice := env[v.Name]; twice {
				t.Errorf("%s: %s is set twice", name, v.Name)
			}
			env[v.Name] = v.Value
		}
		in.Existing = func(n string) (string, bool) {
			if v, ok := env[n]; ok || before == nil {
				return v, ok
			}
			return before(n)
		}
		again, _ := Vars(in)
		for _, v := range again {
			i := slices.IndexFunc(first, func(f Var) bool { return f.Name == v.Name })
			if v.Replaces || i < 0 || first[i].Value != v.Value {
				t.Errorf("%s: a second time %s becomes %q", name, v.Name, v.Value)
			}
		}
	}
}

// Every variable of the catalog that can hold a key is replaced where it does.
func TestEveryKeyVariableIsReplaced(t *testing.T) {
	for _, s := range spec.Catalog() {
		with := []string{}
		for _, p := range s.Params() {
			with = append(with, p, "x")
		}
		for _, mode := range []Mode{Routes, Forward, Both} {
			for _, own := range []*bool{nil, &yes, &no} {
				p := entry(t, s.Name, own, with...)
				set, _ := Vars(Input{Mode: mode, Proxy: "http://127.0.0.1:1", Providers: []Provider{p}, Existing: func(string) (string, bool) { return realOpenAI, true }})
				values := map[string]string{}
				for _, v := range set {
					values[v.Name] = v.Value
				}
				for _, k := range p.Spec.SDKEnv.Keys {
					if values[k] != Placeholder {
						t.Errorf("%s, %s: %s is %q", s.Name, mode, k, values[k])
					}
				}
			}
		}
	}
}

func TestModes(t *testing.T) {
	for _, m := range []Mode{Routes, Forward, Both} {
		got, err := ParseMode(m.String())
		if err != nil || got != m {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if m, err := ParseMode(""); err != nil || m != Routes {
		t.Errorf("empty: %v, %v", m, err)
	}
	if _, err := ParseMode("sideways"); err == nil || !strings.Contains(err.Error(), "routes, forward, both") {
		t.Errorf("sideways: %v", err)
	}
	if Mode(9).String() != "mode(9)" {
		t.Error(Mode(9))
	}
}

func TestPlaceholderIsTheAgents(t *testing.T) {
	if Placeholder != secret.Placeholder {
		t.Errorf("%s here, %s there", Placeholder, secret.Placeholder)
	}
}

// NO_PROXY has one value in both spellings, in every mode that sets it.
func TestNoProxyInBothSpellings(t *testing.T) {
	for name, in := range cases(t) {
		set, _ := Vars(in)
		values := map[string]string{}
		for _, v := range set {
			values[v.Name] = v.Value
		}
		for _, n := range slices.Sorted(maps.Keys(values)) {
			if strings.HasSuffix(strings.ToUpper(n), "_PROXY") && n != "NODE_USE_ENV_PROXY" && (values[strings.ToLower(n)] != values[n] || values[strings.ToUpper(n)] != values[n]) {
				t.Errorf("%s: %s differs between its spellings", name, n)
			}
		}
	}
}
