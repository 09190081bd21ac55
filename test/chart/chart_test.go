// Package chart_test renders the Helm chart and holds what comes out against
// the program that it is for.
package chart_test

import (
	"bytes"
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
	"github.com/postern-proxy/postern/agent/clientenv"
	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/config"
	"github.com/postern-proxy/postern/test/tools"
)

func TestMain(m *testing.M) {
	code := m.Run()
	agenttest.Cleanup()
	os.Exit(code)
}

// path is a path below the project's root.
func path(t *testing.T, elem ...string) string {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(append([]string{root}, elem...)...)
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

// example are the arguments that choose the example values.
func example(t *testing.T) []string {
	return []string{"-f", path(t, "charts/postern/ci/example-values.yaml")}
}

func render(t *testing.T, args ...string) string {
	t.Helper()
	out, err := helm(t, append([]string{"template", "shop", "charts/postern", "--namespace", "store"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLint(t *testing.T) {
	if out, err := helm(t, append([]string{"lint", "--strict", "charts/postern"}, example(t)...)...); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The README's command renders, and twice the same.
func TestRenderIsTheSameEveryTime(t *testing.T) {
	readme, err := os.ReadFile(path(t, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^helm (template .*)$`).FindSubmatch(readme)
	if line == nil {
		t.Fatal("the README does not say how to render the chart")
	}
	for _, args := range [][]string{strings.Fields(string(line[1])), append([]string{"template", "shop", "charts/postern"}, example(t)...)} {
		first, err := helm(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			again, err := helm(t, args...)
			if err != nil || again != first {
				t.Fatalf("helm %s renders something else the second time, or fails: %v", strings.Join(args, " "), err)
			}
		}
	}
}

// What is not a value is refused, and so is what cannot work; the message names the field.
func TestWrongValuesAreRefused(t *testing.T) {
	for value, want := range map[string]string{
		"bogus=1":              "bogus",
		"vault.bogus=1":        "bogus",
		"workload.bogus=1":     "bogus",
		"image.bogus=1":        "bogus",
		"vault.role=":          "/vault/role",
		"vault.address=":       "/vault/address",
		"workload.image=":      "/workload/image",
		"environment=Prod":     "/environment",
		"proxyId=acme":         "/proxyId",
		"image.pullPolicy=No":  "/image/pullPolicy",
		"providers=null":       "'providers'",
		"providers[0].name=":   "/providers/0/name",
		"workload.replicas=-1": "/workload/replicas",
		"vault.address=http://vault.example:8200":    "/vault/address",
		"workload.serviceAccount=shop.with.a.dot":    "set proxyId",
		"workload.serviceAccount=" + long("shop", 9): "set proxyId",
	} {
		_, err := helm(t, append(append([]string{"template", "shop", "charts/postern", "--namespace", "store"}, example(t)...), "--set", value)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: want an error that holds %s, got %v", value, want, err)
		}
	}
}

func long(s string, n int) string { return strings.Repeat(s+"-", n*2) + s }

// pod is what of a rendered Deployment is looked at.
type pod struct {
	Spec struct {
		Template struct {
			Spec struct {
				ServiceAccountName string      `yaml:"serviceAccountName"`
				InitContainers     []container `yaml:"initContainers"`
				Containers         []container
				Volumes            []volume
			}
		}
	}
}

type volume struct {
	Name     string
	EmptyDir *struct {
		Medium    string
		SizeLimit string `yaml:"sizeLimit"`
	} `yaml:"emptyDir"`
	Projected *struct {
		Sources []struct {
			ServiceAccountToken struct {
				Path, Audience string
			} `yaml:"serviceAccountToken"`
		}
	}
}

type container struct {
	Name, Image   string
	Args          []string
	RestartPolicy string `yaml:"restartPolicy"`
	Env           []struct{ Name, Value string }
	Ports         []struct {
		ContainerPort int `yaml:"containerPort"`
	}
	StartupProbe    *probe         `yaml:"startupProbe"`
	ReadinessProbe  *probe         `yaml:"readinessProbe"`
	SecurityContext map[string]any `yaml:"securityContext"`
	Resources       struct {
		Requests, Limits map[string]string
	}
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	Exec             struct{ Command []string }
	TimeoutSeconds   int `yaml:"timeoutSeconds"`
	FailureThreshold int `yaml:"failureThreshold"`
}

func (c container) env(name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// rendered is the one Deployment, its sidecar and its application.
func rendered(t *testing.T, args ...string) (p pod, sidecar, app container) {
	t.Helper()
	text := render(t, args...)
	n := 0
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; n++ {
		if err := dec.Decode(&p); err != nil {
			break
		}
	}
	s := p.Spec.Template.Spec
	if n != 1 || len(s.InitContainers) != 1 || len(s.Containers) != 1 {
		t.Fatalf("%d documents, %d and %d containers:\n%s", n, len(s.InitContainers), len(s.Containers), text)
	}
	return p, s.InitContainers[0], s.Containers[0]
}

// load reads a sidecar's configuration as the agent in it would.
func load(t *testing.T, sidecar container) *config.Config {
	t.Helper()
	if !slices.Equal(sidecar.Args, []string{"agent", "-c", "env:POSTERN_CONFIG"}) {
		t.Errorf("the sidecar is started with %q", sidecar.Args)
	}
	c, err := config.Load("env:POSTERN_CONFIG", sidecar.env)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ValidateAgent(); err != nil {
		t.Error(err)
	}
	if len(c.Notes) > 0 {
		t.Errorf("notes: %v", c.Notes)
	}
	return c
}

// The configuration is one that the agent takes, and fits the pod around it.
func TestTheConfigurationFitsThePod(t *testing.T) {
	p, sidecar, app := rendered(t, example(t)...)
	c := load(t, sidecar)
	if c.ProxyID != "px_store_shop" || c.Environment != "prod" || p.Spec.Template.Spec.ServiceAccountName != "shop" {
		t.Errorf("scope %s of %s for the ServiceAccount %s", c.ProxyID, c.Environment, p.Spec.Template.Spec.ServiceAccountName)
	}
	if sidecar.RestartPolicy != "Always" {
		t.Error("the sidecar is no native sidecar: restartPolicy is not Always")
	}
	if !strings.HasPrefix(c.Listen.Proxy, "127.0.0.1:") {
		t.Errorf("the proxy listens at %s", c.Listen.Proxy)
	}
	if len(sidecar.Ports) != 1 || c.Listen.Admin != fmt.Sprintf("0.0.0.0:%d", sidecar.Ports[0].ContainerPort) {
		t.Errorf("the admin listener is at %s, the port is %v", c.Listen.Admin, sidecar.Ports)
	}

	// The token that the agent logs in with is the one that is projected, for Vault's audience.
	mounts := map[string]string{}
	for _, m := range sidecar.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	tokens, memory := 0, 0
	for _, v := range p.Spec.Template.Spec.Volumes {
		switch {
		case v.Projected != nil:
			tokens++
			src := v.Projected.Sources[0].ServiceAccountToken
			if filepath.Join(mounts[v.Name], src.Path) != c.Store.Vault.Auth.Kubernetes.TokenFile || src.Audience != "vault" {
				t.Errorf("the token is at %s/%s for %s; the agent reads %s", mounts[v.Name], src.Path, src.Audience, c.Store.Vault.Auth.Kubernetes.TokenFile)
			}
		case v.EmptyDir != nil:
			memory++
			// The CA's key lies in memory, in a folder that the agent makes itself.
			if filepath.Dir(c.CA.StateDir) != mounts[v.Name] || v.EmptyDir.Medium != "Memory" || v.EmptyDir.SizeLimit == "" {
				t.Errorf("ca.state_dir %s is not in the volume at %s, or that is not bounded memory: %+v", c.CA.StateDir, mounts[v.Name], v.EmptyDir)
			}
		}
	}
	if tokens != 1 || memory != 1 || len(app.VolumeMounts) > 0 {
		t.Errorf("%d tokens, %d folders in memory; the application mounts %v", tokens, memory, app.VolumeMounts)
	}
	for name, want := range map[string]any{"runAsNonRoot": true, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true} {
		if got := sidecar.SecurityContext[name]; got != want {
			t.Errorf("securityContext.%s is %v", name, got)
		}
	}
	if fmt.Sprint(sidecar.SecurityContext["capabilities"]) != "map[drop:[ALL]]" || fmt.Sprint(sidecar.SecurityContext["seccompProfile"]) != "map[type:RuntimeDefault]" {
		t.Errorf("securityContext %v", sidecar.SecurityContext)
	}
	if sidecar.Resources.Limits["cpu"] != "" || sidecar.Resources.Requests["memory"] == "" {
		t.Errorf("resources %v", sidecar.Resources)
	}
	if sidecar.Image != "postern:dev" {
		t.Errorf("image %s: not the chart's appVersion", sidecar.Image)
	}
}

// The probes are command lines of the program: beside no agent they say so.
func TestTheProbesRun(t *testing.T) {
	_, sidecar, _ := rendered(t, example(t)...)
	dir := t.TempDir()
	yaml := strings.ReplaceAll(sidecar.env("POSTERN_CONFIG"), "0.0.0.0:8701", "127.0.0.1:1")
	for name, p := range map[string]*probe{"startupProbe": sidecar.StartupProbe, "readinessProbe": sidecar.ReadinessProbe} {
		if p == nil || p.TimeoutSeconds < 2 {
			t.Errorf("%s: %+v", name, p)
			continue
		}
		if p.Exec.Command[0] != "/postern" {
			t.Errorf("%s runs %q", name, p.Exec.Command)
		}
		_, said, code := agenttest.RunEnv(t, agenttest.Env(dir, "POSTERN_CONFIG="+yaml), "", p.Exec.Command[1:]...)
		if code != 1 || !strings.Contains(said, "no agent answers") {
			t.Errorf("%s: exit code %d: %s", name, code, said)
		}
	}
}

// What the values say of providers is what the agent gets, and the application's
// variables are those that `postern exec` would set.
func TestTheApplicationsEnvironment(t *testing.T) {
	values := func(entries ...string) []string {
		file := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(file, []byte("providers:\n  - "+strings.Join(entries, "\n  - ")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return append(example(t), "-f", file)
	}
	var all []string
	for _, s := range spec.Catalog() {
		with := map[string]string{"azure-openai": ", with: {resource: acme}", "vertex": ", with: {region: us-east1}", "bedrock": ", with: {region: us-east-1}"}
		all = append(all, "{name: "+s.Name+with[s.Name]+"}")
	}
	for name, args := range map[string][]string{
		"one":             values("{name: openai}"),
		"two":             values("{name: anthropic}", "{name: gemini}"),
		"all":             values(all...),
		"another route":   values("{name: llm, provider: openai}"),
		"shared":          values("{name: groq, sdk_env: true}"),
		"shared, owned":   values("{name: openai, sdk_env: false}", "{name: deepseek, sdk_env: true}"),
		"none":            values("{name: openai, sdk_env: false}"),
		"one of its own":  values(`{name: house, hosts: [llm.example], attach: {header: X-Key}, sdk_env: {vars: {HOUSE_URL: "{route}/v2", HOUSE_KEY: "{placeholder}"}}}`),
		"with a base URL": values(`{name: house, hosts: ["llm.example:8443"], base_url: "https://llm.example:8443/api", attach: {header: X-Key}}`),
	} {
		_, sidecar, app := rendered(t, args...)
		c := load(t, sidecar)
		in := clientenv.Input{Mode: clientenv.Routes, Proxy: "http://" + c.Listen.Proxy}
		for _, p := range c.Providers {
			in.Providers = append(in.Providers, clientenv.Provider{Name: p.Name, Spec: p.Spec})
		}
		var want, got []string
		vars, _ := clientenv.Vars(in)
		for _, v := range vars {
			want = append(want, v.Name+"="+v.Value)
		}
		for _, e := range app.Env {
			if e.Name != "LOG_LEVEL" { // workload.env
				got = append(got, e.Name+"="+e.Value)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", name, got, want)
		}
		if app.env("LOG_LEVEL") != "info" {
			t.Errorf("%s: workload.env is not there", name)
		}
	}
}

// The chart's list of variables is the catalog's.
func TestTheListOfVariablesIsTheCatalogs(t *testing.T) {
	type env struct{ Vars, Shared map[string]string }
	read := func(file string, into any) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(b, into); err != nil {
			t.Fatal(err)
		}
	}
	var catalog struct {
		Providers []struct {
			Name   string
			SDKEnv env `yaml:"sdk_env"`
		}
	}
	read(path(t, "agent/provider/spec/catalog.yaml"), &catalog)
	want := map[string]env{}
	for _, p := range catalog.Providers {
		if len(p.SDKEnv.Vars)+len(p.SDKEnv.Shared) > 0 {
			want[p.Name] = p.SDKEnv
		}
	}
	var got map[string]env
	read(path(t, "charts/postern/files/sdk-env.yaml"), &got)
	if fmt.Sprint(got) != fmt.Sprint(want) || len(want) < 10 {
		t.Errorf("charts/postern/files/sdk-env.yaml\nhas  %v\nwant %v", got, want)
	}
}

// The notes' configuration is one for `postern keys` of the same scope and store.
func TestTheNotesLeadToTheSameKeys(t *testing.T) {
	_, sidecar, _ := rendered(t, example(t)...)
	agent := load(t, sidecar)
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(path(t, "charts/postern"))); err != nil {
		t.Fatal(err)
	}
	notes := filepath.Join(dir, "templates", "NOTES.txt")
	text, err := os.ReadFile(notes)
	if err != nil {
		t.Fatal(err)
	}
	// Helm shows notes of an installation only: here they become a manifest.
	wrapped := "{{ define \"notes\" }}" + string(text) + "{{ end }}text: {{ include \"notes\" . | toJson }}\n"
	if err := os.WriteFile(filepath.Join(dir, "templates", "zz.yaml"), []byte(wrapped), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := helm(t, append([]string{"template", "shop", dir, "--namespace", "store", "-s", "templates/zz.yaml"}, example(t)...)...)
	if err != nil {
		t.Fatal(err)
	}
	var said struct{ Text string }
	if err := yaml.Unmarshal([]byte(out), &said); err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`export POSTERN_CONFIG='(.*)'\n`).FindStringSubmatch(said.Text)
	if m == nil || !strings.Contains(said.Text, "postern keys add openai\n") {
		t.Fatalf("the notes:\n%s", said.Text)
	}
	operator, err := config.Load("", func(name string) string { return map[string]string{"POSTERN_CONFIG": m[1]}[name] })
	if err != nil {
		t.Fatal(err)
	}
	a, o := agent.Store.Vault, operator.Store.Vault
	if operator.Environment != agent.Environment || operator.ProxyID != agent.ProxyID ||
		o.Address != a.Address || o.Mount != a.Mount || o.Prefix != a.Prefix || o.Namespace != a.Namespace {
		t.Errorf("the notes lead to %s, %s in %+v; the agent reads %s, %s in %+v", operator.Environment, operator.ProxyID, o, agent.Environment, agent.ProxyID, a)
	}
}

// Every value is in the schema and has a default, so that what is written here is all that there is.
func TestTheSchemaKnowsEveryValue(t *testing.T) {
	var values map[string]any
	var schema map[string]any
	for file, into := range map[string]any{"values.yaml": &values, "values.schema.json": &schema} {
		b, err := os.ReadFile(path(t, "charts/postern", file))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(b, into); err != nil {
			t.Fatal(err)
		}
	}
	var compare func(at string, values, schema map[string]any)
	compare = func(at string, values, schema map[string]any) {
		props, _ := schema["properties"].(map[string]any)
		if props == nil {
			return // anything goes: resources
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s allows further properties", at)
		}
		for name := range props {
			if _, ok := values[name]; !ok && name != "global" {
				t.Errorf("values.yaml lacks %s.%s", at, name)
			}
		}
		for name, v := range values {
			if props[name] == nil {
				t.Errorf("values.schema.json lacks %s.%s", at, name)
			} else if m, ok := v.(map[string]any); ok {
				compare(at+"."+name, m, props[name].(map[string]any))
			}
		}
	}
	compare("values", values, schema)
}
