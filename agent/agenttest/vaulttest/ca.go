package vaulttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a certificate authority of one test.
type CA struct {
	File string // its certificate, PEM

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority whose certificate lies in the test's own folder.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{key: newKey(t)}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "vaulttest CA"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der := ca.sign(t, template, &ca.key.PublicKey)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("vaulttest: %v", err)
	}
	ca.cert = cert
	ca.File = filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, ca.File, "CERTIFICATE", der)
	return ca
}

// PEM is the authority's certificate.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// IssueClient writes a client certificate for a name, and its key.
func (ca *CA) IssueClient(t testing.TB, name, certFile, keyFile string) {
	t.Helper()
	ca.issue(t, &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, certFile, keyFile)
}

// issueServer writes server.pem and server.key for the loopback addresses into a folder.
func (ca *CA) issueServer(t testing.TB, dir string) {
	t.Helper()
	ca.issue(t, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}, filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"))
}

func (ca *CA) issue(t testing.TB, template *x509.Certificate, certFile, keyFile string) {
	t.Helper()
	key := newKey(t)
	writePEM(t, certFile, "CERTIFICATE", ca.sign(t, template, &key.PublicKey))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatalf("vaulttest: %v", err)
	}
	writePEM(t, keyFile, "PRIVATE KEY", der)
}

func (ca *CA) sign(t testing.TB, template *x509.Certificate, public *ecdsa.PublicKey) []byte {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatalf("vaulttest: %v", err)
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = time.Now().Add(24 * time.Hour)
	parent := ca.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca.key)
	if err != nil {
		t.Fatalf("vaulttest: %v", err)
	}
	return der
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("vaulttest: %v", err)
	}
	return key
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatalf("vaulttest: %v", err)
	}
}
