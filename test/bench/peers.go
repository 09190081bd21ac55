package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/elazarl/goproxy"
)

// The upstream's certificate and the key that every peer attaches.
const (
	certEnv = "BENCH_CERT" // PEM file: the CA, which is also the upstream's certificate, and its key
	apiKey  = "sk-proj-bench0000000000000000000000000000000000000000"
)

var answer = []byte(`{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat("x", 780) + `"}}]}`)

// serveStreams is a provider whose every answer is a stream of events.
func serveStreams() error {
	cert, err := tls.LoadX509KeyPair(os.Getenv(certEnv), os.Getenv(certEnv))
	if err != nil {
		return err
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+apiKey {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		stream(w, r)
	}))
}

func roots() (*x509.CertPool, error) {
	b, err := os.ReadFile(os.Getenv(certEnv))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	return pool, nil
}

// serveReverseProxy is the standard library's proxy with one header set and its
// pool sized, in front of the provider and of the streams.
func serveReverseProxy(upstream, streams string) error {
	pool, err := roots()
	if err != nil {
		return err
	}
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			target := &url.URL{Scheme: "https", Host: upstream}
			if strings.HasPrefix(r.In.URL.Path, "/streams/") {
				target.Host = streams
			}
			r.SetURL(target)
			r.Out.Header.Set("Authorization", "Bearer "+apiKey)
		},
		FlushInterval: -1,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 512, DisableCompression: true},
	}
	return serve(rp)
}

// serveGoproxy intercepts every CONNECT and sets one header.
func serveGoproxy() error {
	pool, err := roots()
	if err != nil {
		return err
	}
	ca, err := tls.LoadX509KeyPair(os.Getenv(certEnv), os.Getenv(certEnv))
	if err != nil {
		return err
	}
	p := goproxy.NewProxyHttpServer()
	p.Tr = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 512, DisableCompression: true}
	p.KeepAcceptEncoding = true
	p.CertStore = &oneCert{}
	mitm := &goproxy.ConnectAction{Action: goproxy.ConnectMitm, TLSConfig: goproxy.TLSConfigFromCA(&ca)}
	p.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) { return mitm, host })
	p.OnRequest().DoFunc(func(r *http.Request, _ *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		r.Header.Set("Authorization", "Bearer "+apiKey)
		return r, nil
	})
	return serve(p)
}

// oneCert keeps the one leaf that the run needs.
type oneCert struct{ cert *tls.Certificate }

func (o *oneCert) Fetch(_ string, gen func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	if o.cert != nil {
		return o.cert, nil
	}
	var err error
	o.cert, err = gen()
	return o.cert, err
}

func serve(h http.Handler) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	return http.Serve(ln, h)
}

// writeCert makes a CA that is also the upstream's certificate, in one PEM file.
func writeCert(file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return err
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})...)
	return os.WriteFile(file, b, 0o600)
}
