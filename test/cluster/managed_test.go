//go:build linux

package cluster_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/agenttest"
	issuers "github.com/postern-proxy/postern/agent/issuer/fake"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/test/cluster"
)

const (
	adminKey   = "sk-admin-0123456789abcdefghijklmnopqrstuvwxyz"
	servers    = "app.kubernetes.io/name=postern-server"
	serverName = "postern-server." + system + ".svc"
)

// serverValues are the chart's for a server, after what these need is there.
func (s *stories) serverValues(t *testing.T) string {
	t.Helper()
	certificate, err := s.CA.Server(serverName)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": map[string]string{"name": "server-tls", "namespace": system},
		"stringData": map[string]string{
			"tls.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})),
			"tls.key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]string{"name": "vault-ca", "namespace": system}, "data": map[string]string{"ca.crt": string(s.CA.PEM)},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Apply(t, string(secret)+"\n---\n"+string(roots))
	policy, err := s.Command(t.Context(), agenttest.Binary(t), "policy", "--role", "server", "--environment", "prod").Output()
	if err != nil {
		t.Fatal(err)
	}
	s.vault.Policy(t, "postern-server", string(policy))
	s.vault.Role(t, "postern-server", system, "postern-server", "postern-server")
	s.vault.KVPut(t, "postern/issuers/prod/openai", map[string]string{"api_key": adminKey})
	return `server:
  enabled: true
  tlsSecret: server-tls
  caConfigMap: vault-ca
  providers: [{name: openai, ca_file: /etc/postern/vault-ca/ca.crt}]
  issuers: [{provider: openai, kind: openai, project: proj_test, admin_key: issuers/openai, ca_file: /etc/postern/vault-ca/ca.crt}]
`
}

// ask sends a request of an operator to one server.
func (s *stories) ask(t *testing.T, p pod, method, path, body string, into any) int {
	t.Helper()
	transport := s.client.Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return s.Dial(ctx, network, net.JoinHostPort(p.Status.PodIP, "8702"))
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: transport}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+serverName+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.vault.RootToken)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", "quarter")
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(answer), s.key) || strings.Contains(string(answer), adminKey) {
		t.Errorf("%s %s: a key stands in the answer", method, path)
	}
	if resp.StatusCode >= 300 || into != nil && json.Unmarshal(answer, into) != nil {
		t.Fatalf("%s %s: HTTP %d: %s", method, path, resp.StatusCode, answer)
	}
	return resp.StatusCode
}

// managed: a rotation that is asked for at both servers is done once, by them,
// with a key that they have made at the provider; the agents use it, and no
// request fails.
func (s *stories) managed(t *testing.T) {
	vendor, err := issuers.New(issuers.Options{Kind: "openai", Admin: adminKey, OnIssue: func(_, key string) { s.provider.Allow(key) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vendor.Close() })
	s.provider.Manage(vendor)
	both := s.podsOf(t, system, servers)
	if len(both) != 2 {
		t.Fatalf("%d servers, want 2", len(both))
	}
	before := s.podsOf(t, "shop", runningPods)
	const path = "/v1/provider-keys/prod.px_shop_checkout.openai/rotate"
	for _, p := range both {
		if status := s.ask(t, p, "POST", path, `{"managed": true, "reason": "quarterly", "grace": "3s"}`, nil); status != http.StatusAccepted {
			t.Errorf("HTTP %d", status)
		}
	}
	if err := cluster.Within(time.Minute, func() error {
		if len(vendor.Live()) == 0 {
			return fmt.Errorf("no credential was made: %+v", vendor.Requests())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	made := vendor.Live()[0]
	s.taken(t, made.Created, made.Value, 30*time.Second)
	var page struct{ Rotations []keys.Rotation }
	if err := cluster.Within(2*time.Minute, func() error {
		s.ask(t, both[1], "GET", "/v1/rotations?proxy_id=px_shop_checkout", "", &page)
		if len(page.Rotations) != 1 || !page.Rotations[0].Closed {
			return fmt.Errorf("%+v", page.Rotations)
		}
		return nil
	}); err != nil {
		t.Fatalf("the rotation is not closed: %v", err)
	}
	if r := page.Rotations[0]; r.Phase != rotation.PhaseDone || !r.Managed || len(vendor.Keys()) != 1 {
		t.Errorf("%+v; %d credentials were made", r, len(vendor.Keys()))
	}
	fmt.Printf("managed rotation: asked for at %d servers, %d credential made, closed %v later\n", len(both), len(vendor.Keys()), time.Since(made.Created).Round(time.Second))
	untouched(t, before, s.podsOf(t, "shop", runningPods))
	s.noKey(t, firstKey, secondKey, made.Value, adminKey)
}
