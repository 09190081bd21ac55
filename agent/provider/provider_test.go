package provider

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// params that the catalog's entries need.
var params = map[string]map[string]string{
	"azure-openai": {"resource": "acme"},
	"vertex":       {"region": "us-central1"},
	"bedrock":      {"region": "eu-west-1"},
}

// catalog makes the provider of a catalog entry, with what e changes.
func catalog(t testing.TB, name string, e spec.Spec) *Provider {
	t.Helper()
	with := params[name]
	if len(e.Hosts) > 0 {
		with = nil
	}
	s, problems := spec.Resolve(e, name, with)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewTakesTheWholeCatalog(t *testing.T) {
	for _, s := range spec.Catalog() {
		p := catalog(t, s.Name, spec.Spec{})
		if p.Name() != s.Name || p.Spec().Name != s.Name {
			t.Errorf("%s is called %s", s.Name, p.Name())
		}
		if len(p.Endpoints()) != len(s.Hosts) {
			t.Errorf("%s: endpoints %v", s.Name, p.Endpoints())
		}
		for _, e := range p.Endpoints() {
			if e.Plaintext || !p.Lists(e.Host, e.Port) || p.Lists(e.Host, "80") || p.Lists("evil.example", e.Port) || p.Lists("x."+e.Host, e.Port) {
				t.Errorf("%s: endpoint %+v", s.Name, e)
			}
		}
	}
}

func TestNewNamesEveryField(t *testing.T) {
	_, err := New(spec.Spec{Name: "x", Hosts: []string{"A"}, Errors: "nope"})
	for _, want := range []string{"provider x", "hosts[0]", "attach", "errors"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestEndpoints(t *testing.T) {
	p := catalog(t, "openai", spec.Spec{Hosts: []string{"127.0.0.1:9000", "[::1]:9000"}, BaseURL: "http://127.0.0.1:9000", AllowPlaintext: true})
	want := []Endpoint{{"127.0.0.1", "9000", true}, {"::1", "9000", false}}
	if got := p.Endpoints(); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	p = catalog(t, "openai", spec.Spec{Hosts: []string{"*.api.openai.com", "api.openai.com"}, BaseURL: "https://eu.api.openai.com"})
	if got := p.Endpoints(); len(got) != 1 || got[0].Host != "api.openai.com" {
		t.Errorf("a wildcard is no endpoint: %+v", got)
	}
	if !p.Lists("us.api.openai.com", "443") || p.Lists("a.b.api.openai.com", "443") {
		t.Error("the wildcard stands for exactly one label")
	}
	if _, host, _ := p.RouteURL("/v1/models"); host != "eu.api.openai.com" {
		t.Errorf("routes go to %s", host)
	}
}

func TestRouteURL(t *testing.T) {
	gateway := spec.Spec{BaseURL: "https://api.openai.com/corp/ai"}
	rows := []struct {
		name string
		e    spec.Spec
		rest string
		want string
	}{
		{"openai", spec.Spec{}, "/v1/chat/completions", "https://api.openai.com/v1/chat/completions"},
		{"openai", spec.Spec{}, "/chat/completions", "https://api.openai.com/v1/chat/completions"},
		{"openai", spec.Spec{}, "", "https://api.openai.com/v1/"},
		{"openai", spec.Spec{}, "/", "https://api.openai.com/v1/"},
		{"openai", spec.Spec{}, "/v1", "https://api.openai.com/v1"},
		{"openai", spec.Spec{}, "/v1x/y", "https://api.openai.com/v1/v1x/y"},
		{"openai", spec.Spec{}, "/v2/x", "https://api.openai.com/v2/x"},
		{"openai", spec.Spec{}, "/models/ft%3Agpt%2Fx", "https://api.openai.com/v1/models/ft%3Agpt%2Fx"},
		{"openai", gateway, "/chat/completions", "https://api.openai.com/corp/ai/v1/chat/completions"},
		{"openai", gateway, "/v1/chat", "https://api.openai.com/corp/ai/v1/chat"},
		{"openai", spec.Spec{Hosts: []string{"127.0.0.1:9000"}}, "/v1/x", "https://127.0.0.1:9000/v1/x"},
		{"openai", spec.Spec{Hosts: []string{"[::1]:9000"}}, "/v1/x", "https://[::1]:9000/v1/x"},
		// Two SDKs read one ANTHROPIC_BASE_URL differently; both arrive.
		{"anthropic", spec.Spec{}, "/v1/messages", "https://api.anthropic.com/v1/messages"},
		{"anthropic", spec.Spec{}, "/messages", "https://api.anthropic.com/v1/messages"},
		{"gemini", spec.Spec{}, "/v1beta/models/g:generateContent", "https://generativelanguage.googleapis.com/v1beta/models/g:generateContent"},
		{"gemini", spec.Spec{}, "/upload/v1beta/files", "https://generativelanguage.googleapis.com/upload/v1beta/files"},
		{"groq", spec.Spec{}, "/openai/v1/models", "https://api.groq.com/openai/v1/models"},
		{"groq", spec.Spec{}, "/models", "https://api.groq.com/openai/v1/models"},
		{"openrouter", spec.Spec{}, "/chat/completions", "https://openrouter.ai/api/v1/chat/completions"},
		{"openrouter", spec.Spec{}, "/api/v1/chat/completions", "https://openrouter.ai/api/v1/chat/completions"},
		{"openrouter", spec.Spec{}, "/api/alpha/x", "https://openrouter.ai/api/alpha/x"},
		{"fireworks", spec.Spec{}, "/inference/v1/models", "https://api.fireworks.ai/inference/v1/models"},
		{"azure-openai", spec.Spec{}, "/openai/deployments/x/chat/completions", "https://acme.openai.azure.com/openai/deployments/x/chat/completions"},
		{"bedrock", spec.Spec{}, "/model/arn%3Aaws%3Abedrock%3A%3A%3Ax%2Fy/converse", "https://bedrock-runtime.eu-west-1.amazonaws.com/model/arn%3Aaws%3Abedrock%3A%3A%3Ax%2Fy/converse"},
		{"deepseek", spec.Spec{}, "/chat/completions", "https://api.deepseek.com/chat/completions"},
	}
	for _, row := range rows {
		scheme, host, path := catalog(t, row.name, row.e).RouteURL(row.rest)
		if got := scheme + "://" + host + path; got != row.want {
			t.Errorf("%s%s leads to %s, want %s", row.name, row.rest, got, row.want)
		}
	}
}

var ambiguous = []string{
	"v1", "@evil.example/", "//evil.example/", "/a//b", "/..", "/../admin", "/v1/../../admin", "/.", "/v1/./x", "/%2e%2e/admin", "/.%2E/x",
	"/..%2fadmin", "/x%2f..%2fy", "/x%5c..%5cy", "/..\\x", "/a\\b", "/%252e%252e/x", "/x%252f..%252fy", "/..;/admin", "/..;x=1/admin", "/%2e%2e%3bx/y",
	"/a?b", "/a#b", "/a b", "/a\x00", "/a\r\nHost: x", "/ü", "/%", "/%zz", "/%2", "/a%2", "/v1/..",
}

func TestRouteURLRefusesWhatIsAmbiguous(t *testing.T) {
	for _, name := range []string{"openai", "bedrock"} {
		p := catalog(t, name, spec.Spec{})
		for _, rest := range ambiguous {
			if scheme, host, path := p.RouteURL(rest); scheme+host+path != "" {
				t.Errorf("%s: %q leads to %s://%s%s", name, rest, scheme, host, path)
			}
			if c := p.Capability("POST", rest); c != "" {
				t.Errorf("%s: %q is for %s", name, rest, c)
			}
		}
		for _, rest := range []string{"/...", "/.a", "/a..b", "/..a", "/v1/a%2Fb", "/x;y", "/%25", "/a%2525", "/v1/files/..x"} {
			if _, _, path := p.RouteURL(rest); path == "" {
				t.Errorf("%s: %q was refused", name, rest)
			}
		}
	}
}

func TestRoutePathIsRouteURLBackwards(t *testing.T) {
	gateway := catalog(t, "openai", spec.Spec{BaseURL: "https://api.openai.com/corp/ai"})
	for in, want := range map[string]string{
		"/corp/ai/v1/files/1": "/v1/files/1", "/corp/ai": "", "/corp/ai?x=1": "?x=1", "/corp/ai/#f": "/#f", "/corp/airy": "/corp/airy", "/other": "/other",
	} {
		if got := gateway.RoutePath(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for _, s := range spec.Catalog() {
		p := catalog(t, s.Name, spec.Spec{})
		_, _, path := p.RouteURL("/v1/files/1")
		if _, _, again := p.RouteURL(p.RoutePath(path)); again != path {
			t.Errorf("%s: %q became %q", s.Name, path, again)
		}
	}
}

func TestIsVersion(t *testing.T) {
	for seg, want := range map[string]bool{
		"v1": true, "v2": true, "v10": true, "v1beta": true, "v1alpha": true, "v1beta1": true, "v1p1beta1": true, "v2alpha12": true,
		"": false, "v": false, "1": false, "V1": false, "v1x": false, "vbeta": false, "v1.0": false, "v1beta1x": false, "v1p": false, "v1234": false, "version": false, "v1rc1": false,
	} {
		if got := isVersion(seg); got != want {
			t.Errorf("%q: %v", seg, got)
		}
	}
}

func TestDataPathAllocations(t *testing.T) {
	p := catalog(t, "openai", spec.Spec{})
	for what, f := range map[string]func(){
		"RouteURL":   func() { p.RouteURL("/v1/chat/completions") },
		"Lists":      func() { p.Lists("api.openai.com", "443") },
		"Capability": func() { p.Capability("POST", "/v1/chat/completions") },
		"DeadStatus": func() { p.DeadStatus(401) },
		"AuthQuery":  func() { p.AuthQuery() },
	} {
		if n := testing.AllocsPerRun(100, f); n > 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
}

func TestDeadStatus(t *testing.T) {
	if p := catalog(t, "openai", spec.Spec{}); !p.DeadStatus(401) || p.DeadStatus(403) || p.DeadStatus(400) {
		t.Error("openai: only 401 is dead")
	}
	if p := catalog(t, "xai", spec.Spec{}); !p.DeadStatus(401) || !p.DeadStatus(400) {
		t.Error("xai: an unknown key is a 400")
	}
}

// No path leaves the base path or changes the host, read by this package, by
// net/url, or by a server that decodes and cleans.
func FuzzRouteURL(f *testing.F) {
	for _, s := range append([]string{"/v1/chat", "/chat", "/", "", "/v1/a%2Fb", "/%2525"}, ambiguous...) {
		f.Add(s)
	}
	gateway := catalog(f, "openai", spec.Spec{BaseURL: "https://api.openai.com/corp/ai"})
	plain := catalog(f, "openai", spec.Spec{DefaultPrefix: "/v1"})
	f.Fuzz(func(t *testing.T, rest string) {
		for _, p := range []*Provider{gateway, plain} {
			scheme, host, path := p.RouteURL(rest)
			if path == "" {
				if scheme+host != "" {
					t.Fatalf("%q: half an answer", rest)
				}
				continue
			}
			u, err := url.Parse(scheme + "://" + host + path)
			if err != nil {
				t.Fatalf("%q: %v", rest, err)
			}
			if u.Scheme != "https" || u.Host != "api.openai.com" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.EscapedPath() != path && u.RawPath == "" && u.Path != path {
				t.Fatalf("%q became %q", rest, u)
			}
			if !strings.HasSuffix(path, rest) {
				t.Fatalf("%q was changed to %q", rest, path)
			}
			plain := path
			for range 4 { // a server that decodes, even more than once, and cleans
				next, err := url.PathUnescape(plain)
				if err != nil {
					break
				}
				plain = next
				clean := (&url.URL{Path: strings.ReplaceAll(plain, "\\", "/")}).JoinPath().Path
				if !strings.HasPrefix(clean+"/", p.base+"/") {
					t.Fatalf("%q climbs to %q", rest, clean)
				}
			}
			if got := p.RoutePath(path); p.base != "" && !strings.HasSuffix(got, rest) {
				t.Fatalf("%q: the way back is %q", rest, got)
			}
		}
	})
}
