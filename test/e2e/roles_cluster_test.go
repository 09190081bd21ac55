package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/roles"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// kubeCluster is a Kubernetes auth method whose API server knows its tokens' owners.
type kubeCluster struct {
	accessor string
	signing  *ecdsa.PrivateKey
}

func (r *realm) cluster() *kubeCluster {
	r.t.Helper()
	k := &kubeCluster{}
	var err error
	if k.signing, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		r.t.Fatal(err)
	}
	apiServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var review struct {
			Spec struct{ Token string } `json:"spec"`
		}
		_ = json.NewDecoder(req.Body).Decode(&review)
		payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(review.Spec.Token+"..", ".")[1])
		var claims struct{ Sub, UID string }
		_ = json.Unmarshal(payload, &claims)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
			"status": map[string]any{"authenticated": true, "audiences": []string{"vault"}, "user": map[string]any{"username": claims.Sub, "uid": claims.UID}},
		})
	}))
	r.t.Cleanup(apiServer.Close)
	r.EnableAuth("kubernetes", "kubernetes")
	r.Do("POST", "auth/kubernetes/config", map[string]any{"kubernetes_host": apiServer.URL, "disable_local_ca_jwt": true, "token_reviewer_jwt": "reviewer"})
	r.Do("POST", "auth/kubernetes/role/agent", map[string]any{
		"bound_service_account_names": "*", "bound_service_account_namespaces": "*", "audience": "vault", "token_policies": "agents", "token_no_default_policy": true,
	})
	mounts := r.Do("GET", "sys/auth", nil)
	mount, _ := mounts["kubernetes/"].(map[string]any)
	if k.accessor, _ = mount["accessor"].(string); k.accessor == "" {
		r.t.Fatalf("no accessor in %v", mounts)
	}
	return k
}

// token is a ServiceAccount's.
func (k *kubeCluster) token(t *testing.T, namespace, account string) string {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	claims, err := json.Marshal(map[string]any{
		"sub": "system:serviceaccount:" + namespace + ":" + account, "uid": "uid-" + namespace + "-" + account, "aud": []string{"vault"},
		"iat": time.Now().Add(-time.Minute).Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": account, "uid": "uid-" + namespace + "-" + account}},
	})
	if err != nil {
		t.Fatal(err)
	}
	signed := encode([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + encode(claims)
	digest := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, k.signing, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	return signed + "." + encode(signature)
}

// One policy serves every namespace and ServiceAccount, each its own proxy id.
func TestRolesOneAgentPolicyForACluster(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	k := r.cluster()
	r.Policy("agents", r.policyOf(roles.Agent, "--accessor", k.accessor))
	accounts := map[string][2]string{ // by proxy id
		"px_shop_checkout": {"shop", "checkout"}, "px_shop_basket": {"shop", "basket"}, "px_billing_checkout": {"billing", "checkout"},
		"px_shop-eu_a.b": {"shop-eu", "a.b"},
	}
	scopes := slices.Sorted(maps.Keys(accounts))
	for _, px := range append(scopes, "px__", "px_") {
		r.seed("prod/"+px+"/", "openai")
		r.seed("staging/"+px+"/", "openai")
	}
	tokens := map[string]string{}
	for px, a := range accounts {
		tokens[px] = r.enter("auth/kubernetes/login", map[string]any{"role": "agent", "jwt": k.token(t, a[0], a[1])})
	}
	// Whoever comes in another way has no such names and nothing at all.
	tokens["nobody"] = r.login("agents-by-approle", r.policyOf(roles.Agent, "--accessor", k.accessor))
	tokens["no entity"] = r.Token(vaulttest.TokenOptions{Policies: []string{"agents"}, NoDefault: true})
	for owner, token := range tokens {
		for _, px := range append(scopes, "px__", "px_") {
			ack := "acks/prod/" + px + "/" + r.entity[token] + "/pod-1"
			body := map[string]any{"data": map[string]string{"agent": "pod-1"}}
			for _, c := range []roleCall{
				{"GET", "data/provider-keys/prod/" + px + "/openai", nil, false},
				{"GET", "metadata/provider-keys/prod/" + px + "/openai", nil, false},
				{"GET", "data/rotations/prod/" + px + "/openai", nil, false},
				{"POST", "data/halts/prod/" + px + "/openai-2", kvData(map[string]string{"reason": "r"}, 0), false},
				{"POST", "data/" + ack, body, false}, {"POST", "data/" + ack, body, false}, {"DELETE", "metadata/" + ack, nil, false},
			} {
				if r.entity[token] == "" && strings.Contains(c.path, "/acks/") {
					continue
				}
				if got := r.send(token, c); (got == http.StatusForbidden) != (px != owner) {
					t.Errorf("%s: %s %s: %d", owner, c.method, c.path, got)
				}
			}
			for _, path := range []string{"data/provider-keys/staging/" + px + "/openai", "data/acks/prod/" + px + "/some-entity/some-agent"} {
				if got := r.send(token, roleCall{"GET", path, nil, false}); got != http.StatusForbidden {
					t.Errorf("%s: GET %s: %d", owner, path, got)
				}
			}
		}
	}
}

// What lies outside the layout can be read by those whose configuration names it,
// and no lease of anything else can be touched.
func TestRolesLeases(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	r.Mount("engine", "kv", map[string]string{"version": "1", "leased_passthrough": "true"})
	for _, name := range []string{"shop", "shop-2"} {
		r.Do("PUT", "engine/creds/"+name, map[string]any{"api_key": "sk", "ttl": "1h"})
	}
	lease := func(token, name string) (status int, id string) {
		status, answer, err := r.Try(t.Context(), token, "GET", "engine/creds/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		id, _ = answer["lease_id"].(string)
		return status, id
	}
	dir := t.TempDir()
	e2etest.Write(t, dir+"/postern.yaml", `
version: 1
environment: prod
proxy_id: px_acme
store: {vault: {address: "https://vault.test"}}
providers: [{name: openai, vault_path: engine/creds/shop}]
server: {cert_file: cert.pem, key_file: key.pem}
issuers: [{provider: openai, kind: vault, path: engine/creds/shop}]
`)
	for role, ends := range map[roles.Role]bool{roles.Agent: false, roles.Server: true} {
		token := r.login(string(role), r.policyOf(role, "-c", dir+"/postern.yaml"))
		status, own := lease(token, "shop")
		if status != http.StatusOK || own == "" {
			t.Fatalf("%s: %d, lease %q", role, status, own)
		}
		if status, _ := lease(token, "shop-2"); status != http.StatusForbidden {
			t.Errorf("%s reads another engine's path: %d", role, status)
		}
		_, foreign := lease(r.RootToken, "shop-2")
		for _, c := range []struct {
			path, lease string
			allowed     bool
		}{
			{"sys/leases/renew", own, true}, {"sys/leases/renew", foreign, false},
			{"sys/leases/revoke", foreign, false}, {"sys/leases/revoke/" + own, "", false}, {"sys/leases/revoke-prefix/engine", "", false},
			{"sys/leases/revoke", own, ends},
		} {
			body := map[string]any{"sync": true, "lease_id": c.lease}
			if strings.HasSuffix(c.path, "renew") {
				body = map[string]any{"increment": 600, "lease_id": c.lease}
			}
			status, answer, err := r.Try(t.Context(), token, "PUT", c.path, body)
			if err != nil {
				t.Fatal(err)
			}
			if want := c.allowed; (status < 300) != want || !want && status != http.StatusForbidden {
				t.Errorf("%s: %s of %q: %d %v", role, c.path, c.lease, status, answer["errors"])
			}
		}
	}
}
