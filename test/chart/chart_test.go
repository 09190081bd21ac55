// Package chart_test renders the Helm chart and holds what comes out against
// the programs that it is for.
package chart_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/config"
	"github.com/postern-proxy/postern/test/tools"
)

var update = flag.Bool("update", false, "write testdata and charts/postern/README.md")

func TestMain(m *testing.M) {
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}

// sets are the chart's example values, by the name of their file in ci.
var sets = []string{"example", "full", "cert-manager", "existing"}

// path is a path below the project's root.
func path(t *testing.T, elem ...string) string {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(append([]string{root}, elem...)...)
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	text, err := os.ReadFile(path(t, elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// helm runs Helm without any cluster.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(tools.Helm(t), args...)
	home := t.TempDir()
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "KUBECONFIG=" + filepath.Join(home, "none")}
	cmd.Dir = path(t)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("helm %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

// template are Helm's arguments that render the chart with a set of values.
func template(t *testing.T, set string, more ...string) []string {
	return append([]string{"template", "postern", "charts/postern", "--namespace", "postern-system", "-f", path(t, "charts/postern/ci", set+"-values.yaml")}, more...)
}

func render(t *testing.T, args ...string) string {
	t.Helper()
	out, err := helm(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// objects are what is rendered, by kind and name.
func objects(t *testing.T, args ...string) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for dec := yaml.NewDecoder(strings.NewReader(render(t, args...))); ; {
		var o map[string]any
		if dec.Decode(&o) != nil {
			return out
		}
		if o != nil {
			key := fmt.Sprint(o["kind"], "/", at(o, "metadata", "name"))
			if out[key] != nil {
				t.Errorf("%s is rendered twice", key)
			}
			out[key] = o
		}
	}
}

// at walks down maps, and lists by index.
func at(v any, steps ...any) any {
	for _, s := range steps {
		switch s := s.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[s]
		case int:
			l, _ := v.([]any)
			if s >= len(l) {
				return nil
			}
			v = l[s]
		}
	}
	return v
}

func TestLint(t *testing.T) {
	for _, set := range sets {
		if out, err := helm(t, "lint", "--strict", "charts/postern", "-f", path(t, "charts/postern/ci", set+"-values.yaml")); err != nil {
			t.Errorf("%s: %v\n%s", set, err, out)
		}
	}
	if out, err := helm(t, "lint", "--strict", "charts/postern"); err != nil {
		t.Errorf("without values: %v\n%s", err, out)
	}
}

// Each set renders to what is in testdata, twice.
func TestGolden(t *testing.T) {
	show := func(files ...string) (out []string) {
		for _, f := range files {
			out = append(out, "-s", "templates/"+f+".yaml")
		}
		return out
	}
	for _, g := range []struct {
		name, set string
		more      []string
	}{
		{"example", "example", nil},
		{"cert-manager", "cert-manager", nil},
		{"existing", "existing", nil},
		{"full-injector", "full", show("injector", "rbac", "webhook", "tests/injection")},
		// Rules and dashboard are files that are rendered as they are.
		{"full-server", "full", append(show("server", "monitoring", "extra"), "--set", "prometheusRule.enabled=false,dashboard.enabled=false")},
	} {
		args := template(t, g.set, g.more...)
		got := render(t, args...)
		if again := render(t, args...); again != got {
			t.Errorf("%s renders something else the second time", g.name)
		}
		file := path(t, "test/chart/testdata", g.name+".yaml")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || string(want) != got {
			t.Errorf("%s: not what %s holds (go test ./test/chart -update writes it): %v\n%s", g.name, file, err, firstDifference(string(want), got))
		}
	}
}

func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("line %d: want %q, got %q", i+1, a[i], b[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(b), len(a))
}

// A render does not depend on the order of values, nor on the release's revision.
func TestTheSameEveryTime(t *testing.T) {
	first := render(t, template(t, "full")...)
	for _, more := range [][]string{nil, {"--is-upgrade"}, {"--set", "environment=staging"}} {
		if again := render(t, template(t, "full", more...)...); again != first {
			t.Errorf("%v: %s", more, firstDifference(first, again))
		}
	}
}

func TestOldKubernetesIsRefused(t *testing.T) {
	_, err := helm(t, template(t, "example", "--kube-version", "1.28.9")...)
	if err == nil || !strings.Contains(err.Error(), "1.29") {
		t.Errorf("Kubernetes 1.28: %v", err)
	}
	for _, version := range []string{"1.29.0", "1.29.0-gke.1", "1.36.3"} {
		if _, err := helm(t, template(t, "example", "--kube-version", version)...); err != nil {
			t.Errorf("Kubernetes %s: %v", version, err)
		}
	}
}

// What is not a value is refused, and so is what cannot work; the message names the field.
func TestWrongValuesAreRefused(t *testing.T) {
	for value, want := range map[string]string{
		"bogus=1": "bogus", "vault.bogus=1": "bogus", "image.bogus=1": "bogus", "injection.bogus=1": "bogus", "resources.bogus=1": "bogus",
		"injector.bogus=1": "bogus", "injector.image.bogus=1": "bogus", "injector.certificates.bogus=1": "bogus", "injector.certificates.issuer.bogus=1": "bogus",
		"injector.resources.bogus=1": "bogus", "injector.affinity.bogus=1": "bogus", "injector.tolerations[0].bogus=1": "bogus",
		"podDisruptionBudget.bogus=1": "bogus", "networkPolicy.bogus=1": "bogus", "networkPolicy.scrapeFrom[0].bogus=1": "bogus", "podMonitor.bogus=1": "bogus",
		"prometheusRule.bogus=1": "bogus", "dashboard.bogus=1": "bogus", "test.bogus=1": "bogus", "server.bogus=1": "bogus",
		"server.issuers[0].bogus=1": "bogus", "imagePullSecrets[0].bogus=1": "bogus", "providers[0].bogus=1": "bogus", "workload.image=x": "workload",
		"resources.limits.disk=1": "disk", "podMonitor.labels.a=1": "/podMonitor/labels/a",
		"vault.address=http://vault.example:8200": "/vault/address", "vault.address=https://u:p@vault.example": "/vault/address", "vault.mount=": "/vault/mount",
		"environment=Prod": "/environment", "proxyId=acme": "/proxyId", "image.pullPolicy=No": "/image/pullPolicy", "image.digest=sha256:1": "/image/digest",
		"providers=null": "'providers'", "providers[0].key=x": "missing property 'name'",
		"injection.mode=x": "/injection/mode", "injection.runAsUser=root": "/injection/runAsUser", "injection.order=x": "/injection/order",
		"injection.vaultCaConfigMap=A/b/c": "/injection/vaultCaConfigMap",
		"injector.replicas=0":              "/injector/replicas", "injector.timeoutSeconds=10": "/injector/timeoutSeconds", "injector.failurePolicy=Maybe": "/injector/failurePolicy",
		"injector.reinvocationPolicy=x": "/injector/reinvocationPolicy", "injector.excludedNamespaces={a}": "/injector/excludedNamespaces", "injector.watch=often": "/injector/watch",
		"injector.certificates.mode=existing": "/injector/certificates", "injector.certificates.mode=cert-manager": "/injector/certificates",
		"server.enabled=true": "/server/tlsSecret", "server.role=": "/server/role", "networkPolicy.apiServerPorts={}": "/networkPolicy/apiServerPorts",
		"test.url=a\"b": "/test/url",
	} {
		if _, err := helm(t, template(t, "example", "--set", value)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: want an error that holds %s, got %v", value, want, err)
		}
	}
	if _, err := helm(t, template(t, "full", "--set", "vault.address=")...); err == nil || !strings.Contains(err.Error(), "/vault/address") {
		t.Errorf("a server without a Vault: %v", err)
	}
}

// Every value is in the schema and has a default, so that what is written here is all that there is.
func TestTheSchemaKnowsEveryValue(t *testing.T) {
	var values, schema map[string]any
	for file, into := range map[string]any{"values.yaml": &values, "values.schema.json": &schema} {
		if err := yaml.Unmarshal([]byte(read(t, "charts/postern", file)), into); err != nil {
			t.Fatal(err)
		}
	}
	resolve := func(s any) map[string]any {
		m, _ := s.(map[string]any)
		if ref, ok := m["$ref"].(string); ok {
			m, _ = at(schema, "definitions", strings.TrimPrefix(ref, "#/definitions/")).(map[string]any)
		}
		return m
	}
	var compare func(where string, values, schema map[string]any)
	compare = func(where string, values, schema map[string]any) {
		props, _ := schema["properties"].(map[string]any)
		if props == nil {
			if schema["additionalProperties"] == nil {
				t.Errorf("%s may hold anything", where)
			}
			return
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s allows further properties", where)
		}
		for name := range props {
			free := strings.HasSuffix(where, ".affinity") || strings.HasSuffix(where, ".resources")
			if _, ok := values[name]; !ok && name != "global" && !free {
				t.Errorf("values.yaml lacks %s.%s", where, name)
			}
		}
		for name, v := range values {
			if props[name] == nil {
				t.Errorf("values.schema.json lacks %s.%s", where, name)
			} else if m, ok := v.(map[string]any); ok {
				compare(where+"."+name, m, resolve(props[name]))
			}
		}
	}
	compare("values", values, schema)

	// Providers' and issuers' fields are the configuration's.
	docs := read(t, "docs/CONFIGURATION.md")
	fields := func(list string, s any) {
		var want, have []string
		for _, m := range regexp.MustCompile("(?m)^\\| `"+list+"\\[\\]\\.([a-z0-9_]+)").FindAllStringSubmatch(docs, -1) {
			want = append(want, m[1])
		}
		for name := range at(s, "items", "properties").(map[string]any) {
			have = append(have, name)
		}
		slices.Sort(want)
		slices.Sort(have)
		if want = slices.Compact(want); !slices.Equal(want, have) || at(s, "items", "additionalProperties") != false {
			t.Errorf("%s: the schema has\n%q, the configuration\n%q", list, have, want)
		}
	}
	fields("providers", at(schema, "definitions", "providers"))
	fields("issuers", at(schema, "properties", "server", "properties", "issuers"))
}

// The notes are two commands: a key's, in the agents' own store and scope, and a label's.
func TestTheNotes(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(path(t, "charts/postern"))); err != nil {
		t.Fatal(err)
	}
	// Helm shows notes of an installation only: here they become a manifest.
	wrapped := "{{ define \"notes\" }}" + read(t, "charts/postern/templates/NOTES.txt") + "{{ end }}text: {{ include \"notes\" . | toJson }}\n"
	if err := os.WriteFile(filepath.Join(dir, "templates", "zz.yaml"), []byte(wrapped), 0o600); err != nil {
		t.Fatal(err)
	}
	notes := func(set string, more ...string) string {
		args := append(template(t, set, "-s", "templates/zz.yaml"), more...)
		args[2] = dir
		var said struct{ Text string }
		if err := yaml.Unmarshal([]byte(render(t, args...)), &said); err != nil {
			t.Fatal(err)
		}
		return said.Text
	}
	text := notes("full")
	commands := regexp.MustCompile(`(?m)^  (\S.*)$`).FindAllStringSubmatch(text, -1)
	m := regexp.MustCompile(`POSTERN_CONFIG='(.*)' postern keys add openai\n`).FindStringSubmatch(text)
	if m == nil || len(commands) != 2 || commands[1][1] != "kubectl label namespace shop postern.dev/inject=true" {
		t.Fatalf("the notes:\n%s", text)
	}
	c, err := config.Load("", func(name string) string { return map[string]string{"POSTERN_CONFIG": m[1]}[name] })
	if err != nil {
		t.Fatal(err)
	}
	if v := c.Store.Vault; c.Environment != "staging" || c.ProxyID != "px_shop_default" || v.Address != "https://vault.example:8200" || v.Mount != "kv" || v.Prefix != "postern" || v.Namespace != "team" {
		t.Errorf("the notes lead to %s, %s in %+v", c.Environment, c.ProxyID, v)
	}
	if !strings.Contains(text, "postern-server.postern-system.svc:8702") || strings.Contains(text, "not set") {
		t.Errorf("the notes:\n%s", text)
	}
	if text := notes("example", "--set", "vault.address=,vault.role="); !strings.Contains(text, "vault.address is not set") || !strings.Contains(text, "vault.role is not set") {
		t.Errorf("the notes without a Vault:\n%s", text)
	}
	if text := notes("example", "--set", "test.namespace=postern-system"); !strings.Contains(text, "There is no `helm test`") {
		t.Errorf("the notes without a test:\n%s", text)
	}
}
