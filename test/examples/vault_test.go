package examples_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
)

// setUp runs the script; failing fails the test.
func (o operator) setUp(t *testing.T, env []string, args ...string) {
	t.Helper()
	if out, err := o.run(env, "sh", append([]string{example(t, "vault", "setup.sh")}, args...)...); err != nil {
		t.Fatalf("setup.sh %v: %v\n%s", args, err, out)
	}
}

// outside is what a Vault outside of the cluster is told.
const outside = "KUBERNETES_HOST=https://api.example:6443"

// state is what the script is about: every policy, the roles, and the mounts.
func state(v *vaulttest.Vault, mount, auth string) map[string]string {
	found := map[string]string{
		"engine": fmt.Sprint(v.Do("GET", "sys/mounts/"+mount, nil)),
		"method": fmt.Sprint(v.Do("GET", "sys/auth/"+auth, nil)),
		"config": fmt.Sprint(v.Do("GET", "auth/"+auth+"/config", nil)),
	}
	list := func(at string) []any {
		names, _ := v.Do("LIST", at, nil)["keys"].([]any)
		return names
	}
	for _, name := range list("sys/policies/acl") {
		found[fmt.Sprint("policy ", name)] = fmt.Sprint(v.Do("GET", fmt.Sprint("sys/policies/acl/", name), nil)["policy"])
	}
	for _, name := range list("auth/" + auth + "/role") {
		r := v.Do("GET", fmt.Sprint("auth/"+auth+"/role/", name), nil)
		found[fmt.Sprint("role ", name)] = fmt.Sprint(r["bound_service_account_namespaces"], " ", r["bound_service_account_names"], " ", r["audience"], " ",
			r["token_policies"], " ", r["token_no_default_policy"], " ", r["token_ttl"])
	}
	return found
}

// From nothing, and once more: the second time changes nothing. On a cluster, agents log in by what it makes (test/cluster).
func TestVaultSetup(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	o := newOperator(t, v)
	env := []string{"MOUNT=keys", "AUTH=pods", outside}
	o.setUp(t, env)
	once := state(v, "keys", "pods")
	o.setUp(t, env)
	twice := state(v, "keys", "pods")
	if !maps.Equal(once, twice) {
		t.Errorf("the second time it made\n%v\nof\n%v", twice, once)
	}
	accessor := fmt.Sprint(v.Do("GET", "sys/auth/pods", nil)["accessor"])
	for what, want := range map[string]string{
		"role postern-agent":      "[*] [*] vault [postern-agent] true 3600",
		"role postern-server":     "[postern-system] [postern-server] vault [postern-server] true 3600",
		"policy postern-agent":    "{{identity.entity.aliases." + accessor + ".metadata.service_account_name}}",
		"policy postern-server":   "keys/data/postern/provider-keys/prod/",
		"policy postern-security": "keys/data/postern/audit/prod/",
		"policy postern-devops":   "keys/data/postern/audit/prod/",
		"config":                  "https://api.example:6443",
	} {
		if !strings.Contains(twice[what], want) {
			t.Errorf("%s is %q, which lacks %s", what, twice[what], want)
		}
	}

	// For one ServiceAccount, with another name and environment beside the first; a method that is configured stays as it is.
	o.setUp(t, []string{"MOUNT=keys", "AUTH=pods", "NAMES=staging", "ENVIRONMENT=staging", "SERVER="}, "shop/checkout")
	more := state(v, "keys", "pods")
	for what, was := range twice {
		if more[what] != was {
			t.Errorf("%s was changed to %q", what, more[what])
		}
	}
	if role := more["role staging-px_shop_checkout"]; role != "[shop] [checkout] vault [staging-px_shop_checkout] true 3600" {
		t.Errorf("the role of shop/checkout is %q", role)
	}
	if p := more["policy staging-px_shop_checkout"]; !strings.Contains(p, "/provider-keys/staging/px_shop_checkout/") || strings.Contains(p, "identity.entity.aliases") {
		t.Errorf("the policy of shop/checkout:\n%s", p)
	}
	added := slices.DeleteFunc(slices.Sorted(maps.Keys(more)), func(what string) bool { _, had := twice[what]; return had })
	if want := []string{"policy staging-devops", "policy staging-px_shop_checkout", "policy staging-security", "role staging-px_shop_checkout"}; !slices.Equal(added, want) {
		t.Errorf("added are %q, want %q", added, want)
	}
}

// The commands that sidecar.yaml begins with: where the script's engine is there already, and a key is put by hand.
func TestSidecarCommands(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	o := newOperator(t, v)
	if err := os.CopyFS(o.dir, os.DirFS(example(t))); err != nil {
		t.Fatal(err)
	}
	o.dir = filepath.Join(o.dir, "kubernetes")
	if err := os.WriteFile(filepath.Join(o.dir, "key.txt"), []byte("sk-proj-0123456789abcdefghij\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, line := range aComment.FindAllStringSubmatch(read(t, filepath.Join(o.dir, "sidecar.yaml")), -1) {
		if strings.HasPrefix(line[1], "kubectl ") { // the cluster's tests do that
			continue
		}
		if out, err := o.run([]string{outside}, "sh", "-c", line[1]); err != nil {
			t.Errorf("%s: %v\n%s", line[1], err, out)
		}
		ran++
	}
	data := v.Do("GET", "secret/data/postern/provider-keys/prod/px_shop_checkout/openai", nil)["data"]
	if fmt.Sprint(data) != "map[api_key:sk-proj-0123456789abcdefghij]" || ran != 2 {
		t.Errorf("%d commands put %v", ran, data)
	}
	if role := v.Do("GET", "auth/kubernetes/role/postern-agent", nil); role["audience"] != "vault" {
		t.Errorf("the role is %v", role)
	}
}

// What cannot work is refused with what to change, and before anything is made of it.
func TestVaultSetupRefuses(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	v.Mount("old", "kv", map[string]string{"version": "1"})
	v.EnableAuth("machines", "approle")
	o := newOperator(t, v)
	for _, c := range []struct {
		name string
		env  []string
		args []string
		want string
	}{
		{"no namespace", nil, []string{"shop/checkout", "checkout"}, "checkout: want NAMESPACE/SERVICEACCOUNT"},
		{"three parts", nil, []string{"a/b/c"}, "a/b/c: want NAMESPACE/SERVICEACCOUNT"},
		{"no server's namespace", []string{"SERVER=postern-server"}, nil, "postern-server: want NAMESPACE/SERVICEACCOUNT"},
		{"another engine", []string{"MOUNT=old"}, nil, "MOUNT: the engine at old/ is not KV version 2"},
		{"another method", []string{"AUTH=machines"}, nil, "AUTH: the method at machines/ is not kubernetes"},
		{"no token", []string{"VAULT_TOKEN="}, nil, "permission denied"},
		{"no Vault", []string{"VAULT_ADDR=http://127.0.0.1:1", "VAULT_MAX_RETRIES=0"}, nil, "connection refused"},
		{"outside of a cluster", nil, nil, "KUBERNETES_HOST: a Vault outside of the cluster"},
		{"no such environment", []string{"ENVIRONMENT=Prod!", "NAMES=odd", outside}, nil, "environment"},
	} {
		out, err := o.run(c.env, "sh", append([]string{example(t, "vault", "setup.sh")}, c.args...)...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: want an error that says %s, got %v\n%s", c.name, c.want, err, out)
		}
	}
	// A policy that cannot be printed is not written as an empty one, which a pipe would do.
	if names := fmt.Sprint(v.Do("LIST", "sys/policies/acl", nil)["keys"]); strings.Contains(names, "odd-") {
		t.Errorf("the policies are %s", names)
	}
}
