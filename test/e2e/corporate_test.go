package e2e_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// corporate is a company's way out: a CONNECT proxy that wants a user and a
// password, ends every TLS connection and signs what it passes on with a root of its own.
type corporate struct {
	t        *testing.T
	addr     string
	user     string
	password string
	upstream map[string]string // host:port → where it is served
	roots    *x509.CertPool    // of what is behind it

	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu      sync.Mutex
	opened  map[string]int // tunnels, by host:port
	refused int
	seen    int // bytes of plaintext that went through
	wg      sync.WaitGroup
	conns   map[net.Conn]bool
}

func newCorporate(t *testing.T, upstream map[string]string, roots *x509.CertPool) *corporate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &corporate{
		t: t, user: "agent", password: "corp-password-" + rand.Text(), upstream: upstream, roots: roots,
		key: key, opened: map[string]int{}, conns: map[net.Conn]bool{},
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "corporate root"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	p.cert = p.sign(root, root, &key.PublicKey)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	p.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.mu.Lock()
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *corporate) sign(leaf, parent *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, leaf, parent, key, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert
}

func (p *corporate) rootPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}))
}

// url is what the agent is told; it holds the password.
func (p *corporate) url(password string) string {
	return fmt.Sprintf("http://%s:%s@%s", p.user, password, p.addr)
}

// basic is how the credentials travel.
func (p *corporate) basic(password string) string {
	return base64.StdEncoding.EncodeToString([]byte(p.user + ":" + password))
}

// serve is one tunnel.
func (p *corporate) serve(c net.Conn) {
	p.mu.Lock()
	p.conns[c] = true
	p.mu.Unlock()
	defer func() {
		c.Close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	host, _, _ := net.SplitHostPort(req.Host)
	to := p.upstream[req.Host]
	p.mu.Lock()
	allowed := req.Header.Get("Proxy-Authorization") == "Basic "+p.basic(p.password)
	if allowed {
		p.opened[req.Host]++
	} else {
		p.refused++
	}
	p.mu.Unlock()
	switch {
	case !allowed:
		io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"corp\"\r\nContent-Length: 0\r\n\r\n")
		return
	case to == "":
		io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		return
	}
	io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	leaf := p.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, p.cert, &p.key.PublicKey)
	inside := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: p.key}}})
	outside, err := tls.Dial("tcp", to, &tls.Config{RootCAs: p.roots, ServerName: host})
	if err != nil {
		return
	}
	defer outside.Close()
	done := make(chan struct{}, 2)
	p.wg.Go(func() { p.copy(outside, inside); done <- struct{}{} })
	p.wg.Go(func() { p.copy(inside, outside); done <- struct{}{} })
	<-done // either end: the other one follows by what is closed here
}

// copy passes plaintext on, and counts it.
func (p *corporate) copy(to, from net.Conn) {
	n, _ := io.Copy(to, from)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen += int(n)
}
