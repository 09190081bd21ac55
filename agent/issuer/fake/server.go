// Package fake runs the providers' key management APIs over TLS, in process: for
// the demo and for tests. A Server speaks its vendor's documented formats,
// errors, pages and rate limits included, and its state can be read and changed.
// It keeps credentials as plain strings: nothing but made-up ones belong here.
package fake

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"
)

// Options say what a Server is. The zero value, but for Kind and Admin, is a
// vendor without keys that answers at once.
type Options struct {
	// Kind is openai, openrouter, anthropic or azure. Required.
	Kind string
	// Admin is the admin credential that is accepted; for azure the client secret. Required.
	Admin string
	// Project is openai's; default proj_test.
	Project string
	// Azure's: the application's tenant and id, and where the account is. Default
	// tenant-test, client-test, 00000000-0000-0000-0000-000000000001, rg-test and acme.
	Tenant, Client                       string
	Subscription, ResourceGroup, Account string
	// PageSize is the most that one page of a list holds; default 100.
	PageSize int
	// OnIssue and OnRevoke are called, one at a time, for each key that begins and
	// ends to be accepted, before the answer is sent: a fake of the provider's own
	// API can be told so. They must not call the Server. nil: nobody is told.
	OnIssue, OnRevoke func(id, key string)
	// Addr is where to listen; default 127.0.0.1:0.
	Addr string
	// Intercept sees every request first; where it returns true it has answered.
	Intercept func(w http.ResponseWriter, r *http.Request) bool
}

// Failure is what a Server does with one request instead of answering it, or before.
type Failure struct {
	// Method and Path, a part of the path, say which requests it is for; "" for any.
	Method, Path string
	// Delay passes first, or the time until the client gives up.
	Delay time.Duration
	// Status of the answer, in the vendor's shape of errors; 0: the request is served as ever.
	Status int
	// Code is the vendor's word for the mistake; "" for its own for the status.
	Code string
	// Header is added to the answer, as in Retry-After.
	Header http.Header
	// Body replaces the vendor's shape.
	Body string
	// Lose: what was asked for is done, and the connection ends without an answer.
	Lose bool
}

// Request is what is remembered of one request.
type Request struct {
	Time                time.Time
	Method, Path, Query string
	Status              int // of the answer; 0 if none was sent
}

// Server is a running vendor. All methods are safe for concurrent use.
type Server struct {
	o      Options
	vendor vendor
	addr   string
	root   *x509.Certificate
	http   *http.Server
	served chan struct{}
	done   chan struct{}
	once   sync.Once
	active sync.WaitGroup

	mu       sync.Mutex // also held around OnIssue and OnRevoke
	closed   bool
	keys     []Key
	tokens   map[string]bool // azure's
	failures []Failure
	requests []Request
}

// vendor is what differs.
type vendor interface {
	serve(s *Server, w http.ResponseWriter, r *http.Request)
	// refuse answers with an error in the vendor's shape; code "" is the vendor's for the status.
	refuse(w http.ResponseWriter, r *http.Request, status int, code, message string)
	value() string // of a new key
}

// New starts a vendor. Errors: an unknown kind, an address that cannot be
// listened on. Close ends it.
func New(o Options) (*Server, error) {
	s := &Server{served: make(chan struct{}), done: make(chan struct{}), tokens: map[string]bool{}}
	var host string
	switch o.Kind {
	case "openai":
		s.vendor, host = openAI{}, "api.openai.com"
	case "openrouter":
		s.vendor, host = openRouter{}, "openrouter.ai"
	case "anthropic":
		s.vendor, host = anthropic{}, "api.anthropic.com"
	case "azure":
		s.vendor, host = azure{}, "management.azure.com"
	default:
		return nil, fmt.Errorf("fake: kind %q: write openai, openrouter, anthropic or azure", o.Kind)
	}
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.Project, "proj_test"},
		{&o.Tenant, "tenant-test"},
		{&o.Client, "client-test"},
		{&o.Subscription, "00000000-0000-0000-0000-000000000001"},
		{&o.ResourceGroup, "rg-test"},
		{&o.Account, "acme"},
		{&o.Addr, "127.0.0.1:0"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.PageSize <= 0 {
		o.PageSize = 100
	}
	s.o = o
	if o.Kind == "azure" {
		for _, id := range []string{"key1", "key2"} {
			s.add(Key{ID: id})
		}
	}
	cert, root, err := selfSigned(host, "login.microsoftonline.com")
	if err != nil {
		return nil, err
	}
	s.root = root
	ln, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	s.addr = ln.Addr().String()
	s.http = &http.Server{
		Handler:           s,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // lost answers and strangers are part of the play
	}
	go func() {
		defer close(s.served)
		s.http.ServeTLS(ln, "", "")
	}()
	return s, nil
}

// Close ends every connection, and waits until all is over. Calling it again does nothing.
func (s *Server) Close() error {
	var err error
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		close(s.done)
		err = s.http.Close()
		<-s.served
		s.active.Wait()
	})
	return err
}

// Addr is the listener's IP:port.
func (s *Server) Addr() string { return s.addr }

// URL is https://localhost:port, for an issuer's base_url (and azure's login_url).
func (s *Server) URL() string {
	_, port, _ := net.SplitHostPort(s.addr)
	return "https://localhost:" + port
}

// CAPEM is the certificate that clients must trust.
func (s *Server) CAPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.root.Raw})
}

// Transport trusts the certificate and dials the Server whatever host a URL
// names. The caller closes its idle connections.
func (s *Server) Transport() *http.Transport {
	pool := x509.NewCertPool()
	pool.AddCert(s.root)
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, s.addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}
}

// Fail has the next requests that match go wrong, each Failure once, in order.
func (s *Server) Fail(f ...Failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, f...)
}

// Requests returns all requests so far, oldest first.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// selfSigned makes a certificate that is its own root.
func selfSigned(names ...string) (tls.Certificate, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("fake: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("fake: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "fake issuer " + serial.Text(16)[:8]},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:                  true,
		BasicConstraintsValid: true,
		DNSNames:              append([]string{"localhost"}, names...),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("fake: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("fake: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, root, nil
}
