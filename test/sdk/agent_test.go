package sdk_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/clientenv"
	"github.com/postern-proxy/postern/agent/provider/spec"
)

// providers are the names of the catalog entries that the SDKs here talk to.
var providers = []string{"openai", "anthropic", "gemini"}

// agent is a running agent, the world behind it, and a client's way to it.
type agent struct {
	*world
	env    []string // what a client gets
	prefix []string // what a client's command line stands behind
	base   string   // the agent's address as a URL
}

// startAgent starts an agent that holds the keys of the providers named.
// Clients get the environment that leads them to it: by base URLs that are its
// routes, or with forward by its address as their proxy and its CA, and then
// they call the providers by their own names.
func startAgent(t *testing.T, mode clientenv.Mode, withKey ...string) *agent {
	t.Helper()
	dir := t.TempDir()
	a := &agent{world: newWorld(t, dir)}
	config := a.configure(t, dir, withKey)
	running := agenttest.Start(t, dir, config)
	running.Ready(t)
	a.base = "http://" + running.Proxy

	in := clientenv.Input{
		Mode: mode, Proxy: a.base,
		CAFile: filepath.Join(dir, "ca", "ca.pem"), BundleFile: filepath.Join(dir, "ca", "bundle.pem"),
	}
	for _, name := range providers {
		s, ok := spec.Lookup(name)
		if !ok {
			t.Fatalf("the catalog has no %s", name)
		}
		in.Providers = append(in.Providers, clientenv.Provider{Name: name, Spec: s})
	}
	a.env = agenttest.Env(dir)
	vars, _ := clientenv.Vars(in)
	for _, v := range vars {
		a.env = append(a.env, v.Name+"="+v.Value)
	}
	return a
}

// execAgent is an agent that `postern exec` starts for each command.
func execAgent(t *testing.T) *agent {
	t.Helper()
	dir := t.TempDir()
	a := &agent{world: newWorld(t, dir), env: agenttest.Env(dir)}
	file := filepath.Join(dir, "postern.yaml")
	if err := os.WriteFile(file, []byte(a.configure(t, dir, providers)), 0o600); err != nil {
		t.Fatal(err)
	}
	a.prefix = []string{agenttest.Binary(t), "exec", "-c", file, "--"}
	return a
}

// configure stores keys and returns the configuration. The agent leaves through
// a corporate proxy whose CA it is told, so the providers keep their own names.
func (w *world) configure(t *testing.T, dir string, withKey []string) string {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "ca"), 0o755); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("version: 1\nenvironment: test\nproxy_id: px_test_sdk\n")
	b.WriteString("listen: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n")
	fmt.Fprintf(&b, "egress: {proxy: %q, ca_file: %q}\n", w.egress, w.caFile)
	b.WriteString("store: {sealed: {file: postern.sealed, key_file: postern.key}}\n")
	b.WriteString("ca: {dir: ca}\naudit: {file: audit.jsonl}\nproviders:\n")
	for _, name := range providers {
		fmt.Fprintf(&b, "  - {name: %s, optional: %t}\n", name, !slices.Contains(withKey, name))
	}
	file := filepath.Join(dir, "keys.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range withKey {
		if _, said, code := agenttest.Run(t, dir, w.keys[name]+"\n", "keys", "add", name, "-c", file); code != 0 {
			t.Fatalf("postern keys add %s: exit code %d\n%s", name, code, said)
		}
	}
	return b.String()
}

// newKey makes a key that opens nothing but this test's providers.
func newKey(provider string) string { return "sk-test-" + provider + "-" + rand.Text() }

// refusal is the sentence with which the agent itself answers for a provider
// that it has no key of, asked for as no SDK does. It waits for the answer that
// stands: while keys are loading the agent asks for patience instead.
func (a *agent) refusal(t *testing.T, provider string) string {
	t.Helper()
	var sentence string
	agenttest.Eventually(t, 20*time.Second, provider+" is refused for good", func() bool {
		answer, err := http.Get(a.base + "/" + provider + "/v1/models")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		var body struct{ Error struct{ Message string } }
		if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		sentence = body.Error.Message
		if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Postern-Error") == "" || sentence == "" {
			t.Fatalf("%s without a key: status %d, header %v, message %q", provider, answer.StatusCode, answer.Header, sentence)
		}
		return answer.Header.Get("X-Should-Retry") == "false"
	})
	return sentence
}
