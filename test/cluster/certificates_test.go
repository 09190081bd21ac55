//go:build linux

package cluster_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/test/cluster"
)

// certificates: the injectors find expired ones in their Secret, make others, and
// serve them one after the other; no pod is missed meanwhile.
func (s *stories) certificates(t *testing.T) {
	old := s.served(t)
	s.stream(t, "certificates expired and made anew", func() {
		if _, err := s.TryKubectl(t.Context(), expired(t), "--namespace", system, "patch", "secret", "postern-injector-certs", "--type", "merge", "--patch-file", "/dev/stdin"); err != nil {
			t.Error(err)
			return
		}
		if err := cluster.Within(time.Minute, func() error {
			now := s.served(t)
			if now[0].Equal(old[0]) || !now[0].Equal(now[1]) {
				return fmt.Errorf("one serves %v, the other %v", now[0].NotBefore, now[1].NotBefore)
			}
			return nil
		}); err != nil {
			t.Errorf("no new certificates: %v", err)
			return
		}
		<-time.After(2 * time.Second) // and for a while with them
	}).none(t)
	s.clear(t)
	s.reports(t, "shop", 0)
	bundle := s.Kubectl(t, "get", "mutatingwebhookconfigurations", "postern-injector-"+system, "--output", "jsonpath={.webhooks[*].clientConfig.caBundle}")
	if all := strings.Fields(bundle); len(all) != 4 || all[0] != all[1] || all[0] != all[2] || all[0] != all[3] {
		t.Errorf("%d webhooks have a bundle, or not the same one", len(all))
	}
}

// served are the certificates of the two injectors, as a client meets them.
func (s *stories) served(t *testing.T) (out []*x509.Certificate) {
	t.Helper()
	for _, p := range s.podsOf(t, system, injectors) {
		if p.Metadata.DeletionTimestamp != "" {
			continue
		}
		conn, err := s.Dial(t.Context(), "tcp", net.JoinHostPort(p.Status.PodIP, "8443"))
		if err != nil {
			t.Fatal(err)
		}
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // which one it is, is the question
		if err := client.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		out = append(out, client.ConnectionState().PeerCertificates[0])
		client.Close()
	}
	if len(out) != 2 {
		t.Fatalf("%d injectors", len(out))
	}
	return out
}

// expired is a patch of the Secret: a CA and a certificate, both over since yesterday.
func expired(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "expired"}, NotBefore: time.Now().AddDate(-2, 0, 0), NotAfter: time.Now().AddDate(0, 0, -1),
		DNSNames: []string{"postern-injector-0." + system + ".svc", "postern-injector-1." + system + ".svc"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, private := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
	patch, err := json.Marshal(map[string]any{"data": map[string][]byte{
		"ca.crt": certificate, "ca.key": private, "ca-old.crt": {}, "tls.crt": certificate, "tls.key": private,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(patch)
}
