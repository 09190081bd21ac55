package mitm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"time"
)

const (
	caLife    = 365 * 24 * time.Hour
	caRenew   = 30 * 24 * time.Hour // a CA with less left is not taken over
	leafLife  = 7 * 24 * time.Hour
	backdated = time.Hour // for clients whose clock is behind
)

// issuer is one CA certificate with its key. It never changes.
type issuer struct {
	names names
	cert  *x509.Certificate
	pem   []byte
	key   *ecdsa.PrivateKey
}

func newKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// newIssuer signs a CA certificate for the names. Its subject and key id follow
// from the key: every certificate of one key verifies what any of them issued.
func newIssuer(n names, key *ecdsa.PrivateKey, now time.Time, random io.Reader) (*issuer, error) {
	serial, err := newSerial(random)
	if err != nil {
		return nil, err
	}
	id, err := keyID(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	from := now.Add(-backdated).UTC().Truncate(time.Second)
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"postern"}, CommonName: "postern CA " + hex.EncodeToString(id[:6])},
		NotBefore:             from,
		NotAfter:              from.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          id,
		AuthorityKeyId:        id,
	}
	n.constrain(t)
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA: %w", err)
	}
	return loadIssuer(n, key, der)
}

func loadIssuer(n names, key *ecdsa.PrivateKey, der []byte) (*issuer, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &issuer{
		names: n, cert: cert, key: key,
		pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}, nil
}

// serves reports whether this CA can go on for the names: the same constraints,
// no wider, and time left.
func (i *issuer) serves(n names, now time.Time) bool {
	var want x509.Certificate
	n.constrain(&want)
	return sameConstraints(i.cert, &want) && !now.Before(i.cert.NotBefore) && now.Add(caRenew).Before(i.cert.NotAfter)
}

// mint signs a leaf for one name of names.canonical.
func (i *issuer) mint(name string, ip netip.Addr, now time.Time, random io.Reader) (*tls.Certificate, error) {
	if !now.Before(i.cert.NotAfter) {
		return nil, fmt.Errorf("the CA ended on %s: it must be issued again", i.cert.NotAfter.Format(time.DateOnly))
	}
	serial, err := newSerial(random)
	if err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	from := now.Add(-backdated).UTC().Truncate(time.Second)
	if from.Before(i.cert.NotBefore) {
		from = i.cert.NotBefore
	}
	until := from.Add(leafLife)
	if until.After(i.cert.NotAfter) {
		until = i.cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		// No common name: OpenSSL would hold it against the constraints where there is no DNS name.
		Subject:               pkix.Name{Organization: []string{"postern"}},
		NotBefore:             from,
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if ip.IsValid() {
		t.IPAddresses = []net.IP{ip.AsSlice()}
	} else {
		t.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, i.cert, &key.PublicKey, i.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", name, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// newSerial makes a positive number of 128 bits.
func newSerial(random io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("random serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

func keyID(pub *ecdsa.PublicKey) ([]byte, error) {
	b, err := pub.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return sum[:20], nil
}

const keyBlock, certBlock = "PRIVATE KEY", "CERTIFICATE"

// marshal returns key and certificate as PEM, for the state directory alone. The
// caller wipes it.
func (i *issuer) marshal() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		return nil, errors.New("encode the CA's key")
	}
	defer clear(der)
	b := pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})
	defer clear(b)
	return append(append(make([]byte, 0, len(b)+len(i.pem)), b...), i.pem...), nil
}

// unmarshal reads what marshal wrote. Its errors say nothing of the content.
func unmarshal(n names, data []byte) (*issuer, error) {
	first, rest := pem.Decode(data)
	second, _ := pem.Decode(rest)
	if first == nil || second == nil || first.Type != keyBlock || second.Type != certBlock {
		return nil, errors.New("does not hold a key and a certificate")
	}
	defer clear(first.Bytes)
	k, err := x509.ParsePKCS8PrivateKey(first.Bytes)
	key, ok := k.(*ecdsa.PrivateKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("does not hold an ECDSA P-256 key")
	}
	i, err := loadIssuer(n, key, second.Bytes)
	if err != nil || !key.PublicKey.Equal(i.cert.PublicKey) || !i.cert.IsCA || i.cert.CheckSignatureFrom(i.cert) != nil {
		wipe(key)
		return nil, errors.New("its certificate is not the CA of its key")
	}
	return i, nil
}

// wipe overwrites a key as far as it can be reached: crypto/ecdsa may hold a copy of its own.
func wipe(key *ecdsa.PrivateKey) {
	if key == nil {
		return
	}
	//lint:ignore SA1019 nothing else reaches the scalar's own memory
	if d := key.D; d != nil {
		clear(d.Bits())
	}
}
