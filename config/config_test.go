package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/postern-proxy/postern/agent/rotation"
)

var update = flag.Bool("update", false, "write the expected answers in testdata")

// environment reads the "# env NAME=value" lines at the top of a test file.
func environment(data []byte) func(string) string {
	vars := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "# env "); ok {
			k, v, _ := strings.Cut(strings.TrimSpace(rest), "=")
			vars[k] = v
		}
	}
	return func(k string) string { return vars[k] }
}

func noEnv(string) string { return "" }

func parseFile(t *testing.T, file string) (*Config, error) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return Parse(data, filepath.Base(file), environment(data), "/etc/postern")
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files match %s (%v)", pattern, err)
	}
	return files
}

// Each file in testdata/bad has mistakes, and the file of its name that ends
// in .errors the whole answer.
func TestMistakes(t *testing.T) {
	for _, file := range glob(t, "testdata/bad/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, err := parseFile(t, file)
			if c != nil && err == nil {
				err = c.ValidateAgent()
			}
			if err == nil {
				t.Fatal("nothing was found")
			}
			var list *Errors
			if !errors.As(err, &list) || len(list.List) == 0 {
				t.Fatalf("the error is a %T", err)
			}
			got, want := err.Error()+"\n", strings.TrimSuffix(file, ".yaml")+".errors"
			if *update {
				if err := os.WriteFile(want, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			expected, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(expected) {
				t.Errorf("got\n%s\nwant\n%s", got, expected)
			}
			for _, secret := range []string{"hunter2", "sk-proj", "hvs.", "correct horse", "0123456789abcdef"} {
				if strings.Contains(got, secret) {
					t.Errorf("the answer holds %q", secret)
				}
			}
		})
	}
}

// Every file directly in testdata is right, for the agent too, or for the server where it has such a section.
func TestExamples(t *testing.T) {
	for _, file := range glob(t, "testdata/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, err := parseFile(t, file)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Notes) > 0 {
				t.Errorf("notes: %v", c.Notes)
			}
			agent := c.ValidateAgent()
			if c.Server != nil {
				if err := c.ValidateServer(); err != nil {
					t.Error(err)
				}
				return
			}
			if file == "testdata/vault-from-environment.yaml" {
				if agent == nil || !strings.Contains(agent.Error(), "store.vault.auth: is required for the agent") {
					t.Errorf("a Vault without auth: %v", agent)
				}
				return
			}
			if agent != nil {
				t.Error(agent)
			}
		})
	}
}

// Every field there is stands in one of the examples.
func TestEveryFieldHasAnExample(t *testing.T) {
	var want []string
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ == sdkEnvType {
			typ = reflect.TypeFor[sdkEnv]()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for n, index := range fieldsOf(typ) {
			want = append(want, field(path, n))
			walk(field(path, n), typ.FieldByIndex(index).Type)
		}
	}
	walk("", reflect.TypeFor[Config]())
	have := map[string]bool{}
	for _, file := range glob(t, "testdata/*.yaml") {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var n yaml.Node
		if err := yaml.Unmarshal(data, &n); err != nil {
			t.Fatal(err)
		}
		written("", n.Content[0], have)
	}
	slices.Sort(want)
	for _, path := range want {
		switch path {
		case "providers.attach.pass", "providers.also.basic", "providers.also.basic.username", "providers.also.basic.password":
			continue // `attach` never passes, `also` knows header and query only
		}
		if !have[path] {
			t.Errorf("no example has %s", path)
		}
	}
}

// written notes the path of every field in a document, without list indexes.
func written(path string, n *yaml.Node, into map[string]bool) {
	switch n = target(n); n.Kind {
	case yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			p := field(path, n.Content[i].Value)
			into[p] = true
			written(p, n.Content[i+1], into)
		}
	case yaml.SequenceNode:
		for _, c := range n.Content {
			written(path, c, into)
		}
	}
}

func TestFullExample(t *testing.T) {
	c, err := parseFile(t, "testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Environment != "prod" || c.ProxyID != "px_acme_prod" || c.Service != "checkout" || c.Source != "full.yaml" {
		t.Errorf("identity: %+v", c)
	}
	v := c.Store.Vault
	if v.Poll != 5*time.Second || v.MaxStale != 24*time.Hour || v.Auth.Kubernetes.Role != "checkout" || c.Poll() != v.Poll {
		t.Errorf("vault: %+v", v)
	}
	if len(c.Providers) != 3 {
		t.Fatalf("%d providers", len(c.Providers))
	}
	azure, house := c.Providers[1], c.Providers[2]
	if !slices.Equal(azure.Hosts, []string{"acme.openai.azure.com"}) || azure.Key != "azure" || !*azure.Forward || azure.Attach.Header != "Api-Key" {
		t.Errorf("azure was not resolved: %+v", azure)
	}
	if house.BaseURL != "https://llm.corp.example:8443" || house.CAFile != "/etc/postern/corp-ca.pem" || house.Provider != "" {
		t.Errorf("house-llm: %+v", house)
	}
	if c.Rotation.Grace != 10*time.Minute || c.Rotation.RejectRatio != 0.05 || len(c.Rotation.Ramp) != 0 {
		t.Errorf("rotation: %+v", c.Rotation)
	}
}

// What is left out is what the full example says.
func TestDefaultsAreTheFullExample(t *testing.T) {
	full, err := parseFile(t, "testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	short, err := Parse([]byte(`
version: 1
environment: prod
proxy_id: px_acme_prod
service: checkout
store: {vault: {address: "https://vault.example:8200", auth: {kubernetes: {role: checkout}}}}
providers:
  - name: openai
  - {name: azure, provider: azure-openai, with: {resource: acme}}
  - {name: house-llm, hosts: ["llm.corp.example:8443"], attach: {header: X-Api-Key}, probe: {path: /health}, ca_file: /etc/postern/corp-ca.pem}
`), "full.yaml", noEnv, "/etc/postern")
	if err != nil {
		t.Fatal(err)
	}
	full.where, short.where = nil, nil
	full.Listen.Hosts, full.Rotation.Ramp = nil, nil // written as empty lists
	if !reflect.DeepEqual(full, short) {
		t.Errorf("defaults differ:\n%+v\n%+v", full, short)
	}
}

func TestEveryOtherField(t *testing.T) {
	c, err := parseFile(t, "testdata/sealed.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for what, ok := range map[string]bool{
		"sealed.file":    c.Store.Sealed.File == "/etc/postern/postern.sealed",
		"sealed.poll":    c.Poll() == 200*time.Millisecond,
		"allow_uids":     slices.Equal(c.Listen.AllowUIDs, []int{1000, 1001}),
		"hosts":          slices.Equal(c.Listen.Hosts, []string{"postern", "localhost:8700"}),
		"egress":         c.Egress.ProxyURL().Host == "proxy.corp.example:3128" && c.Egress.ProxyURL().User.Username() == "user",
		"egress.ca":      c.Egress.CAFile == "/etc/postern/corp.pem",
		"ramp":           reflect.DeepEqual(c.Rotation.Ramp, rotation.Ramp{{Weight: 1, For: 30 * time.Second}, {Weight: 10, For: 2 * time.Minute}, {Weight: 50, For: 5 * time.Minute}}),
		"reject_ratio":   c.Rotation.RejectRatio == 1,
		"ca":             c.CA.Dir == "/etc/postern/trust" && c.CA.StateDir == "/etc/postern/ca-state",
		"audit":          c.Audit.File == "/etc/postern/audit.jsonl",
		"unmatched":      c.Unmatched == "tunnel",
		"log":            c.Log == Log{Level: "debug", Format: "text"},
		"order":          c.Providers[0].Name == "openai" && c.Providers[1].Name == "openai-eu",
		"forward":        *c.Providers[0].Forward && !*c.Providers[1].Forward,
		"sdk_env false":  len(c.Providers[0].SDKEnv.Vars) == 0,
		"overridden":     c.Providers[1].BaseURL == "https://eu.api.openai.com" && c.Providers[1].Provider == "openai",
		"with":           c.Providers[2].Hosts[0] == "bedrock-runtime.eu-central-1.amazonaws.com",
		"sdk_env vars":   c.Providers[3].SDKEnv.Vars["OPENAI_BASE_URL"] == "{route}/v1" && c.Providers[3].SDKEnv.Vars["HOUSE_BASE_URL"] == "{route}",
		"plaintext":      c.Providers[3].BaseURL == "http://127.0.0.1:9000/api",
		"provider ca":    c.Providers[3].CAFile == "/etc/postern/corp.pem",
		"probe.timeout":  c.Providers[3].Probe.Timeout == 2*time.Second,
		"optional":       c.Providers[3].Optional && c.Providers[3].HTTP2,
		"attach.basic":   c.Providers[3].Attach.Basic.Username == "team",
		"default prefix": c.Providers[1].DefaultPrefix == "/v1",
	} {
		if !ok {
			t.Errorf("%s is wrong: %+v", what, c)
		}
	}
}

func TestVaultFromTheEnvironment(t *testing.T) {
	c, err := parseFile(t, "testdata/vault-from-environment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	v := c.Store.Vault
	if v.Address != "https://vault.example:8200" || v.Namespace != "team-a" || v.CAFile != "/etc/vault-ca.pem" || v.Mount != "secret" || v.Prefix != "postern" {
		t.Errorf("%+v", v)
	}
	if got := c.Egress.ProxyURL().String(); got != "http://proxy.corp.example:3128" {
		t.Errorf("egress %s", got)
	}
	if c.Egress.Proxy != "env:HTTPS_PROXY" {
		t.Error("the configuration holds what the variable holds")
	}
}

// A file's own settings win over the environment's.
func TestFileBeatsEnvironment(t *testing.T) {
	c, err := Parse([]byte(`{version: 1, environment: a, proxy_id: px_a, store: {vault: {address: "https://a.example", namespace: a, ca_file: a.pem}}, providers: [{name: openai}]}`),
		"x", func(string) string { return "0" }, "/d")
	if err != nil {
		t.Fatal(err)
	}
	if v := c.Store.Vault; v.Address != "https://a.example" || v.Namespace != "a" || v.CAFile != "/d/a.pem" {
		t.Errorf("%+v", v)
	}
	c, err = Parse([]byte(`{version: 1, environment: a, proxy_id: px_a, store: {sealed: {file: a, key_file: b}}}`),
		"x", func(string) string { return "https://vault.example" }, "/d")
	if err != nil || c.Store.Vault != nil {
		t.Errorf("VAULT_ADDR added a second store: %v", err)
	}
}

func TestOperatorsNeedNoAuthAndNoProviders(t *testing.T) {
	c, err := Parse([]byte(`{version: 1, environment: a, proxy_id: px_a, store: {vault: {address: "https://a.example", auth: {jwt: {}, token: {}}}}}`), "x", noEnv, "")
	if err != nil {
		t.Fatal(err)
	}
	err = c.ValidateAgent()
	for _, want := range []string{"has jwt and token: keep exactly one", "jwt.token_file: is required", "token.file: is required", "providers: is empty"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing from %v", want, err)
		}
	}
}

func TestErrorsAreFoundByAs(t *testing.T) {
	_, err := Parse([]byte("version: 3\nenvironment: a\nproxy_id: px_a\nstore: {sealed: {file: a, key_file: b}}\nproviders: [{name: openai}]\n"), "x.yaml", noEnv, "")
	one, ok := errors.AsType[Error](err)
	if !ok || one.Path != "version" || one.Line != 1 {
		t.Errorf("%+v", one)
	}
	if err.Error() != "x.yaml: "+one.Error() {
		t.Errorf("one mistake is one line: %s", err)
	}
}

func TestManyMistakesAreCounted(t *testing.T) {
	var b strings.Builder
	for i := range 300 {
		b.WriteString("field" + strings.Repeat("x", i) + ": 1\n")
	}
	_, err := Parse([]byte(b.String()), "x", noEnv, "")
	list, ok := errors.AsType[*Errors](err)
	if !ok || len(list.List) != maxErrors+1 {
		t.Fatalf("%v", err)
	}
	if last := list.List[maxErrors].Message; !strings.HasPrefix(last, "and 2") || !strings.HasSuffix(last, "more mistakes") {
		t.Errorf("last: %s", last)
	}
}

func TestTooLarge(t *testing.T) {
	base := []byte("version: 1\nenvironment: a\nproxy_id: px_a\nstore: {sealed: {file: a, key_file: b}}\n#")
	fits := append(base, strings.Repeat("x", maxBytes-len(base))...)
	if _, err := Parse(fits, "x", noEnv, ""); err != nil {
		t.Error(err)
	}
	if _, err := Parse(append(fits, 'x'), "x", noEnv, ""); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("%v", err)
	}
	many := "providers: [" + strings.Repeat("{name: openai},", maxProviders+1) + "]"
	if _, err := Parse(append(base, "\n"+many...), "x", noEnv, ""); err == nil || !strings.Contains(err.Error(), "at most 2000 ") {
		t.Errorf("%v", err)
	}
}

func TestOwnHosts(t *testing.T) {
	for _, c := range []struct{ listen, host, want string }{
		{"127.0.0.1:8700", "Postern", "postern:8700"},
		{"127.0.0.1:8700", "postern:80", "postern:80"},
		{"127.0.0.1:80", "postern", "postern"},
		{"127.0.0.1:0", "postern", "postern"},
		{"[::1]:8700", "[::1]", "[::1]:8700"},
	} {
		got, err := Parse([]byte(`{version: 1, environment: a, proxy_id: px_a, store: {sealed: {file: a, key_file: b}}, listen: {proxy: "`+c.listen+`", hosts: ["`+c.host+`"]}}`), "x", noEnv, "")
		if err != nil {
			t.Errorf("%s: %v", c.host, err)
			continue
		}
		if got.Listen.Hosts[0] != c.want {
			t.Errorf("%s on %s is %s, want %s", c.host, c.listen, got.Listen.Hosts[0], c.want)
		}
	}
}

// One name is one key: entries with one KeyName share what was loaded.
func TestKeyNames(t *testing.T) {
	head := `{version: 1, environment: a, proxy_id: px_a, store: {vault: {address: "https://v.example"}}, providers: [{name: mistral, vault_path: secret/data/m}, `
	c, err := Parse([]byte(head+`{name: openai}, {name: o2, provider: openai, forward: false, key: openai}]}`), "x", noEnv, "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range c.Providers {
		got = append(got, p.KeyName())
	}
	if !slices.Equal(got, []string{"secret/data/m#api_key", "openai", "openai"}) || c.Providers[0].Field != "api_key" {
		t.Errorf("%v", got)
	}
}

func TestMaxStale(t *testing.T) {
	for doc, want := range map[string]time.Duration{
		"testdata/sealed.yaml": 24 * time.Hour,
		"testdata/full.yaml":   24 * time.Hour,
	} {
		c, err := parseFile(t, doc)
		if err != nil || c.MaxStale() != want {
			t.Errorf("%s: %v %v", doc, c.MaxStale(), err)
		}
	}
	c, err := Parse([]byte(`{version: 1, environment: a, proxy_id: px_a, store: {vault: {address: "https://v.example", max_stale: 1h}}}`), "x", noEnv, "")
	if err != nil || c.MaxStale() != time.Hour {
		t.Errorf("%v", err)
	}
}

func TestEgressFromAnUnsetVariableIsNoted(t *testing.T) {
	c, err := Parse([]byte(`{version: 1, environment: a, proxy_id: px_a, store: {sealed: {file: a, key_file: b}}, egress: {proxy: env:NOPE}}`), "x", noEnv, "")
	if err != nil || c.Egress.ProxyURL() != nil || len(c.Notes) != 1 || c.Notes[0].Path != "egress.proxy" {
		t.Errorf("%v %+v", err, c)
	}
}
