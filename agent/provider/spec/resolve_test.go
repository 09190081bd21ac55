package spec

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// house is a provider that the catalog does not know, described in full.
func house() Spec {
	return Spec{
		Name:    "house-llm",
		Hosts:   []string{"llm.corp.example:8443"},
		BaseURL: "https://llm.corp.example:8443",
		Attach:  Attach{Header: "X-Api-Key", Format: "{api_key}"},
		Probe:   Probe{Path: "/health"},
		CAFile:  "/etc/postern/corp-ca.pem",
	}
}

func TestResolveDescribedInFull(t *testing.T) {
	s, problems := Resolve(house(), "", nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if s.Errors != "problem" || !slices.Equal(s.Dead, []int{401}) || s.Probe.Method != "GET" || s.Probe.Timeout != 5*time.Second {
		t.Errorf("defaults: %+v", s)
	}
	if len(s.Capabilities) == 0 || s.Capabilities[0].Path != "^/chat/completions/**" {
		t.Errorf("capabilities: %+v", s.Capabilities)
	}
}

func TestResolveOverlay(t *testing.T) {
	resolve := func(e Spec, base string, with map[string]string) Spec {
		t.Helper()
		s, problems := Resolve(e, base, with)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return s
	}
	t.Run("a name of its own", func(t *testing.T) {
		s := resolve(Spec{Name: "azure"}, "azure-openai", map[string]string{"resource": "acme"})
		if s.Name != "azure" || s.Hosts[0] != "acme.openai.azure.com" || s.Attach.Header != "Api-Key" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("other hosts bring their own base URL", func(t *testing.T) {
		s := resolve(Spec{Hosts: []string{"127.0.0.1:9000"}}, "openai", nil)
		if s.BaseURL != "https://127.0.0.1:9000" || s.DefaultPrefix != "/v1" || s.Probe.Path != "/v1/models" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("exact hosts need no parameter", func(t *testing.T) {
		s := resolve(Spec{Hosts: []string{"acme.services.ai.azure.com"}}, "azure-openai", nil)
		if s.BaseURL != "https://acme.services.ai.azure.com" {
			t.Error(s.BaseURL)
		}
	})
	t.Run("other hosts drop a probe that asks a host of its own", func(t *testing.T) {
		s := resolve(Spec{Hosts: []string{"bedrock.internal.example"}}, "bedrock", nil)
		if s.Probe.Path != "" || s.Probe.Host != "" {
			t.Errorf("%+v", s.Probe)
		}
	})
	t.Run("plaintext to loopback", func(t *testing.T) {
		s := resolve(Spec{Hosts: []string{"127.0.0.1:9000"}, BaseURL: "http://127.0.0.1:9000/", AllowPlaintext: true}, "openai", nil)
		if s.BaseURL != "http://127.0.0.1:9000" {
			t.Error(s.BaseURL)
		}
		s = resolve(Spec{Hosts: []string{"[::1]:80"}, BaseURL: "http://[::1]:80/x", AllowPlaintext: true}, "openai", nil)
		if s.BaseURL != "http://[::1]/x" {
			t.Error(s.BaseURL)
		}
	})
	t.Run("a wildcard of the catalog", func(t *testing.T) {
		s := resolve(Spec{Hosts: []string{"*.api.openai.com"}, BaseURL: "https://eu.api.openai.com:443"}, "openai", nil)
		if s.BaseURL != "https://eu.api.openai.com" {
			t.Error(s.BaseURL)
		}
		if problems := Check(s); len(problems) > 0 {
			t.Error(problems)
		}
	})
	t.Run("fields replace", func(t *testing.T) {
		yes := true
		s := resolve(Spec{
			Attach: Attach{Query: "token"}, Also: []Attach{{Header: "x-team", Format: "{team}"}}, Dead: []int{403},
			Errors: "problem", KeyPattern: "gw-[0-9a-f]{32}", KeyPrefix: "gw-", DefaultPrefix: "/v2/", Echoes: true, CAFile: "ca.pem",
			Strip:        Strip{Headers: []string{"x-old"}, Query: []string{"old"}},
			Capabilities: []Capability{{Path: "/x", Name: "chat"}},
			SDKEnv:       SDKEnv{Own: &yes, Vars: map[string]string{"A": "{route}"}, Keys: []string{"B"}},
		}, "openai", nil)
		if s.Attach != (Attach{Query: "token", Format: "{api_key}"}) || len(s.Also) != 1 || s.Also[0].Header != "X-Team" ||
			!slices.Equal(s.Dead, []int{403}) || s.Errors != "problem" || s.KeyPrefix != "gw-" || s.DefaultPrefix != "/v2" ||
			!s.Echoes || s.CAFile != "ca.pem" || len(s.Capabilities) != 1 || s.Strip.Headers[0] != "X-Old" ||
			len(s.SDKEnv.Vars) != 1 || s.SDKEnv.Keys[0] != "B" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("a probe without a path changes the catalog's, one with a path replaces it", func(t *testing.T) {
		s := resolve(Spec{Probe: Probe{Timeout: time.Second, Dead: []int{401, 402}, Headers: map[string]string{"x-a": "b"}}}, "cohere", nil)
		if s.Probe.Path != "/v1/check-api-key" || s.Probe.Method != "POST" || s.Probe.Timeout != time.Second || len(s.Probe.Dead) != 2 || s.Probe.Headers["x-a"] != "b" {
			t.Errorf("%+v", s.Probe)
		}
		s = resolve(Spec{Probe: Probe{Path: "/v1/models"}}, "cohere", nil)
		if s.Probe.Method != "GET" || s.Probe.DeadBody != "" {
			t.Errorf("%+v", s.Probe)
		}
	})
	t.Run("basic", func(t *testing.T) {
		e := house()
		e.Attach = Attach{Basic: &Basic{Username: "api"}}
		s := resolve(e, "", nil)
		if s.Attach.Basic.Password != "{api_key}" || e.Attach.Basic.Password != "" {
			t.Errorf("%+v, entry %+v", s.Attach.Basic, e.Attach.Basic)
		}
	})
}

func TestResolveIsStableAndLeavesItsArgumentAlone(t *testing.T) {
	for _, cat := range Catalog() {
		first := resolved(t, cat.Name)
		before := first.Clone()
		again, problems := Resolve(first, cat.Name, nil)
		if len(problems) > 0 {
			t.Errorf("%s: %v", cat.Name, problems)
		}
		if !reflect.DeepEqual(first, again) {
			t.Errorf("%s changed when resolved again:\n%+v\n%+v", cat.Name, first, again)
		}
		if !reflect.DeepEqual(first, before) {
			t.Errorf("%s: Resolve changed its argument", cat.Name)
		}
		if problems := Check(first); len(problems) > 0 {
			t.Errorf("%s: Check: %v", cat.Name, problems)
		}
	}
}

func TestResolveProblems(t *testing.T) {
	long := strings.Repeat("x", 64<<10+1)
	rows := []struct {
		what   string
		base   string
		with   map[string]string
		change func(*Spec) // of house(); nil: an empty entry
		field  string
		says   string
	}{
		{"unknown catalog entry", "opnai", nil, func(s *Spec) {}, "provider", "openrouter"},
		{"typo in a name that should be in the catalog", "", nil, func(s *Spec) { *s = Spec{Name: "opnai"} }, "hosts", "openrouter"},
		{"missing parameter", "azure-openai", nil, nil, "with.resource", "with: {resource:"},
		{"dots in a parameter", "azure-openai", map[string]string{"resource": "evil.example/"}, nil, "with.resource", "one part"},
		{"upper case in a parameter", "azure-openai", map[string]string{"resource": "Acme"}, nil, "with.resource", "a-z"},
		{"empty parameter", "azure-openai", map[string]string{"resource": ""}, nil, "with.resource", "one part"},
		{"long parameter", "azure-openai", map[string]string{"resource": strings.Repeat("a", 64)}, nil, "with.resource", "63"},
		{"parameter that ends a label badly", "azure-openai", map[string]string{"resource": "a-"}, nil, "hosts[0]", "part"},
		{"unknown parameter", "openai", map[string]string{"region": "eu"}, nil, "with.region", "leave it out"},
		{"no name", "", nil, func(s *Spec) { s.Name = "" }, "name", "a-z"},
		{"name with a slash", "", nil, func(s *Spec) { s.Name = "a/b" }, "name", "a-z"},
		{"upper-case host", "", nil, func(s *Spec) { s.Hosts[0] = "LLM.corp.example:8443" }, "hosts[0]", "upper"},
		{"decimal address", "", nil, func(s *Spec) { s.Hosts = append(s.Hosts, "2130706433") }, "hosts[1]", "IPv4"},
		{"host twice", "", nil, func(s *Spec) { s.Hosts = append(s.Hosts, s.Hosts[0]) }, "hosts[1]", "twice"},
		{"wildcard of customers' labels", "azure-openai", nil, func(s *Spec) { *s = Spec{Hosts: []string{"*.openai.azure.com"}, BaseURL: "https://a.openai.azure.com"} }, "hosts[0]", "exact"},
		{"wildcard of another provider", "openai", nil, func(s *Spec) { *s = Spec{Hosts: []string{"*.evil.example"}, BaseURL: "https://a.evil.example"} }, "hosts[0]", "*.api.openai.com"},
		{"wildcard of one's own", "", nil, func(s *Spec) { s.Hosts = append(s.Hosts, "*.corp.example") }, "hosts[1]", "exact"},
		{"base URL elsewhere", "openai", nil, func(s *Spec) { *s = Spec{BaseURL: "https://api.openai.com.evil.example"} }, "base_url", "hosts"},
		{"base URL on another port", "", nil, func(s *Spec) { s.BaseURL = "https://llm.corp.example" }, "base_url", "add llm.corp.example"},
		{"base URL without TLS", "", nil, func(s *Spec) { s.BaseURL = "http://llm.corp.example:8443" }, "base_url", "https"},
		{"plaintext beyond loopback", "", nil, func(s *Spec) { s.BaseURL = "http://llm.corp.example:8443"; s.AllowPlaintext = true }, "base_url", "loopback"},
		{"plaintext to a name", "", nil, func(s *Spec) {
			s.Hosts, s.BaseURL, s.AllowPlaintext = []string{"localhost:80"}, "http://localhost", true
		}, "base_url", "127.0.0.1"},
		{"plaintext to loopback not allowed", "", nil, func(s *Spec) { s.Hosts, s.BaseURL = []string{"127.0.0.1:80"}, "http://127.0.0.1" }, "base_url", "allow_plaintext"},
		{"base URL with a user", "", nil, func(s *Spec) { s.BaseURL = "https://u@llm.corp.example:8443" }, "base_url", "user"},
		{"base URL with a query", "", nil, func(s *Spec) { s.BaseURL += "/?key=x" }, "base_url", "query"},
		{"base URL with dots", "", nil, func(s *Spec) { s.BaseURL += "/a/../b" }, "base_url", "dot"},
		{"base URL with an escape", "", nil, func(s *Spec) { s.BaseURL += "/a%2fb" }, "base_url", "escaped"},
		{"base URL of another kind", "", nil, func(s *Spec) { s.BaseURL = "ftp://llm.corp.example:8443" }, "base_url", "https"},
		{"base URL without //", "", nil, func(s *Spec) { s.BaseURL = "https:llm.corp.example" }, "base_url", "https"},
		{"base URL with a bad host", "", nil, func(s *Spec) { s.BaseURL = "https://LLM.corp.example:8443" }, "base_url", "upper"},
		{"base URL with a wildcard", "openai", nil, func(s *Spec) { *s = Spec{Hosts: []string{"*.api.openai.com"}, BaseURL: "https://*.api.openai.com"} }, "base_url", "exact"},
		{"only a wildcard", "openai", nil, func(s *Spec) { *s = Spec{Hosts: []string{"*.api.openai.com"}} }, "base_url", "wildcard"},
		{"prefix without a slash", "", nil, func(s *Spec) { s.DefaultPrefix = "v1" }, "default_prefix", "/v1"},
		{"prefix with dots", "", nil, func(s *Spec) { s.DefaultPrefix = "/.." }, "default_prefix", "dot"},
		{"nothing to attach", "", nil, func(s *Spec) { s.Attach = Attach{} }, "attach", "header"},
		{"two ways to attach", "", nil, func(s *Spec) { s.Attach.Query = "key" }, "attach", "exactly one"},
		{"attach passes", "", nil, func(s *Spec) { s.Attach.Pass = true }, "attach.pass", "also"},
		{"no header name", "", nil, func(s *Spec) { s.Attach.Header = "X Api" }, "attach.header", "header name"},
		{"header with a colon", "", nil, func(s *Spec) { s.Attach.Header = "X:" }, "attach.header", "header name"},
		{"hop-by-hop", "", nil, func(s *Spec) { s.Attach.Header = "connection" }, "attach.header", "Connection"},
		{"framing", "", nil, func(s *Spec) { s.Attach.Header = "Content-Length" }, "attach.header", "Content-Length"},
		{"transfer encoding", "", nil, func(s *Spec) { s.Attach.Header = "transfer-encoding" }, "attach.header", "another"},
		{"host", "", nil, func(s *Spec) { s.Attach.Header = "Host" }, "attach.header", "another"},
		{"trailer", "", nil, func(s *Spec) { s.Attach.Header = "Trailer" }, "attach.header", "another"},
		{"upgrade", "", nil, func(s *Spec) { s.Attach.Header = "Upgrade" }, "attach.header", "another"},
		{"proxy header", "", nil, func(s *Spec) { s.Attach.Header = "Proxy-Authorization" }, "attach.header", "another"},
		{"content type", "", nil, func(s *Spec) { s.Attach.Header = "Content-Type" }, "attach.header", "another"},
		{"format without a field", "", nil, func(s *Spec) { s.Attach.Format = "Bearer api_key" }, "attach.format", "braces"},
		{"format unclosed", "", nil, func(s *Spec) { s.Attach.Format = "Bearer {api_key" }, "attach.format", "}"},
		{"format unopened", "", nil, func(s *Spec) { s.Attach.Format = "Bearer api_key}" }, "attach.format", "{"},
		{"format with a strange field", "", nil, func(s *Spec) { s.Attach.Format = "{api key}" }, "attach.format", "{api_key}"},
		{"format with nested braces", "", nil, func(s *Spec) { s.Attach.Format = "{{api_key}}" }, "attach.format", "name"},
		{"format with a line break", "", nil, func(s *Spec) { s.Attach.Format = "a\r\nb: {api_key}" }, "attach.format", "ASCII"},
		{"format with a space at its end", "", nil, func(s *Spec) { s.Attach.Format = "{api_key} " }, "attach.format", "space"},
		{"basic with a format", "", nil, func(s *Spec) { s.Attach = Attach{Basic: &Basic{}, Format: "x"} }, "attach.format", "basic"},
		{"basic with a colon", "", nil, func(s *Spec) { s.Attach = Attach{Basic: &Basic{Username: "a:b"}} }, "attach.basic.username", "colon"},
		{"basic without a field", "", nil, func(s *Spec) { s.Attach = Attach{Basic: &Basic{Username: "a", Password: "b"}} }, "attach.basic", "{api_key}"},
		{"query with a space", "", nil, func(s *Spec) { s.Attach = Attach{Query: "a b"} }, "attach.query", "parameter"},
		{"also with nothing", "", nil, func(s *Spec) { s.Also = []Attach{{}} }, "also[0]", "exactly one"},
		{"also on the key's header", "", nil, func(s *Spec) { s.Also = []Attach{{Header: "x-api-key", Format: "{x}"}} }, "also[0]", "already"},
		{"also on basic's header", "", nil, func(s *Spec) {
			s.Attach = Attach{Basic: &Basic{}}
			s.Also = []Attach{{Header: "Authorization", Format: "{x}"}}
		}, "also[0]", "already"},
		{"also twice", "", nil, func(s *Spec) { s.Also = []Attach{{Header: "A", Format: "{x}"}, {Header: "a", Format: "{y}"}} }, "also[1]", "already"},
		{"also hop-by-hop", "", nil, func(s *Spec) { s.Also = []Attach{{Header: "te", Format: "{x}"}} }, "also[0].header", "another"},
		{"strip nothing", "", nil, func(s *Spec) { s.Strip = Strip{Headers: []string{""}} }, "strip.headers[0]", "header name"},
		{"strip an empty parameter", "", nil, func(s *Spec) { s.Strip = Strip{Query: []string{""}} }, "strip.query[0]", "empty"},
		{"probe without a path", "", nil, func(s *Spec) { s.Probe = Probe{Live: []int{200}} }, "probe.path", "path"},
		{"probe path without a slash", "", nil, func(s *Spec) { s.Probe.Path = "health" }, "probe.path", "/"},
		{"probe elsewhere by its path", "", nil, func(s *Spec) { s.Probe.Path = "//evil.example/" }, "probe.path", "empty"},
		{"probe path with a fragment", "", nil, func(s *Spec) { s.Probe.Path = "/h?a#b" }, "probe.path", "escaped"},
		{"probe method", "", nil, func(s *Spec) { s.Probe.Method = "TRACE" }, "probe.method", "GET"},
		{"probe host not listed", "", nil, func(s *Spec) { s.Probe.Host = "evil.example" }, "probe.host", "hosts"},
		{"probe host malformed", "", nil, func(s *Spec) { s.Probe.Host = "a@b" }, "probe.host", "@"},
		{"probe header", "", nil, func(s *Spec) { s.Probe.Headers = map[string]string{"Host": "x"} }, "probe.headers.Host", "another"},
		{"probe header is the key's", "", nil, func(s *Spec) { s.Probe.Headers = map[string]string{"x-api-key": "x"} }, "probe.headers.x-api-key", "attach"},
		{"probe header value", "", nil, func(s *Spec) { s.Probe.Headers = map[string]string{"a": "b\r\nc"} }, "probe.headers.a", "ASCII"},
		{"probe body", "", nil, func(s *Spec) { s.Probe.Body = long }, "probe.body", "64 KiB"},
		{"probe status", "", nil, func(s *Spec) { s.Probe.Live = []int{99} }, "probe.live[0]", "100"},
		{"probe dead status", "", nil, func(s *Spec) { s.Probe.Dead = []int{401, 600} }, "probe.dead[1]", "599"},
		{"probe status both ways", "", nil, func(s *Spec) { s.Probe.Live, s.Probe.Dead = []int{200, 401}, []int{401} }, "probe.dead[0]", "too"},
		{"probe timeout negative", "", nil, func(s *Spec) { s.Probe.Timeout = -1 }, "probe.timeout", "100ms"},
		{"probe timeout long", "", nil, func(s *Spec) { s.Probe.Timeout = time.Hour }, "probe.timeout", "1m"},
		{"probe dead_text", "", nil, func(s *Spec) { s.Probe.DeadText = []string{""} }, "probe.dead_text[0]", "short"},
		{"probe dead_if", "", nil, func(s *Spec) { s.Probe.DeadIf = []string{""} }, "probe.dead_if[0]", "empty"},
		{"dead that is none", "", nil, func(s *Spec) { s.Dead = []int{200} }, "dead[0]", "400"},
		{"pattern", "", nil, func(s *Spec) { s.Capabilities = []Capability{{Path: "chat", Name: "chat"}} }, "capabilities[0].path", "^/"},
		{"capability without a name", "", nil, func(s *Spec) { s.Capabilities = []Capability{{Path: "/x"}} }, "capabilities[0].name", "name"},
		{"capability's method", "", nil, func(s *Spec) { s.Capabilities = []Capability{{Path: "/x", Name: "chat", Methods: []string{"post"}}} }, "capabilities[0].methods[0]", "POST"},
		{"error shape", "", nil, func(s *Spec) { s.Errors = "xml" }, "errors", "openai, anthropic, google, aws, cohere, problem"},
		{"key pattern", "", nil, func(s *Spec) { s.KeyPattern = "(?=x)" }, "key_pattern", "RE2"},
		{"key pattern that matches nothing at all", "", nil, func(s *Spec) { s.KeyPattern = "[a-f]*" }, "key_pattern", "no key"},
		{"key pattern that matches everything", "", nil, func(s *Spec) { s.KeyPattern = "[a-z-]{8,}" }, "key_pattern", "no key"},
		{"key prefix", "", nil, func(s *Spec) { s.KeyPrefix = "a b" }, "key_prefix", "visible"},
		{"variable's name", "", nil, func(s *Spec) { s.SDKEnv.Vars = map[string]string{"A-B": ""} }, "sdk_env.vars", "name"},
		{"variable's reference", "", nil, func(s *Spec) { s.SDKEnv.Vars = map[string]string{"A": "{rout}/v1"} }, "sdk_env.vars.A", "{route}"},
		{"variable's reference unclosed", "", nil, func(s *Spec) { s.SDKEnv.Shared = map[string]string{"A": "{route"} }, "sdk_env.shared.A", "{route}"},
		{"variable's value", "", nil, func(s *Spec) { s.SDKEnv.Vars = map[string]string{"A": "x\ny"} }, "sdk_env.vars.A", "line break"},
		{"key variable", "", nil, func(s *Spec) { s.SDKEnv.Keys = []string{"OK", "1A"} }, "sdk_env.keys[1]", "name"},
	}
	for _, row := range rows {
		t.Run(row.what, func(t *testing.T) {
			var e Spec
			if row.change != nil {
				e = house()
				row.change(&e)
			}
			_, problems := Resolve(e, row.base, row.with)
			if len(problems) != 1 || problems[0].Field != row.field || !strings.Contains(problems[0].Message, row.says) {
				t.Errorf("got %q, want one problem at %s that says %q", problems, row.field, row.says)
			}
		})
	}
}

func TestResolveReportsEverythingAtOnce(t *testing.T) {
	e := Spec{
		Name: "UPPER", Hosts: []string{"a.example.", "b..example"}, Attach: Attach{Header: "Host", Format: "{"},
		Probe: Probe{Path: "x", Timeout: time.Hour}, Dead: []int{7}, Errors: "x", KeyPattern: "(", KeyPrefix: "\n",
		SDKEnv: SDKEnv{Keys: []string{""}}, DefaultPrefix: "x",
	}
	_, problems := Resolve(e, "", map[string]string{"zone": "x"})
	var fields []string
	for _, p := range problems {
		fields = append(fields, p.Field)
	}
	want := []string{"with.zone", "name", "hosts[0]", "hosts[1]", "default_prefix", "attach.header", "attach.format", "probe.path",
		"probe.timeout", "dead[0]", "errors", "key_pattern", "key_prefix", "sdk_env.keys[0]"}
	if !slices.Equal(fields, want) {
		t.Errorf("got  %q\nwant %q", fields, want)
	}
	if s := problems[1].String(); !strings.HasPrefix(s, "name: ") {
		t.Error(s)
	}
}
