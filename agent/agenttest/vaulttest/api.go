package vaulttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Try sends one request to the path below /v1/ and returns the status and the
// JSON answer, nil if it has none. An empty token is not sent.
func (v *Vault) Try(ctx context.Context, token, method, path string, body any) (int, map[string]any, error) {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		payload = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, v.Address+"/v1/"+path, payload)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("X-Vault-Request", "true")
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	if method == "PATCH" {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	var answer map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil && !errors.Is(err, io.EOF) {
		return resp.StatusCode, nil, fmt.Errorf("%s %s: HTTP %d: %w", method, path, resp.StatusCode, err)
	}
	return resp.StatusCode, answer, nil
}

// Do is Try with the root token; anything but success fails the test. It
// returns the answer's data, or the whole answer where it has none.
func (v *Vault) Do(method, path string, body any) map[string]any {
	v.t.Helper()
	status, answer, err := v.Try(context.Background(), v.RootToken, method, path, body)
	if err != nil {
		v.t.Fatalf("vaulttest: %v", err)
	}
	if status >= 300 {
		v.t.Fatalf("vaulttest: %s %s: HTTP %d: %v", method, path, status, answer["errors"])
	}
	if data, ok := answer["data"].(map[string]any); ok {
		return data
	}
	return answer
}

func (v *Vault) initialise() {
	v.t.Helper()
	answer := v.Do("POST", "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1})
	keys, ok := answer["keys_base64"].([]any)
	if !ok || len(keys) != 1 {
		v.t.Fatal("vaulttest: sys/init returned no key")
	}
	v.unsealKey, _ = keys[0].(string)
	v.RootToken, _ = answer["root_token"].(string)
}

// Unseal unseals the server and waits until it is active.
func (v *Vault) Unseal() {
	v.t.Helper()
	v.Do("POST", "sys/unseal", map[string]any{"key": v.unsealKey})
	v.wait("the server to be active", func(ctx context.Context) bool {
		status, _, err := v.Try(ctx, "", "GET", "sys/health", nil)
		return err == nil && status == http.StatusOK
	})
}

// Seal seals the server: it answers 503 until Unseal.
func (v *Vault) Seal() {
	v.t.Helper()
	v.Do("POST", "sys/seal", nil)
}

// waitForKV waits until a new KV v2 engine has finished preparing itself, which it does in the background.
func (v *Vault) waitForKV(mount string) {
	v.t.Helper()
	v.wait("the KV engine at "+mount, func(ctx context.Context) bool {
		status, _, err := v.Try(ctx, v.RootToken, "GET", mount+"/config", nil)
		return err == nil && status == http.StatusOK
	})
}

// wait polls until a condition holds and fails the test if that takes too long.
func (v *Vault) wait(what string, holds func(context.Context) bool) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			v.t.Fatalf("vaulttest: waited %v for %s", startTimeout, what)
		}
	}
}

// Mount enables a secrets engine, such as Mount("legacy", "kv", map[string]string{"version": "1"}).
func (v *Vault) Mount(path, kind string, options map[string]string) {
	v.t.Helper()
	v.Do("POST", "sys/mounts/"+path, map[string]any{"type": kind, "options": options})
	if kind == "kv" && options["version"] == "2" {
		v.waitForKV(path)
	}
}

// EnableAuth enables an auth method (approle, cert, jwt, kubernetes, userpass) at a path.
func (v *Vault) EnableAuth(path, kind string) {
	v.t.Helper()
	v.Do("POST", "sys/auth/"+path, map[string]any{"type": kind})
}

// Policy writes an ACL policy, in HCL.
func (v *Vault) Policy(name, rules string) {
	v.t.Helper()
	v.Do("PUT", "sys/policies/acl/"+name, map[string]any{"policy": rules})
}

// TokenOptions describe a token to mint; zero values are Vault's defaults.
type TokenOptions struct {
	Policies  []string
	TTL       time.Duration
	MaxTTL    time.Duration // explicit_max_ttl
	Period    time.Duration
	Batch     bool
	NoDefault bool // without the default policy: it may not even look itself up
	Fixed     bool // not renewable
}

// Token mints an orphan token.
func (v *Vault) Token(opts TokenOptions) string {
	v.t.Helper()
	body := map[string]any{"no_default_policy": opts.NoDefault, "renewable": !opts.Fixed && !opts.Batch}
	if opts.Policies != nil {
		body["policies"] = opts.Policies
	}
	for name, d := range map[string]time.Duration{"ttl": opts.TTL, "explicit_max_ttl": opts.MaxTTL, "period": opts.Period} {
		if d != 0 {
			body[name] = fmt.Sprintf("%dms", d.Milliseconds())
		}
	}
	if opts.Batch {
		body["type"] = "batch"
	}
	answer := v.Do("POST", "auth/token/create-orphan", body)
	auth, _ := answer["auth"].(map[string]any)
	token, _ := auth["client_token"].(string)
	if token == "" {
		v.t.Fatal("vaulttest: no token in the answer")
	}
	return token
}

// RevokeToken revokes a token with everything below it.
func (v *Vault) RevokeToken(token string) {
	v.t.Helper()
	v.Do("POST", "auth/token/revoke", map[string]any{"token": token})
}

// RevokeLogins revokes every token that an auth method has given out.
func (v *Vault) RevokeLogins(authPath string) {
	v.t.Helper()
	v.Do("PUT", "sys/leases/revoke-prefix/auth/"+authPath, nil)
}

// KVPut writes a new version of a KV v2 secret as `vault kv put` does and
// returns its number. The path starts with the mount: "secret/app/key".
func (v *Vault) KVPut(path string, fields map[string]string) int {
	v.t.Helper()
	return version(v.Do("PUT", kvPath(path, "data"), map[string]any{"data": fields, "options": map[string]any{}}))
}

// KVPatch replaces some fields of a KV v2 secret and returns the new version's number.
func (v *Vault) KVPatch(path string, fields map[string]string) int {
	v.t.Helper()
	return version(v.Do("PATCH", kvPath(path, "data"), map[string]any{"data": fields}))
}

// KVDelete soft-deletes the newest version.
func (v *Vault) KVDelete(path string) {
	v.t.Helper()
	v.Do("DELETE", kvPath(path, "data"), nil)
}

// KVDestroy destroys versions.
func (v *Vault) KVDestroy(path string, versions ...int) {
	v.t.Helper()
	v.Do("PUT", kvPath(path, "destroy"), map[string]any{"versions": versions})
}

// KVRemove deletes a path with its metadata; numbering then starts at 1 again.
func (v *Vault) KVRemove(path string) {
	v.t.Helper()
	v.Do("DELETE", kvPath(path, "metadata"), nil)
}

func kvPath(path, kind string) string {
	mount, rest, _ := strings.Cut(path, "/")
	return mount + "/" + kind + "/" + rest
}

func version(data map[string]any) int {
	n, _ := data["version"].(float64)
	return int(n)
}

// CLI runs Vault's own command line client with the root token and returns what
// it printed; failing fails the test.
func (v *Vault) CLI(stdin string, args ...string) string {
	v.t.Helper()
	cmd := exec.Command(v.binary, args...)
	cmd.Dir = v.dir
	cmd.Env = []string{
		"HOME=" + v.dir, "PATH=" + os.Getenv("PATH"),
		"VAULT_ADDR=" + v.Address, "VAULT_TOKEN=" + v.RootToken, "VAULT_CACERT=" + v.CAFile,
	}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		v.t.Fatalf("vaulttest: vault %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
