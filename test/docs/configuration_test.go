package docs_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/config"
)

// fields are the paths of everything that may be written in a configuration.
func fields(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[yaml.Unmarshaler]()) || t == reflect.TypeFor[time.Duration]() {
		return []string{path}
	}
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return fields(t.Elem(), path+"[]")
		}
	case reflect.Struct:
		var out []string
		for f := range t.Fields() {
			name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			switch {
			case !f.IsExported() || name == "-":
			case opts == "inline":
				out = append(out, fields(f.Type, path)...)
			case path == "":
				out = append(out, fields(f.Type, name)...)
			default:
				out = append(out, fields(f.Type, path+"."+name)...)
			}
		}
		return out
	}
	return []string{path}
}

// Every field is documented, and nothing else.
func TestEveryFieldIsDocumented(t *testing.T) {
	var listed, fixed []string
	for _, r := range rows(read(t, "docs/CONFIGURATION.md")) {
		listed = append(listed, named(r))
		if len(r) != 3 {
			t.Errorf("the row of %s has %d cells: %q", named(r), len(r), r)
		}
		if strings.Contains(r[0], "†") {
			fixed = append(fixed, named(r))
		}
	}
	same(t, "docs/CONFIGURATION.md", listed, fields(reflect.TypeFor[config.Config](), ""))

	// The mark for what needs a restart is what a reload refuses.
	var refused []string
	for _, m := range regexp.MustCompile(`\badd\("([a-z_.]+)",`).FindAllStringSubmatch(read(t, "agent/reload.go"), -1) {
		refused = append(refused, m[1])
		if !slices.ContainsFunc(fixed, func(f string) bool { return f == m[1] || strings.HasPrefix(f, m[1]+".") }) {
			t.Errorf("docs/CONFIGURATION.md does not say that %s needs a restart", m[1])
		}
	}
	for _, f := range fixed {
		if !slices.ContainsFunc(refused, func(r string) bool { return f == r || strings.HasPrefix(f, r+".") }) {
			t.Errorf("docs/CONFIGURATION.md says that %s needs a restart; a reload takes it", f)
		}
	}
}

// The catalog's entries are named, and no other.
func TestEveryProviderIsDocumented(t *testing.T) {
	m := regexp.MustCompile(`(?s)the catalog \(([a-z, \n-]+)\)`).FindStringSubmatch(read(t, "docs/CONFIGURATION.md"))
	if m == nil {
		t.Fatal("docs/CONFIGURATION.md does not list the catalog")
	}
	var there []string
	for _, s := range spec.Catalog() {
		there = append(there, s.Name)
	}
	same(t, "docs/CONFIGURATION.md", strings.Split(strings.Join(strings.Fields(m[1]), ""), ","), there)
}

// Every example loads, as an agent or a server would load it; those that need no Vault are
// run through `postern check`.
func TestEveryExampleLoads(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root(t), "examples", "*.*")) // a folder's files are run where its name stands: see TestEveryExampleFolderIsRun
	if err != nil {
		t.Fatal(err)
	}
	env := func(name string) string {
		return map[string]string{"HTTPS_PROXY": "http://proxy.corp.example:3128"}[name]
	}
	sealed := 0
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			if filepath.Ext(file) != ".yaml" {
				t.Fatal("an example is a .yaml file")
			}
			dir := t.TempDir()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			here := filepath.Join(dir, "postern.yaml")
			if err := os.WriteFile(here, text, 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := config.Load(here, env)
			if err != nil {
				t.Fatal(err)
			}
			valid := c.ValidateAgent
			if c.Server != nil {
				valid = c.ValidateServer
			}
			if err := valid(); err != nil {
				t.Error(err)
			}
			if !strings.HasPrefix(string(text), "# ") {
				t.Error("the first line does not say what it is an example of")
			}
			if c.Store.Sealed == nil {
				return
			}
			sealed++
			for _, p := range c.Providers {
				if out, said, code := agenttest.Run(t, dir, "sk-proj-0123456789abcdefghij\n", "keys", "add", p.Key, "-c", here); code != 0 || strings.Contains(said, "note") {
					t.Errorf("keys add %s: exit code %d\n%s%s", p.Key, code, out, said)
				}
			}
			if out, said, code := agenttest.Run(t, dir, "", "check", "-c", here); code != 0 || strings.Contains(out, "missing") {
				t.Errorf("check: exit code %d\n%s%s", code, out, said)
			}
		})
	}
	if len(files) < 3 || sealed == 0 {
		t.Errorf("%d examples, %d of them without Vault", len(files), sealed)
	}
}

// What stands in a folder is run: by the tests of the cluster, of the chart, or of the examples.
func TestEveryExampleFolderIsRun(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root(t), "examples", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, dir := range []string{"chart", "cluster", "examples"} {
		tests, err := filepath.Glob(filepath.Join(root(t), "test", dir, "*_test.go"))
		if err != nil || len(tests) == 0 {
			t.Fatalf("no tests in test/%s: %v", dir, err)
		}
		for _, file := range tests {
			text.WriteString(read(t, "test", dir, filepath.Base(file)))
		}
	}
	for _, file := range files {
		if name := filepath.Base(file); !strings.Contains(text.String(), name) {
			t.Errorf("no test of the cluster, the chart or the examples uses %s", file)
		}
	}
}
