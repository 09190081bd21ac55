package docs_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/provider/fake"
)

// The commands of ROLES.md that name everything run one after the other, against a real Vault.
func TestEveryCommandOfTheRolesRuns(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.EnableAuth("kubernetes", "kubernetes")
	dir := t.TempDir()
	yaml := fmt.Sprintf("{version: 1, environment: prod, proxy_id: px_acme_prod, store: {vault: {address: %q, auth: {token: {file: token}}}}, providers: [{name: openai}]}", v.Address)
	if err := os.WriteFile(filepath.Join(dir, "postern.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, block := range blocks(t, "docs/ROLES.md", "sh") {
		var kept strings.Builder
		for line := range strings.Lines(block) {
			if !strings.Contains(line, "…") {
				kept.WriteString(line)
				ran++
			}
		}
		if out, err := shell(t, dir, "", "set -eu\n"+kept.String(), "VAULT_ADDR="+v.Address, "VAULT_TOKEN="+v.RootToken); err != nil {
			t.Errorf("%s%v\n%s", kept.String(), err, out)
		}
	}
	if role := v.Do("GET", "auth/kubernetes/role/postern-agent", nil); ran < 8 || role["audience"] != "vault" {
		t.Errorf("%d lines made the role %v", ran, role)
	}
}

// The policies that the README's commands print are enough for what it says they
// are for, and the operator's does not let him read a key.
func TestThePoliciesAreEnough(t *testing.T) {
	const key, next = "sk-proj-0123456789abcdefghij", "sk-proj-9876543210jihgfedcba"
	v := vaulttest.Start(t, vaulttest.Options{})
	dir := t.TempDir()
	p, err := fake.New(fake.Options{Kind: "openai", Keys: []string{key, next}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("provider.pem", string(p.CAPEM()))
	yaml := fmt.Sprintf(`version: 1
environment: prod
proxy_id: px_acme_prod
listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}
store: {vault: {address: %q, poll: 1s, auth: {token: {file: token}}}}
providers: [{name: openai, hosts: [%q], base_url: %q, ca_file: provider.pem}]
rotation: {grace: 2s}
`, v.Address, strings.TrimPrefix(p.URL(), "https://"), p.URL())
	file := filepath.Join(dir, "operator.yaml")
	write("operator.yaml", yaml)
	token := func(role string) string {
		command := "postern policy --role " + role + " -c postern.yaml"
		if !strings.Contains(read(t, "README.md"), command+" >") {
			t.Errorf("the README lacks %s", command)
		}
		out, said, code := agenttest.RunEnv(t, agenttest.Env(dir), "", "policy", "--role", role, "-c", file)
		if code != 0 {
			t.Fatalf("%s: exit code %d\n%s", command, code, said)
		}
		v.Policy(role, out)
		return v.Token(vaulttest.TokenOptions{Policies: []string{role}, NoDefault: true})
	}
	write("token", token("agent"))
	operator := token("security")
	run := func(stdin string, args ...string) string {
		t.Helper()
		out, said, code := agenttest.RunEnv(t, agenttest.Env(dir, "VAULT_TOKEN="+operator), stdin, append(args, "-c", file)...)
		if code != 0 {
			t.Errorf("postern %s: exit code %d\n%s", strings.Join(args, " "), code, said)
		}
		return out
	}
	run(key+"\n", "keys", "add", "openai")
	a := agenttest.Start(t, dir, yaml)
	a.Ready(t)
	run(next+"\n", "keys", "add", "openai", "--label", "prod-checkout")
	if out := run("", "keys", "list"); !strings.Contains(out, "prod-checkout") {
		t.Errorf("postern keys list:\n%s", out)
	}
	run("", "keys", "show", "openai")
	await := p.FirstUse(next)
	agenttest.Eventually(t, 20*time.Second, "the agent uses the new version", func() bool {
		resp, err := http.Post(a.URL("/openai/v1/chat/completions"), "application/json", strings.NewReader(`{"model":"gpt-4o-mini","messages":[{"role":"user","content":"?"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", resp.Status, body)
		}
		select {
		case <-await:
			return true
		default:
			return false
		}
	})
	req, err := http.NewRequest(http.MethodGet, v.Address+"/v1/secret/data/postern/provider-keys/prod/px_acme_prod/openai", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", operator)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("the operator reads the key: %s", resp.Status)
	}
	for _, problem := range []string{"forbidden", "permission"} {
		if strings.Contains(a.Log.String(), problem) {
			t.Errorf("the agent lacks a permission:\n%s", a.Log.String())
		}
	}
}
