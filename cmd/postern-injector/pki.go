package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"time"
)

const (
	caLife, leafLife = 2 * 365 * 24 * time.Hour, 60 * 24 * time.Hour
	// spread is how long a new CA is in every API server's bundle before
	// anything is signed with it.
	spread = 2 * time.Minute
	// farewell is how long a CA stays in the bundle after the last certificate
	// under it was replaced.
	farewell = 24 * time.Hour
	// skew is for clocks that are behind.
	skew = 5 * time.Minute
)

// The Secret's keys.
const (
	keyCA, keyCAKey, keyOld, keyLeaf, keyLeafKey = "ca.crt", "ca.key", "ca-old.crt", "tls.crt", "tls.key"
)

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	pem  []byte
	key  *ecdsa.PrivateKey
}

// usable reports whether a certificate is valid now.
func (p *pair) usable(now time.Time) bool {
	return p != nil && now.After(p.cert.NotBefore) && now.Before(p.cert.NotAfter)
}

// due reports that two thirds of its life are over.
func (p *pair) due(now time.Time) bool {
	return now.After(p.cert.NotBefore.Add(p.cert.NotAfter.Sub(p.cert.NotBefore) * 2 / 3))
}

// pki is what the Secret holds: a CA, the one before it, and a certificate under one of them.
type pki struct {
	ca, leaf *pair
	old      []*x509.Certificate // the newest first
}

// parsePKI reads a Secret. What it does not understand counts as missing: it is made anew.
func parsePKI(data map[string][]byte) pki {
	var p pki
	p.ca, p.leaf = parsePair(data[keyCA], data[keyCAKey]), parsePair(data[keyLeaf], data[keyLeafKey])
	if p.ca != nil && !p.ca.cert.IsCA {
		p.ca = nil
	}
	rest := data[keyOld]
	for len(p.old) < 4 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && c.IsCA {
			p.old = append(p.old, c)
		}
	}
	return p
}

func parsePair(cert, key []byte) *pair {
	both, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil
	}
	private, ok := both.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil
	}
	return &pair{both.Leaf, cert, private}
}

// next is the state that should follow at this moment; changed says whether it
// is another. One step at a time: a CA first, then, once it is trusted
// everywhere, a certificate under it, and at last the old CA goes. Where nothing
// works anyway all is made at once.
func (p pki) next(now time.Time, names []string) (out pki, changed bool, err error) {
	if !p.ca.usable(now) || p.ca.due(now) {
		if p.ca.usable(now) {
			p.old = append([]*x509.Certificate{p.ca.cert}, p.old...)
		}
		if p.ca, err = makeCA(now); err != nil {
			return p, false, err
		}
		changed = true
	}
	trusted := p.leaf.usable(now) && verifies(p.leaf.cert, p.bundle(now), names, now)
	ripe := now.After(p.ca.cert.NotBefore.Add(skew + spread))
	under := trusted && p.leaf.cert.CheckSignatureFrom(p.ca.cert) == nil
	if !trusted || ripe && (!under || p.leaf.due(now)) {
		if p.leaf, err = makeLeaf(now, p.ca, names); err != nil {
			return p, false, err
		}
		changed, under = true, true
	}
	var keep []*x509.Certificate
	for _, c := range p.old {
		gone := under && now.After(p.leaf.cert.NotBefore.Add(skew+farewell))
		if now.Before(c.NotAfter) && !gone {
			keep = append(keep, c)
		}
	}
	changed = changed || len(keep) != len(p.old)
	p.old = keep
	return p, changed, nil
}

// issuer is the CA that signed the certificate.
func (p pki) issuer() *x509.Certificate {
	for _, ca := range append([]*x509.Certificate{p.ca.cert}, p.old...) {
		if p.leaf.cert.CheckSignatureFrom(ca) == nil {
			return ca
		}
	}
	return nil
}

// keep is p with a CA that is still in use, unless p has it.
func (p pki) keep(ca *x509.Certificate) pki {
	if ca == nil || p.ca != nil && ca.Equal(p.ca.cert) || slices.ContainsFunc(p.old, ca.Equal) {
		return p
	}
	p.old = append([]*x509.Certificate{ca}, p.old...)
	return p
}

// bundle is every CA that may have signed what is served.
func (p pki) bundle(now time.Time) []byte {
	var b bytes.Buffer
	if p.ca != nil {
		b.Write(encode("CERTIFICATE", p.ca.cert.Raw))
	}
	for _, c := range p.old {
		if now.Before(c.NotAfter) {
			b.Write(encode("CERTIFICATE", c.Raw))
		}
	}
	return b.Bytes()
}

func verifies(leaf *x509.Certificate, bundle []byte, names []string, now time.Time) bool {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, n := range names {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: n, CurrentTime: now}); err != nil {
			return false
		}
	}
	return true
}

// data is the Secret's content.
func (p pki) data() (map[string][]byte, error) {
	out := map[string][]byte{keyCA: p.ca.pem, keyLeaf: p.leaf.pem, keyOld: {}}
	for name, key := range map[string]*ecdsa.PrivateKey{keyCAKey: p.ca.key, keyLeafKey: p.leaf.key} {
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, err
		}
		out[name] = encode("EC PRIVATE KEY", der)
	}
	for _, c := range p.old {
		out[keyOld] = append(out[keyOld], encode("CERTIFICATE", c.Raw)...)
	}
	return out, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func makeCA(now time.Time) (*pair, error) {
	return sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "postern-injector CA " + now.UTC().Format("2006-01-02")}, NotBefore: now.Add(-skew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil)
}

func makeLeaf(now time.Time, ca *pair, names []string) (*pair, error) {
	if len(names) == 0 {
		return nil, errors.New("a certificate needs a name")
	}
	end := now.Add(leafLife)
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	return sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "postern-injector"}, DNSNames: names, NotBefore: now.Add(-skew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}, ca)
}

// sign makes a key and a certificate for it; without a CA it signs itself.
func sign(template *x509.Certificate, ca *pair) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126)); err != nil {
		return nil, err
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &pair{cert, encode("CERTIFICATE", der), key}, nil
}
