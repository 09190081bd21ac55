package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/upstream"
)

const (
	key1 = "sk-proj-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1"
	key2 = "sk-proj-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb2"
)

// world is a proxy in front of one TLS upstream.
type world struct {
	t        testing.TB
	s        *Server
	addr     string
	upstream *httptest.Server
	upHost   string // host:port of the upstream
	key      *keyring.Key
	known    *redact.Set
	ca       *x509.CertPool // of the interception
	log      *lockedBuffer
	audit    *entries
	dialer   *upstream.Dialer

	mu   sync.Mutex
	seen []*http.Request
}

type worldOption func(*worldConfig)

type worldConfig struct {
	spec   func(*spec.Spec)
	tunnel bool
	hosts  []string
	keys   []string
	own    func(netip.AddrPort) bool
	http2  bool

	onlyHTTP1 bool // the upstream speaks nothing else
	untrusted bool // the upstream's certificate is
	tune      func(*Server)
}

func withSpec(f func(*spec.Spec)) worldOption { return func(c *worldConfig) { c.spec = f } }
func withTimes(f func(*Server)) worldOption   { return func(c *worldConfig) { c.tune = f } }
func withTunnel(c *worldConfig)               { c.tunnel = true }
func withKeys(keys ...string) worldOption     { return func(c *worldConfig) { c.keys = keys } }

// newWorld starts it. handler is the upstream's; nil answers 200 with {}.
func newWorld(t testing.TB, handler http.HandlerFunc, opts ...worldOption) *world {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	c := worldConfig{keys: []string{key1}}
	for _, o := range opts {
		o(&c)
	}
	w := &world{t: t, log: &lockedBuffer{}, audit: &entries{}, key: keyring.NewKey("openai")}
	w.upstream = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen = append(w.seen, r.Clone(context.Background()))
		w.mu.Unlock()
		if handler == nil {
			rw.Header().Set("Content-Type", "application/json")
			io.WriteString(rw, "{}")
			return
		}
		handler(rw, r)
	}))
	w.upstream.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	w.upstream.EnableHTTP2 = c.http2 && !c.onlyHTTP1
	w.upstream.StartTLS()
	w.upHost = w.upstream.Listener.Addr().String()

	var err error
	if w.known, err = redact.New(redact.Options{OnHit: func(redact.Label, string) {}}); err != nil {
		t.Fatal(err)
	}
	w.install(c.keys...)
	if w.dialer, err = upstream.New(upstream.Options{Own: c.own}); err != nil {
		t.Fatal(err)
	}
	leaf, pool := testCA(t)
	w.ca = pool
	w.s = New(Options{
		Known: w.known, Leaf: leaf, Metrics: NewMetrics(prometheus.NewRegistry()), Audit: w.audit,
		Logger: slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	w.s.lull = 10 * time.Millisecond
	if c.tune != nil {
		c.tune(w.s)
	}
	w.s.Swap(w.routing(c))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- w.s.Serve(ln, nil) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := w.s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		w.closeIdle(w.s.routing.Load())
		w.s.front.Tr.CloseIdleConnections()
		w.upstream.Close()
		goleak.VerifyNone(t, leaks)
	})
	return w
}

func (w *world) routing(c worldConfig) *Routing {
	w.t.Helper()
	s, problems := spec.Resolve(spec.Spec{Name: "openai", Hosts: []string{w.upHost}, BaseURL: "https://" + w.upHost}, "openai", nil)
	if len(problems) > 0 {
		w.t.Fatal(problems)
	}
	if c.spec != nil {
		c.spec(&s)
	}
	p, err := provider.New(s)
	if err != nil {
		w.t.Fatal(err)
	}
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.upstream.Certificate().Raw})
	o := upstream.TransportOptions{CAFile: roots, HTTP2: c.http2}
	if c.untrusted {
		o.CAFile = nil
	}
	tg := &Target{Name: "openai", Provider: p, Key: w.key, Forward: true}
	if tg.Pool, err = w.dialer.Pool(o); err != nil {
		w.t.Fatal(err)
	}
	if c.http2 {
		if tg.Transport, err = w.dialer.Transport(o); err != nil {
			w.t.Fatal(err)
		}
	}
	rt, err := NewRouting([]*Target{tg})
	if err != nil {
		w.t.Fatal(err)
	}
	rt.Tunnel, rt.Hosts, rt.Dialer = c.tunnel, c.hosts, w.dialer
	return rt
}

// closeIdle ends the connections of a generation that nobody uses.
func (w *world) closeIdle(rt *Routing) {
	for _, tg := range rt.routes {
		if tg.Pool != nil {
			tg.Pool.Close()
		}
		if tr, ok := tg.Transport.(*http.Transport); ok {
			tr.CloseIdleConnections()
		}
	}
}

// install makes the first of keys the one that every request carries; the others are usable for a retry.
func (w *world) install(keys ...string) {
	w.t.Helper()
	var es []keyring.Entry
	for i, k := range keys {
		v, err := secret.New([]byte(k))
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := w.known.Add(redact.Label{Key: "openai", Version: i + 1}, v, "sk-proj-"); err != nil {
			w.t.Fatal(err)
		}
		weight := 0
		if i == 0 {
			weight = 100
		}
		id := rotation.ID{Number: i + 1, Created: time.Unix(int64(i+1), 0)}
		es = append(es, keyring.Entry{Version: keyring.NewVersion(id, map[string]*secret.Value{"api_key": v}), Weight: weight})
	}
	w.key.Install(es)
}

// requests are what the upstream saw.
func (w *world) requests() []*http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*http.Request(nil), w.seen...)
}

func (w *world) only() *http.Request {
	w.t.Helper()
	rs := w.requests()
	if len(rs) != 1 {
		w.t.Fatalf("the upstream saw %d requests, want 1", len(rs))
	}
	return rs[0]
}

func (w *world) url(path string) string { return "http://" + w.addr + path }

// client speaks to routes.
func (w *world) client() *http.Client {
	tr := &http.Transport{DisableCompression: true}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw sends bytes and returns the answers that come until the connection ends or n answers were read.
func (w *world) raw(conn net.Conn, text string) *http.Response {
	w.t.Helper()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		w.t.Fatalf("answer to %q: %v", text, err)
	}
	return resp
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// connect opens a tunnel to target and returns the plain connection in it.
func (w *world) connect(target string) (net.Conn, *http.Response) {
	w.t.Helper()
	c := w.dial()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), &http.Request{Method: http.MethodConnect})
	if err != nil {
		w.t.Fatal(err)
	}
	return c, resp
}

// tunnel opens an intercepted tunnel.
func (w *world) tunnel() *tls.Conn {
	w.t.Helper()
	c, resp := w.connect(w.upHost)
	if resp.StatusCode != 200 {
		w.t.Fatalf("CONNECT: %s", resp.Status)
	}
	tc := tls.Client(c, &tls.Config{RootCAs: w.ca, ServerName: "127.0.0.1"})
	if err := tc.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	c.SetDeadline(time.Time{})
	return tc
}

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// testCA signs leaves for any host.
func testCA(t testing.TB) (func(string) (*tls.Certificate, error), *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return func(string) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
	}, pool
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// entries is an audit sink in memory.
type entries struct {
	mu sync.Mutex
	es []audit.Event
}

func (e *entries) Append(_ context.Context, ev audit.Event) (audit.Head, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.es = append(e.es, ev)
	return audit.Head{Seq: uint64(len(e.es))}, nil
}

func (e *entries) reasons() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, ev := range e.es {
		out = append(out, ev.Reason)
	}
	return out
}
