package examples_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/test/tools"
)

// project is a compose file as `docker compose config` shows it.
type project struct {
	Services map[string]struct {
		Image, User         string
		Entrypoint, Command []string
		Environment         map[string]string
		NetworkMode         string   `json:"network_mode"`
		ReadOnly            bool     `json:"read_only"`
		CapDrop             []string `json:"cap_drop"`
		Configs, Secrets    []struct{ Source, Target string }
		Healthcheck         struct{ Test []string }
		DependsOn           map[string]struct{ Condition string } `json:"depends_on"`
	}
	Configs, Secrets map[string]struct{ File string }
}

// compose loads a compose file with Compose's own library, which refuses what is no field.
func compose(o operator, program, file string) (project, error) {
	var p project
	out, err := o.run(nil, program, file)
	if err != nil {
		return p, fmt.Errorf("%w: %s", err, out)
	}
	return p, json.Unmarshal([]byte(out), &p)
}

var aComment = regexp.MustCompile(`(?m)^#   (\S.*)$`)

// The commands that compose.yaml begins with set Vault up, and the two services' own commands run, each as a process: the
// agent, its health check, and then the application.
func TestCompose(t *testing.T) {
	const key = "sk-proj-0123456789abcdefghij"
	v := vaulttest.Start(t, vaulttest.Options{})
	provider, err := fake.New(fake.Options{Kind: "openai", Keys: []string{key}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { provider.Close() })
	o := newOperator(t, v)
	if err := os.CopyFS(o.dir, os.DirFS(example(t, "compose"))); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(o.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("key.txt", key+"\n")
	write("provider.pem", string(provider.CAPEM()))

	// What differs here: where Vault and the provider are, and where the secret is mounted.
	yaml := read(t, filepath.Join(o.dir, "postern.yaml"))
	for old, here := range map[string]string{
		"https://vault.example:8200": v.Address,
		"/run/secrets/secret-id":     "secret-id",
		"  - name: openai\n":         fmt.Sprintf("  - {name: openai, hosts: [%q], base_url: %q, ca_file: provider.pem}\n", strings.TrimPrefix(provider.URL(), "https://"), provider.URL()),
		"providers:\n":               "listen: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\nproviders:\n",
	} {
		if strings.Count(yaml, old) != 1 {
			t.Fatalf("postern.yaml has %q %d times", old, strings.Count(yaml, old))
		}
		yaml = strings.Replace(yaml, old, here, 1)
	}
	write("postern.yaml", yaml)

	lines := aComment.FindAllStringSubmatch(read(t, filepath.Join(o.dir, "compose.yaml")), -1)
	for _, line := range lines {
		if out, err := o.run(nil, "sh", "-c", line[1]); err != nil {
			t.Fatalf("%s: %v\n%s", line[1], err, out)
		}
	}
	if len(lines) < 7 {
		t.Errorf("%d commands", len(lines))
	}

	program, err := tools.Compose.Build()
	if err != nil {
		t.Fatal(err)
	}
	p, err := compose(o, program, "compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for what, files := range map[string]map[string]struct{ File string }{"config": p.Configs, "secret": p.Secrets} {
		if len(files) == 0 {
			t.Errorf("no %s", what)
		}
		for name, f := range files {
			if info, err := os.Stat(f.File); err != nil || info.Size() == 0 {
				t.Errorf("the %s %s: %v, %v", what, name, info, err)
			}
		}
	}

	service, app := p.Services["postern"], p.Services["app"]
	if len(service.Configs) != 1 || len(service.Secrets) != 1 || !strings.Contains(read(t, example(t, "compose", "postern.yaml")), "secret_id_file: "+service.Secrets[0].Target+"}") {
		t.Fatalf("the agent is given %+v and %+v", service.Configs, service.Secrets)
	}
	if app.NetworkMode != "service:postern" || app.DependsOn["postern"].Condition != "service_healthy" || !service.ReadOnly || fmt.Sprint(service.CapDrop) != "[ALL]" {
		t.Errorf("%+v and %+v", service, app)
	}
	mounted := service.Configs[0].Target
	if got := strings.Join(service.Command, " "); service.Entrypoint != nil || got != "agent -c "+mounted {
		t.Fatalf("the agent is started by %v %s", service.Entrypoint, got)
	}
	a := agenttest.Start(t, o.dir, yaml)
	ports := strings.NewReplacer(`proxy: "127.0.0.1:0"`, `proxy: "`+a.Proxy+`"`, `admin: "127.0.0.1:0"`, `admin: "`+a.Admin+`"`)
	write("here.yaml", ports.Replace(yaml)) // the agent itself would read a change of its own file

	check := service.Healthcheck.Test
	if len(check) < 2 || check[0] != "CMD" || check[1] != "/postern" {
		t.Fatalf("the health check is %q", check)
	}
	asked := slices.Clone(check[2:])
	if i := slices.Index(asked, mounted); i >= 0 {
		asked[i] = "here.yaml"
	}
	agenttest.Eventually(t, 20*time.Second, "the agent is healthy", func() bool {
		_, err := o.run(nil, agenttest.Binary(t), asked...)
		return err == nil
	})

	const listener = "http://127.0.0.1:8700/"
	var env []string
	for name, value := range app.Environment {
		env = append(env, name+"="+strings.Replace(value, listener, a.URL("/"), 1))
	}
	if !strings.HasPrefix(app.Environment["OPENAI_BASE_URL"], listener) {
		t.Errorf("the application asks %v", app.Environment)
	}
	if _, err := tools.Curl.Find(); err != nil {
		agenttest.NotRun(t, "application of examples/compose", err)
		return
	}
	out, err := o.run(env, app.Entrypoint[0], append(app.Entrypoint[1:], app.Command...)...)
	if err != nil || !strings.Contains(out, "chat.completion") {
		t.Errorf("%v: %v\n%s", app.Command, err, out)
	}
	uses := 0
	for _, r := range provider.Requests() {
		if r.Method == http.MethodPost && r.Key == key {
			uses++
		}
	}
	if uses != 1 {
		t.Errorf("%d requests of the application had the key", uses)
	}

	// And the library does refuse what is no field.
	write("compose.yaml", strings.Replace(read(t, filepath.Join(o.dir, "compose.yaml")), "cap_drop:", "cap_dorp:", 1))
	if _, err := compose(o, program, "compose.yaml"); err == nil || !strings.Contains(err.Error(), "cap_dorp") {
		t.Errorf("a misspelt field: %v", err)
	}
}
