package vault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	"github.com/postern-proxy/postern/agent/store"
)

const key = "provider-keys/prod/px_test/openai"

// identity is one way to log in, prepared on a real server.
type identity struct {
	auth Auth
	// rotate replaces the credential: the old one stops working, the new one lies in the files.
	rotate func()
	// revoke makes Vault forget the tokens that it gave out.
	revoke func()
}

func TestEveryMethodLogsInAndReadsItsFilesAgain(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T, *vaulttest.Vault) identity{
		"approle":    prepareAppRole,
		"jwt":        prepareJWT,
		"kubernetes": prepareKubernetes,
		"cert":       prepareCert,
		"token":      prepareTokenFile,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := vaulttest.Start(t, vaulttest.Options{TLS: name == "cert"})
			v.KVPut("secret/postern/"+key, map[string]string{"api_key": "the first value"})
			id := prepare(t, v)
			s := open(t, Config{Address: v.Address, CAFile: v.CAFile, Auth: id.auth}, quick())
			mustRead(t, s, key, "the first value")
			if name != "token" {
				if who, err := s.Identity(t.Context()); err != nil || who.EntityID == "" || who.Expires.IsZero() {
					t.Errorf("identity %+v, %v", who, err)
				}
			}

			id.rotate()
			id.revoke()
			eventually(t, "the new credential to be used", func() bool {
				got, err := read(t, s, key)
				return err == nil && got == "the first value"
			})
		})
	}
}

func prepareAppRole(t *testing.T, v *vaulttest.Vault) identity {
	a := appRole(t, v, nil)
	return identity{
		auth: Auth{AppRole: a},
		rotate: func() {
			v.Do("POST", "auth/approle/role/agent/secret-id/destroy", map[string]any{"secret_id": contents(t, a.SecretIDFile)})
			fresh, _ := v.Do("POST", "auth/approle/role/agent/secret-id", nil)["secret_id"].(string)
			rewrite(t, a.SecretIDFile, fresh)
		},
		revoke: func() { v.RevokeLogins("approle/login") },
	}
}

func contents(t *testing.T, file string) string {
	t.Helper()
	b, err := readCredential(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func prepareJWT(t *testing.T, v *vaulttest.Vault) identity {
	v.Policy("postern", policy)
	v.EnableAuth("ci/jwt", "jwt")
	v.Do("POST", "sys/auth/ci/jwt/tune", map[string]any{"description": "a mount with a slash"})
	a := &JWTAuth{Mount: "ci/jwt", Role: "agent", TokenFile: filepath.Join(t.TempDir(), "jwt")}
	issue := func() {
		signing, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		public, err := x509.MarshalPKIXPublicKey(&signing.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		v.Do("POST", "auth/ci/jwt/config", map[string]any{
			"jwt_validation_pubkeys": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		})
		rewrite(t, a.TokenFile, signJWT(t, signing, map[string]any{"sub": "agent", "aud": []string{"vault"}, "exp": time.Now().Add(time.Hour).Unix()}))
	}
	issue()
	v.Do("POST", "auth/ci/jwt/role/agent", map[string]any{
		"role_type": "jwt", "bound_audiences": "vault", "user_claim": "sub", "token_policies": "postern",
	})
	return identity{auth: Auth{JWT: a}, rotate: issue, revoke: func() { v.RevokeLogins("ci/jwt/login") }}
}

// signJWT makes a token with an ES256 signature.
func signJWT(t *testing.T, signing *ecdsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	claims["iat"] = time.Now().Add(-time.Minute).Unix()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, signing, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + encode(signature)
}

// prepareKubernetes runs Vault's Kubernetes auth method against a server that
// answers TokenReviews as the API server does; it accepts the newest token only.
func prepareKubernetes(t *testing.T, v *vaulttest.Vault) identity {
	v.Policy("postern", policy)
	v.EnableAuth("kubernetes", "kubernetes")
	a := &KubernetesAuth{Role: "agent", TokenFile: filepath.Join(t.TempDir(), "token")}
	signing, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Pointer[string]
	account := "agent"
	issue := func() {
		token := signJWT(t, signing, map[string]any{
			"sub": "system:serviceaccount:shop:" + account, "aud": []string{"vault"}, "exp": time.Now().Add(time.Hour).Unix(), "jti": fmt.Sprint(time.Now().UnixNano()),
			"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": account, "uid": "uid-1"}},
		})
		accepted.Store(&token)
		rewrite(t, a.TokenFile, token)
	}
	issue()
	cluster := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			Spec struct{ Token string } `json:"spec"`
		}
		_ = json.NewDecoder(r.Body).Decode(&review)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
			"status": map[string]any{
				"authenticated": review.Spec.Token == *accepted.Load(),
				"audiences":     []string{"vault"},
				"user":          map[string]any{"username": "system:serviceaccount:shop:" + account, "uid": "uid-1", "groups": []string{"system:serviceaccounts"}},
			},
		})
	}))
	t.Cleanup(cluster.Close)
	v.Do("POST", "auth/kubernetes/config", map[string]any{
		"kubernetes_host": cluster.URL, "disable_local_ca_jwt": true, "token_reviewer_jwt": "reviewer",
	})
	v.Do("POST", "auth/kubernetes/role/agent", map[string]any{
		"bound_service_account_names": "agent", "bound_service_account_namespaces": "shop", "audience": "vault", "token_policies": "postern",
	})
	v.Do("POST", "auth/kubernetes/role/others", map[string]any{
		"bound_service_account_names": "other", "bound_service_account_namespaces": "shop", "audience": "vault", "token_policies": "postern",
	})
	return identity{auth: Auth{Kubernetes: a}, rotate: issue, revoke: func() { v.RevokeLogins("kubernetes/login") }}
}

func prepareCert(t *testing.T, v *vaulttest.Vault) identity {
	v.Policy("postern", policy)
	v.EnableAuth("cert", "cert")
	dir := t.TempDir()
	a := &CertAuth{Role: "agent", CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	ca := vaulttest.NewCA(t)
	issue := func(name string) {
		ca.IssueClient(t, name, a.CertFile, a.KeyFile)
		v.Do("POST", "auth/cert/certs/agent", map[string]any{
			"certificate": string(ca.PEM()), "allowed_common_names": name, "token_policies": "postern",
		})
	}
	issue("agent-1")
	return identity{auth: Auth{Cert: a}, rotate: func() { issue("agent-2") }, revoke: func() { v.RevokeLogins("cert/login") }}
}

// prepareTokenFile uses tokens without the default policy: they may not look
// themselves up nor renew themselves.
func prepareTokenFile(t *testing.T, v *vaulttest.Vault) identity {
	v.Policy("postern", policy)
	mint := func() string {
		return v.Token(vaulttest.TokenOptions{Policies: []string{"postern"}, NoDefault: true, TTL: time.Hour})
	}
	old := mint()
	a := &TokenAuth{File: file(t, "token", old+"\n")}
	return identity{
		auth:   Auth{Token: a},
		rotate: func() { rewrite(t, a.File, mint()) },
		revoke: func() { v.RevokeToken(old) },
	}
}

func TestARefusedLoginNamesTheSetting(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	role := appRole(t, v, nil)
	jwt := prepareJWT(t, v)
	kube := prepareKubernetes(t, v)
	stale := file(t, "stale", contents(t, kube.auth.Kubernetes.TokenFile))
	kube.rotate()
	empty := file(t, "empty", "\n")
	for name, c := range map[string]struct {
		auth Auth
		want string
	}{
		"kubernetes role": {Auth{Kubernetes: &KubernetesAuth{Role: "typo", TokenFile: kube.auth.Kubernetes.TokenFile}},
			`store.vault.auth.kubernetes.role "typo" is no role`},
		"kubernetes service account": {Auth{Kubernetes: &KubernetesAuth{Role: "others", TokenFile: kube.auth.Kubernetes.TokenFile}},
			`store.vault.auth.kubernetes.role "others" is not for this ServiceAccount`},
		"kubernetes mount": {Auth{Kubernetes: &KubernetesAuth{Mount: "typo", Role: "agent", TokenFile: kube.auth.Kubernetes.TokenFile}},
			"store.vault.auth.kubernetes.mount"},
		"kubernetes token": {Auth{Kubernetes: &KubernetesAuth{Role: "agent", TokenFile: stale}},
			"store.vault.auth.kubernetes.token_file"},
		"kubernetes no token": {Auth{Kubernetes: &KubernetesAuth{Role: "agent", TokenFile: "/nowhere/token"}},
			"store.vault.auth.kubernetes.token_file: open /nowhere/token"},
		"jwt role": {Auth{JWT: &JWTAuth{Mount: "ci/jwt", Role: "typo", TokenFile: jwt.auth.JWT.TokenFile}},
			`store.vault.auth.jwt.role "typo" is no role`},
		"jwt token": {Auth{JWT: &JWTAuth{Mount: "ci/jwt", Role: "agent", TokenFile: kube.auth.Kubernetes.TokenFile}},
			"store.vault.auth.jwt.token_file"},
		"approle role id": {Auth{AppRole: &AppRoleAuth{RoleID: "typo", SecretIDFile: role.SecretIDFile}},
			"store.vault.auth.approle.role_id is unknown"},
		"approle secret id": {Auth{AppRole: &AppRoleAuth{RoleID: role.RoleID, SecretIDFile: jwt.auth.JWT.TokenFile}},
			"store.vault.auth.approle.secret_id_file"},
		"approle empty file": {Auth{AppRole: &AppRoleAuth{RoleID: role.RoleID, SecretIDFile: empty}},
			"store.vault.auth.approle.secret_id_file: " + empty + " is empty"},
		"token": {Auth{Token: &TokenAuth{File: file(t, "token", "hvs.bogus")}},
			"store.vault.auth.token.file: it expired or was revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			log := &logbook{}
			opts := quick()
			opts.Logger = log.logger()
			s := open(t, Config{Address: v.Address, Auth: c.auth}, opts)
			err := s.Login(t.Context())
			if !errors.Is(err, store.ErrUnauthenticated) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want ErrUnauthenticated and %q", err, c.want)
			}
			if _, err := read(t, s, key); !errors.Is(err, store.ErrUnauthenticated) || !strings.Contains(err.Error(), key) {
				t.Errorf("a read fails with %v", err)
			}
			if log.count("level=ERROR") != 1 {
				t.Errorf("log:\n%s", log.text.String())
			}
		})
	}
}

func TestAnOperatorsTokenThatIsRefused(t *testing.T) {
	v := vaulttest.Start(t, vaulttest.Options{})
	s := open(t, withToken(t, v.Address, "hvs.bogus"), quick())
	if err := s.Login(t.Context()); !errors.Is(err, store.ErrUnauthenticated) || !strings.Contains(err.Error(), "VAULT_TOKEN") {
		t.Errorf("error %v", err)
	}
	s = open(t, withToken(t, v.Address, v.RootToken), quick())
	who, err := s.Identity(t.Context())
	if err != nil || who.DisplayName != "root" || !who.Expires.IsZero() || len(who.Policies) != 1 {
		t.Errorf("identity %+v, %v", who, err)
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	token := &TokenAuth{File: "/nowhere"}
	ok := Auth{Token: token}
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"no address":        {Config{Auth: ok}, "store.vault.address"},
		"no scheme":         {Config{Address: "vault.example:8200", Auth: ok}, "store.vault.address"},
		"other scheme":      {Config{Address: "unix:///run/vault.sock", Auth: ok}, "store.vault.address"},
		"user in it":        {Config{Address: "https://user:pw@vault.example", Auth: ok}, "store.vault.address"},
		"query in it":       {Config{Address: "https://vault.example?x=y", Auth: ok}, "store.vault.address"},
		"mount":             {Config{Address: "https://vault.example", Mount: "a/../b", Auth: ok}, "store.vault.mount"},
		"prefix":            {Config{Address: "https://vault.example", Prefix: "a//b", Auth: ok}, "store.vault.prefix"},
		"namespace":         {Config{Address: "https://vault.example", Namespace: "a\nb", Auth: ok}, "store.vault.namespace"},
		"no auth":           {Config{Address: "https://vault.example"}, "exactly one of"},
		"two":               {Config{Address: "https://vault.example", Auth: Auth{Token: token, AppRole: &AppRoleAuth{}}}, "exactly one of"},
		"kubernetes role":   {Config{Address: "https://vault.example", Auth: Auth{Kubernetes: &KubernetesAuth{}}}, "store.vault.auth.kubernetes.role is required"},
		"jwt file":          {Config{Address: "https://vault.example", Auth: Auth{JWT: &JWTAuth{Role: "r"}}}, "store.vault.auth.jwt.token_file is required"},
		"approle secret id": {Config{Address: "https://vault.example", Auth: Auth{AppRole: &AppRoleAuth{RoleID: "r"}}}, "store.vault.auth.approle.secret_id_file is required"},
		"cert key":          {Config{Address: "https://vault.example", Auth: Auth{Cert: &CertAuth{CertFile: "c"}}}, "store.vault.auth.cert.key_file is required"},
		"cert missing":      {Config{Address: "https://vault.example", Auth: Auth{Cert: &CertAuth{CertFile: "/nowhere/c", KeyFile: "/nowhere/k"}}}, "store.vault.auth.cert.cert_file: open /nowhere/c"},
		"token file":        {Config{Address: "https://vault.example", Auth: Auth{Token: &TokenAuth{}}}, "store.vault.auth.token.file is required"},
		"auth mount":        {Config{Address: "https://vault.example", Auth: Auth{JWT: &JWTAuth{Mount: "..", Role: "r", TokenFile: "f"}}}, "store.vault.auth.jwt.mount"},
		"root missing":      {Config{Address: "https://vault.example", CAFile: "/nowhere/ca.pem", Auth: ok}, "store.vault.ca_file: open /nowhere/ca.pem"},
		"root no PEM":       {Config{Address: "https://vault.example", CAFile: file(t, "ca.pem", "no pem"), Auth: ok}, "store.vault.ca_file"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(c.cfg, quick()); !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want ErrInvalid and %q", err, c.want)
			}
		})
	}
}
