package e2e_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
	issuers "github.com/postern-proxy/postern/agent/issuer/fake"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider/fake"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/test/e2e/e2etest"
)

// manager is a running `postern server`, and a client of it.
type manager struct {
	w    *world
	cmd  *exec.Cmd
	done chan struct{}
	log  *agenttest.Buffer
	url  string
	http *http.Client
}

// certificate writes one for 127.0.0.1 beside its key.
func (w *world) certificate() *x509.CertPool {
	w.T.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.T.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		w.T.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.T.Fatal(err)
	}
	e2etest.Write(w.T, w.Path("server.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	e2etest.Write(w.T, w.Path("server.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		w.T.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return pool
}

// manager starts a server on a configuration, its command line behind another
// one's (a tracer's, or a shell's), and waits until it is ready.
func (w *world) manager(file string, roots *x509.CertPool, prefix ...string) *manager {
	w.T.Helper()
	m := &manager{w: w, done: make(chan struct{}), log: &agenttest.Buffer{}}
	args := slices.Concat(prefix, []string{agenttest.Binary(w.T), "server", "-c", file})
	m.cmd = exec.Command(args[0], args[1:]...)
	m.cmd.Env, m.cmd.Stderr, m.cmd.Stdout = agenttest.Env(w.Dir), m.log, m.log
	if err := m.cmd.Start(); err != nil {
		w.T.Fatal(err)
	}
	go func() {
		m.cmd.Wait()
		close(m.done)
	}()
	w.T.Cleanup(func() {
		m.cmd.Process.Kill()
		<-m.done
		w.Clean("the server's log", []byte(m.log.String()))
		if w.T.Failed() {
			w.T.Logf("the server's log:\n%s", m.log.Tail(16<<10))
		}
	})
	agenttest.Eventually(w.T, 20*time.Second, "the server serves", func() bool {
		for line := range strings.Lines(m.log.String()) {
			var e struct{ Msg, Server string }
			if json.Unmarshal([]byte(line), &e) == nil && e.Msg == "serving" {
				m.url = "https://" + e.Server
			}
		}
		return m.url != ""
	})
	m.http = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	w.T.Cleanup(m.http.CloseIdleConnections)
	agenttest.Eventually(w.T, 20*time.Second, "the server is ready", func() bool {
		status, _ := m.ask("", "GET", "/readyz", "")
		return status == http.StatusOK
	})
	return m
}

// server starts a server without issuers on a Vault.
func (w *world) server(st *vaultStore, op *console, providers ...*provider) *manager {
	w.T.Helper()
	file, roots := w.serverConfig(st, op, "", providers...)
	return w.manager(file, roots)
}

// serverConfig writes a server's configuration, with lines of the caller's; it
// has the rights of its role. The roots are those of its certificate.
func (w *world) serverConfig(st *vaultStore, op *console, more string, providers ...*provider) (file string, roots *x509.CertPool) {
	w.T.Helper()
	st.Policy("server", op.must("", "policy", "--role", "server"))
	st.Do("POST", "auth/approle/role/server", map[string]any{"token_policies": "server", "token_ttl": "1h"})
	role, _ := st.Do("GET", "auth/approle/role/server/role-id", nil)["role_id"].(string)
	id, _ := st.Do("POST", "auth/approle/role/server/secret-id", nil)["secret_id"].(string)
	e2etest.Write(w.T, w.Path("server-secret-id"), id+"\n")
	var entries []string
	for _, p := range providers {
		entries = append(entries, p.Entry(""))
	}
	roots, file = w.certificate(), w.Path("server.yaml")
	e2etest.Write(w.T, file, fmt.Sprintf(`version: 1
environment: staging
server: {listen: "127.0.0.1:0", cert_file: server.crt, key_file: server.key}
store: %s
providers: [%s]
%s
`, st.With(fmt.Sprintf("approle: {role_id: %s, secret_id_file: server-secret-id}", role)), strings.Join(entries, ", "), more))
	return file, roots
}

// vendor is where a server makes keys of OpenAI's, which are then live at the
// providers given; the line is for the server's configuration.
func (w *world) vendor(st *vaultStore, providers ...*provider) (v *issuers.Server, line string) {
	w.T.Helper()
	admin := w.Secret("sk-admin-" + rand.Text() + rand.Text())
	v, err := issuers.New(issuers.Options{
		Kind: "openai", Admin: admin,
		OnIssue: func(_, key string) {
			w.Secret(key)
			for _, p := range providers {
				p.Allow(key)
			}
		},
		OnRevoke: func(_, key string) {
			for _, p := range providers {
				p.Revoke(key)
			}
		},
	})
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { v.Close() })
	e2etest.Write(w.T, w.Path("vendor.pem"), string(v.CAPEM()))
	st.KVPut("secret/postern/issuers/staging/openai", map[string]string{"api_key": admin})
	return v, fmt.Sprintf("issuers: [{provider: openai, kind: openai, project: proj_test, admin_key: issuers/openai, base_url: %q, ca_file: vendor.pem}]", v.URL())
}

// ask sends a request with a Vault token; no answer may hold a secret.
func (m *manager) ask(token, method, path, body string, header ...string) (int, []byte) {
	m.w.T.Helper()
	req, err := http.NewRequest(method, m.url+path, strings.NewReader(body))
	if err != nil {
		m.w.T.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := m.http.Do(req)
	if err != nil {
		m.w.T.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		m.w.T.Fatal(err)
	}
	m.w.Clean(method+" "+path, b)
	return resp.StatusCode, b
}

// A key that a server makes at the provider, for two agents under load: it is
// asked for over HTTP at two servers, one of them is killed, the other one goes on,
// and in the end the old one is gone at the provider.
func TestManagedRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.Vault(vaulttest.Options{})
	first := w.Key()
	st.Put("openai", first)
	p, op := w.duo(st, 100, fake.Options{Keys: []string{first}}, "devops", "security")

	vendor, line := w.vendor(st, p.providers[:]...)
	file, roots := w.serverConfig(st, op, line, p.providers[0])
	one, two := w.manager(file, roots), w.manager(file, roots)
	token := op.token()

	// The body of the documentation creates a key.
	seed := w.Key()
	status, body := one.ask(token, "POST", "/v1/provider-keys", fmt.Sprintf(`{"provider":"openai","api_key":%q,"proxy_id":"px_acme_prod","label":"OpenAI Production"}`, seed))
	if status != http.StatusCreated || !bytes.Contains(body, []byte(`"staging.px_acme_prod.openai"`)) {
		t.Errorf("create: %d %s", status, body)
	}

	// Two requests for one rotation, one at each server: it is one.
	const path = "/v1/provider-keys/staging." + e2etest.ProxyID + ".openai"
	for _, m := range []*manager{one, two} {
		status, body = m.ask(token, "POST", path+"/rotate", `{"managed":true,"reason":"quarterly","grace":"2s"}`, "Idempotency-Key", "q3")
		if status != http.StatusAccepted {
			t.Errorf("rotate: %d %s", status, body)
		}
	}
	agenttest.Eventually(t, 30*time.Second, "a credential is made", func() bool { return len(vendor.Live()) > 0 })
	if e2etest.Long { // the other one takes over once the claim is over
		one.cmd.Process.Kill()
	}
	closed := func(m *manager) (r keys.Rotation) {
		agenttest.Eventually(t, 4*time.Minute, "the rotation is closed", func() bool {
			status, body := m.ask(token, "GET", "/v1/rotations?proxy_id="+e2etest.ProxyID, "")
			var page struct{ Rotations []keys.Rotation }
			if err := json.Unmarshal(body, &page); status != http.StatusOK || err != nil || len(page.Rotations) != 1 {
				t.Fatalf("rotations: %d %v %s", status, err, body)
			}
			r = page.Rotations[0]
			return r.Closed
		})
		return r
	}
	if r := closed(two); r.Phase != rotation.PhaseDone || !r.Managed || r.To != 2 || len(vendor.Live()) != 1 {
		t.Errorf("%+v; %d credentials live at the provider", r, len(vendor.Live()))
	}

	// The next one ends the first one that was made at the provider too.
	one.cmd.Process.Kill()
	made := vendor.Live()[0]
	op.must("", "keys", "rotate", "openai", "--managed", "--now")
	if k, _ := vendor.Find(made.ID); !k.Revoked || len(vendor.Live()) != 1 {
		t.Errorf("the credential that was replaced is live at the provider: %d are", len(vendor.Live()))
	}
	p.end()
	t.Logf("at the provider: %d credentials were made, %d are live", len(vendor.Keys()), len(vendor.Live()))
	w.auditor(st).must("", "audit", "verify")
}
