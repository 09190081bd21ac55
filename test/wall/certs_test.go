package wall_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// Hosts whose TLS is not as it should be; every other host has a good certificate.
const (
	plainHost    = "plain.test"      // speaks HTTP without TLS on every port
	expiredHost  = "expired.test"    // its certificate has ended
	futureHost   = "future.test"     // its certificate has not begun
	otherHost    = "other-name.test" // its certificate is another host's
	strangerHost = "stranger.test"   // signed by an authority that nobody trusts
	selfHost     = "self-signed.test"
	clientHost   = "client-cert.test" // its certificate is for clients only
	oldHost      = "tls11.test"       // speaks TLS 1.1 at most
	h2Host       = "h2.test"          // speaks HTTP/2
)

// authority signs the world's certificates.
type authority struct {
	key      *ecdsa.PrivateKey
	cert     *x509.Certificate
	stranger *x509.Certificate // the same key under a name that nobody trusts
	mu       sync.Mutex
	leaves   map[string]*tls.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, leaves: map[string]*tls.Certificate{}}
	for name, cert := range map[string]**x509.Certificate{"the wall's root": &a.cert, "a stranger": &a.stranger} {
		root := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(24 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		if *cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// config is how a host speaks TLS to a client that calls it name.
func (a *authority) config(host, name string) (*tls.Config, error) {
	if name == "" {
		name = host
	}
	cert, err := a.leaf(host, name)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true}
	switch host {
	case oldHost:
		c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	case h2Host:
		c.NextProtos = []string{"h2"}
	}
	return c, nil
}

func (a *authority) leaf(host, name string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[host+" "+name]; c != nil {
		return c, nil
	}
	now := time.Now()
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	parent := a.cert
	switch host {
	case expiredHost:
		leaf.NotBefore, leaf.NotAfter = now.Add(-48*time.Hour), now.Add(-24*time.Hour)
	case futureHost:
		leaf.NotBefore, leaf.NotAfter = now.Add(24*time.Hour), now.Add(48*time.Hour)
	case otherHost:
		name = "elsewhere.test"
	case strangerHost:
		parent = a.stranger
	case selfHost:
		parent = leaf
	case clientHost:
		leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	if ip := net.ParseIP(name); ip != nil {
		leaf.IPAddresses = []net.IP{ip}
	} else {
		leaf.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, parent, &a.key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
	a.leaves[host+" "+name] = c
	return c, nil
}
