//go:build linux

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-proxy/postern/test/tools"
)

// Vault is a real Vault server in the cluster's network, with a KV v2 engine at
// secret/ and the Kubernetes auth method at kubernetes/. Pods reach it at
// Address, and with [Full] as vault.vault.svc:8200.
type Vault struct {
	Address   string // https://IP:port
	RootToken string
	Accessor  string // the Kubernetes auth method's

	c         *Cluster
	client    *http.Client
	process   *process
	binary    string
	dir       string
	unsealKey string
}

// StartVault starts a Vault that ends with the cluster.
func (c *Cluster) StartVault(ctx context.Context) (*Vault, error) {
	binary, err := tools.BuildVault()
	if err != nil {
		return nil, err
	}
	client, err := c.Client()
	if err != nil {
		return nil, err
	}
	v := &Vault{c: c, client: client, binary: binary, dir: filepath.Join(c.Dir, "vault")}
	if err := os.MkdirAll(filepath.Join(v.dir, "data"), 0o700); err != nil {
		return nil, err
	}
	if err := v.configure(); err != nil {
		return nil, err
	}
	if err := v.launch(ctx); err != nil {
		return nil, err
	}
	answer, err := v.Do(ctx, "POST", "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1})
	if err != nil {
		return nil, err
	}
	keys, _ := answer["keys_base64"].([]any)
	if len(keys) != 1 {
		return nil, errors.New("no key to unseal Vault with")
	}
	v.unsealKey, _ = keys[0].(string)
	v.RootToken, _ = answer["root_token"].(string)
	if err := v.unseal(ctx); err != nil {
		return nil, err
	}
	if _, err := v.Do(ctx, "POST", "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}}); err != nil {
		return nil, err
	}
	// A new engine prepares itself in the background, and refuses everything until it has.
	if err := c.await(ctx, "Vault's KV engine", func(ctx context.Context) error {
		_, err := v.Do(ctx, "GET", "secret/config", nil)
		return err
	}); err != nil {
		return nil, err
	}
	c.bin["vault"] = binary
	c.more("VAULT_ADDR="+v.Address, "VAULT_TOKEN="+v.RootToken, "VAULT_CACERT="+filepath.Join(c.Dir, "pki", "ca.crt"))
	return v, v.trustCluster(ctx)
}

func (v *Vault) configure() error {
	port, err := v.c.port(8200)
	if err != nil {
		return err
	}
	clusterPort, err := v.c.port(8201)
	if err != nil {
		return err
	}
	v.Address = "https://" + net.JoinHostPort(v.c.IP, port)
	p, err := v.c.CA.issue("", "vault", v.c.IP, "localhost", "vault.vault.svc", "vault.vault.svc.cluster.local")
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`storage "raft" {
  path = %q
  node_id = "one"
  performance_multiplier = 1
}
cluster_addr = %q
listener "tcp" {
  address = %q
  cluster_address = %q
  tls_cert_file = %q
  tls_key_file = %q
}
disable_mlock = true
api_addr = %q
`, filepath.Join(v.dir, "data"), "https://"+net.JoinHostPort(v.c.IP, clusterPort), net.JoinHostPort(v.c.IP, port), net.JoinHostPort(v.c.IP, clusterPort),
		filepath.Join(v.dir, "server.pem"), filepath.Join(v.dir, "server.key"), v.Address)
	return errors.Join(
		os.WriteFile(filepath.Join(v.dir, "server.pem"), p.cert, 0o600),
		os.WriteFile(filepath.Join(v.dir, "server.key"), p.key, 0o600),
		os.WriteFile(filepath.Join(v.dir, "vault.hcl"), []byte(config), 0o600),
	)
}

// launch starts the process and waits until it answers.
func (v *Vault) launch(ctx context.Context) error {
	words := []string{v.binary, "server", "-config", filepath.Join(v.dir, "vault.hcl")}
	if v.c.node != nil {
		words = append([]string{"nsenter", "--net=" + v.c.node.netFile, "--"}, words...)
	}
	log, err := os.OpenFile(filepath.Join(v.c.Dir, "log", "vault.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = v.dir
	cmd.Env = []string{"HOME=" + v.dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = log, log
	if v.process, err = startProcess("vault", cmd); err != nil {
		return fmt.Errorf("start Vault: %w", err)
	}
	v.c.procs.add(v.process)
	return v.c.await(ctx, "Vault", func(ctx context.Context) error {
		_, err := v.Do(ctx, "GET", "sys/seal-status", nil)
		return err
	})
}

func (v *Vault) unseal(ctx context.Context) error {
	if _, err := v.Do(ctx, "POST", "sys/unseal", map[string]any{"key": v.unsealKey}); err != nil {
		return err
	}
	return v.c.await(ctx, "Vault to be active", func(ctx context.Context) error {
		_, err := v.Do(ctx, "GET", "sys/health", nil)
		return err
	})
}

// Stop kills the server. What it stored is there after Run.
func (v *Vault) Stop() {
	v.c.procs.remove(v.process)
	v.process.kill()
	<-v.process.exited
}

// Run starts the server again after Stop, and unseals it.
func (v *Vault) Run(ctx context.Context) error {
	if err := v.launch(ctx); err != nil {
		return err
	}
	return v.unseal(ctx)
}

// trustCluster makes the Kubernetes auth method, which asks this cluster's API
// server whose tokens are presented, and lets pods find Vault by a Service.
func (v *Vault) trustCluster(ctx context.Context) error {
	manifests := `
apiVersion: v1
kind: Namespace
metadata: {name: vault}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: vault, namespace: vault}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: vault}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:auth-delegator}
subjects: [{kind: ServiceAccount, name: vault, namespace: vault}]
`
	if v.c.Level >= Full {
		manifests += `---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: vault}
spec: {ports: [{port: 8200}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: vault, namespace: vault, labels: {kubernetes.io/service-name: vault}}
addressType: IPv4
ports: [{name: "", port: 8200, protocol: TCP}]
endpoints: [{addresses: [` + v.c.IP + `], conditions: {ready: true}}]
`
	}
	if _, err := v.c.TryKubectl(ctx, manifests, "apply", "-f", "-"); err != nil {
		return err
	}
	reviewer, err := v.c.TryKubectl(ctx, "", "create", "token", "vault", "--namespace", "vault", "--duration", "24h")
	if err != nil {
		return err
	}
	if _, err := v.Do(ctx, "POST", "sys/auth/kubernetes", map[string]any{"type": "kubernetes"}); err != nil {
		return err
	}
	if _, err := v.Do(ctx, "POST", "auth/kubernetes/config", map[string]any{
		"kubernetes_host": "https://" + v.c.api, "kubernetes_ca_cert": string(v.c.CA.PEM), "token_reviewer_jwt": reviewer,
		"disable_local_ca_jwt": true,
	}); err != nil {
		return err
	}
	mounts, err := v.Do(ctx, "GET", "sys/auth", nil)
	if err != nil {
		return err
	}
	mount, _ := mounts["kubernetes/"].(map[string]any)
	if v.Accessor, _ = mount["accessor"].(string); v.Accessor == "" {
		return fmt.Errorf("no accessor of the Kubernetes auth method in %v", mounts)
	}
	return nil
}

// Do sends a request with the root token to the path below /v1/. It returns the
// answer's data, or the whole answer where it has none.
func (v *Vault) Do(ctx context.Context, method, path string, body any) (map[string]any, error) {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, v.Address+"/v1/"+path, payload)
	if err != nil {
		return nil, err
	}
	if v.RootToken != "" {
		req.Header.Set("X-Vault-Token", v.RootToken)
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s %s: HTTP %d: %w", method, path, resp.StatusCode, err)
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("asking Vault: %s %s: HTTP %d: %v", method, path, resp.StatusCode, answer["errors"])
	}
	if data, ok := answer["data"].(map[string]any); ok {
		return data, nil
	}
	return answer, nil
}

// Must is Do; failing fails the test.
func (v *Vault) Must(t testing.TB, method, path string, body any) map[string]any {
	t.Helper()
	answer, err := v.Do(t.Context(), method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// KVPut writes a new version of a secret as `vault kv put` does; the path is below secret/.
func (v *Vault) KVPut(t testing.TB, path string, fields map[string]string) {
	t.Helper()
	v.Must(t, "PUT", "secret/data/"+path, map[string]any{"data": fields})
}

// Policy writes an ACL policy, in HCL.
func (v *Vault) Policy(t testing.TB, name, rules string) {
	t.Helper()
	v.Must(t, "PUT", "sys/policies/acl/"+name, map[string]any{"policy": rules})
}

// Role lets ServiceAccounts log in, with tokens of the audience vault and these policies.
func (v *Vault) Role(t testing.TB, name, namespaces, accounts string, policies ...string) {
	t.Helper()
	v.Must(t, "POST", "auth/kubernetes/role/"+name, map[string]any{
		"bound_service_account_namespaces": namespaces, "bound_service_account_names": accounts,
		"audience": "vault", "token_policies": policies, "token_no_default_policy": true, "token_ttl": "10m",
	})
}
