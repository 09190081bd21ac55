package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// options serve a ready agent with one metric.
func options() Options {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_test_total", Help: "A test."}, []string{"key"})
	c.WithLabelValues("openai").Inc()
	reg.MustRegister(c)
	return Options{
		Ready:    func() (bool, []string) { return true, nil },
		Registry: reg,
		CAPEM:    func() []byte { return []byte("-----BEGIN CERTIFICATE-----\n") },
		Status:   func() any { return map[string]any{"keys": []string{"openai"}} },
		Logger:   slog.New(slog.DiscardHandler),
	}
}

func ask(h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// A page's name that was rebound to a loopback address gets nothing; by any
// other address, names are Prometheus's business.
func TestReboundName(t *testing.T) {
	h := Handler(options())
	loopback, pod := net.IPv4(127, 0, 0, 1), net.IPv4(10, 1, 2, 3)
	for _, c := range []struct {
		local  net.IP
		host   string
		status int
	}{
		{loopback, "127.0.0.1:8701", 200}, {loopback, "[::1]:8701", 200}, {loopback, "localhost:1", 200}, {loopback, "LOCALHOST", 200}, {loopback, "", 200},
		{net.IPv6loopback, "rebound.evil.test:8701", 421}, {loopback, "rebound.evil.test:8701", 421}, {loopback, "localhost.evil.test", 421}, {loopback, "127.0.0.1.evil.test", 421},
		{pod, "postern.ns.svc:8701", 200},
	} {
		for _, path := range []string{"/status", "/metrics", "/readyz", "/livez", "/ca.pem"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Host = c.host
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: c.local, Port: 8701})))
			if w.Code != c.status {
				t.Errorf("%s at %s, Host %q: %d, want %d", path, c.local, c.host, w.Code, c.status)
			}
		}
	}
}

func TestPages(t *testing.T) {
	h := Handler(options())
	for _, c := range []struct {
		method, path string
		status       int
		kind, body   string
	}{
		{"GET", "/livez", 200, "text/plain; charset=utf-8", "ok\n"},
		{"GET", "/readyz", 200, "text/plain; charset=utf-8", "ok\n"},
		{"GET", "/readyz?verbose", 200, "text/plain; charset=utf-8", "ok\n"},
		{"GET", "/ca.pem", 200, "application/x-pem-file", "-----BEGIN CERTIFICATE-----\n"},
		{"GET", "/status", 200, "application/json", `{"keys":["openai"]}` + "\n"},
		{"GET", "/metrics", 200, "text/plain; version=0.0.4", `postern_test_total{key="openai"} 1`},
		{"POST", "/livez", 405, problemType, "read only"},
		{"PUT", "/status", 405, problemType, "read only"},
		{"TRACE", "/metrics", 405, problemType, "read only"},
		{"OPTIONS", "/readyz", 405, problemType, "read only"},
		{"GET", "/", 404, problemType, "/livez"},
		{"GET", "/livez/", 404, problemType, "/livez"},
		{"GET", "//livez", 404, problemType, "/livez"},
		{"GET", "/x/../livez", 404, problemType, "/livez"},
		{"GET", "/debug/pprof/", 404, problemType, "/livez"},
		{"POST", "/quit", 404, problemType, "/livez"},
		{"GET", "/Livez", 404, problemType, "/livez"},
	} {
		w := ask(h, c.method, c.path)
		if w.Code != c.status || !strings.HasPrefix(w.Header().Get("Content-Type"), c.kind) || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s %s: %d %s %q", c.method, c.path, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cache-Control") != "no-store" ||
			!strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") || w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s: headers %v", c.method, c.path, w.Header())
		}
		if (w.Code == 405) != (w.Header().Get("Allow") == "GET, HEAD") {
			t.Errorf("%s %s: Allow %q", c.method, c.path, w.Header().Get("Allow"))
		}
		if c.kind == problemType {
			var p struct {
				Status int
				Title  string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != c.status || p.Title == "" {
				t.Errorf("%s %s: %v %+v", c.method, c.path, err, p)
			}
		}
	}
}

func TestReadiness(t *testing.T) {
	o := options()
	var ready bool
	var waiting, stale []string
	var why map[string]string
	o.Ready = func() (bool, []string) { return ready, waiting }
	o.Stale = func() []string { return stale }
	o.Why = func(key string) string { return why[key] }
	h := Handler(o)
	for _, c := range []struct {
		name           string
		ready          bool
		waiting, stale []string
		why            map[string]string
		status         int
		text           string
	}{
		{"waiting", false, []string{"openai", "azure"}, nil, nil, 503, "waiting for keys: openai, azure\n"},
		{"waiting, and why", false, []string{"openai", "azure"}, nil, map[string]string{"azure": "none is stored"}, 503, "waiting for keys: openai, azure; azure: none is stored\n"},
		{"waiting, all for one reason", false, []string{"openai", "azure"}, nil, map[string]string{"openai": "no role", "azure": "no role"}, 503, "waiting for keys: openai, azure; openai: no role\n"},
		{"ready", true, nil, nil, nil, 200, "ok\n"},
		{"ready, store away", true, nil, []string{"openai"}, nil, 200, "ok, though the store is out of reach; served from memory: openai\n"},
		{"waiting, store away", false, []string{"azure"}, []string{"openai"}, nil, 503, "waiting for keys: azure\n"},
	} {
		ready, waiting, stale, why = c.ready, c.waiting, c.stale, c.why
		w := ask(h, "GET", "/readyz")
		if w.Code != c.status || w.Body.String() != c.text {
			t.Errorf("%s: %d %q", c.name, w.Code, w.Body)
		}
		w = ask(h, "GET", "/readyz", "Accept", "application/problem+json, application/json")
		var a readiness
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != c.status || a.Status != c.status || a.Ready != c.ready ||
			!slices.Equal(a.Waiting, c.waiting) || !slices.Equal(a.Stale, c.stale) || a.Detail+"\n" != c.text {
			t.Errorf("%s: %d %+v %v", c.name, w.Code, a, err)
		}
		if kind := w.Header().Get("Content-Type"); kind != map[bool]string{true: "application/json", false: problemType}[c.ready] {
			t.Errorf("%s: %s", c.name, kind)
		}
		if w := ask(h, "GET", "/livez"); w.Code != 200 {
			t.Errorf("%s: not alive", c.name)
		}
	}
}

// Liveness answers while everything else hangs.
func TestLivenessDependsOnNothing(t *testing.T) {
	o := Options{Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)}
	o.Ready = func() (bool, []string) { panic("asked") }
	o.Stale = func() []string { panic("asked") }
	o.Status = func() any { panic("asked") }
	o.CAPEM = func() []byte { panic("asked") }
	if w := ask(Handler(o), "GET", "/livez"); w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
}

func TestFailures(t *testing.T) {
	o := options()
	var log bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	o.Status = func() any { return func() {} }
	o.CAPEM = func() []byte { return nil }
	o.Registry = prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return nil, errors.New("a collector failed") })
	h := Handler(o)
	if w := ask(h, "GET", "/status"); w.Code != 500 || w.Header().Get("Content-Type") != problemType || !strings.Contains(log.String(), "status") {
		t.Errorf("%d %s, log %s", w.Code, w.Body, &log)
	}
	if w := ask(h, "GET", "/ca.pem"); w.Code != 503 || w.Header().Get("Content-Type") != problemType {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(h, "GET", "/metrics"); w.Code != 500 || !strings.Contains(log.String(), "a collector failed") {
		t.Errorf("%d %s, log %s", w.Code, w.Body, &log)
	}
}

const canary = "sk-canary-0123456789abcdef"

func TestASecretThatGotInIsScrubbed(t *testing.T) {
	o := options()
	reg := prometheus.NewRegistry()
	leak := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_leak", Help: "A leak."}, []string{"key"})
	leak.WithLabelValues(canary).Set(1)
	reg.MustRegister(leak)
	o.Registry = reg
	o.Ready = func() (bool, []string) { return false, []string{canary} }
	o.Status = func() any { return map[string]string{"key": canary} }
	o.Scrub = func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(canary), []byte("[redacted]")) }
	h := Handler(o)
	for _, c := range []struct {
		path, accept string
		status       int
	}{
		{"/metrics", "", 200}, {"/metrics", "application/openmetrics-text; version=1.0.0", 200}, {"/metrics", protobuf, 500},
		{"/status", "", 200}, {"/readyz", "", 503}, {"/readyz", "application/json", 503},
	} {
		w := ask(h, "GET", c.path, "Accept", c.accept, "Accept-Encoding", "gzip")
		if w.Code != c.status || strings.Contains(w.Body.String(), canary) || w.Header().Get("Content-Encoding") != "" {
			t.Errorf("%s as %q: %d %q", c.path, c.accept, w.Code, w.Body)
		}
		if c.status == 200 && !strings.Contains(w.Body.String(), "[redacted]") {
			t.Errorf("%s as %q: %q", c.path, c.accept, w.Body)
		}
	}
	var doc map[string]string
	if err := json.Unmarshal(ask(h, "GET", "/status").Body.Bytes(), &doc); err != nil || doc["key"] != "[redacted]" {
		t.Errorf("%v %v", doc, err)
	}
}

const protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"

func TestMetricFormats(t *testing.T) {
	o := options()
	reg := prometheus.NewRegistry()
	hist := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "postern_test_seconds", Help: "A test.", Buckets: []float64{1}, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
	})
	hist.(prometheus.ExemplarObserver).ObserveWithExemplar(0.5, prometheus.Labels{"id": "x"})
	reg.MustRegister(hist)
	o.Registry = reg
	o.Scrub = func(b []byte) []byte { return b }
	h := Handler(o)
	w := ask(h, "GET", "/metrics", "Accept", "application/openmetrics-text; version=1.0.0")
	if body := w.Body.String(); !strings.HasPrefix(w.Header().Get("Content-Type"), "application/openmetrics-text") ||
		!strings.HasSuffix(body, "# EOF\n") || !strings.Contains(body, `# {id="x"} 0.5`) {
		t.Errorf("OpenMetrics: %v %s", w.Header(), body)
	}
	w = ask(h, "GET", "/metrics", "Accept", protobuf)
	var m dto.MetricFamily
	if err := expfmt.NewDecoder(w.Body, expfmt.ResponseFormat(w.Header())).Decode(&m); err != nil {
		t.Fatal(err)
	}
	if got := m.Metric[0].Histogram; got.GetSchema() == 0 || len(got.PositiveSpan) == 0 {
		t.Errorf("no native histogram: %v", got)
	}
}

func TestScrapesAreBounded(t *testing.T) {
	o := options()
	inside, release := make(chan struct{}, 100), make(chan struct{})
	o.Registry = prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		inside <- struct{}{}
		<-release
		return nil, nil
	})
	h := Handler(o)
	codes := make(chan int, maxScrapes)
	for range maxScrapes {
		go func() { codes <- ask(h, "GET", "/metrics").Code }()
	}
	for range maxScrapes {
		<-inside
	}
	if w := ask(h, "GET", "/metrics"); w.Code != 503 {
		t.Errorf("one too many: %d", w.Code)
	}
	close(release)
	for range maxScrapes {
		if code := <-codes; code != 200 {
			t.Errorf("%d", code)
		}
	}
}

func TestProcessMetrics(t *testing.T) {
	v, err := secret.New([]byte(canary))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Destroy()
	reg := prometheus.NewRegistry()
	RegisterProcess(reg, "v1.2.3")
	o := options()
	o.Registry = reg
	body := ask(Handler(o), "GET", "/metrics").Body.String()
	stats := secret.Stats()
	for _, want := range []string{
		`postern_build_info{go_version="go1.`, `version="v1.2.3"} 1`,
		fmt.Sprintf("\npostern_secret_arena_bytes %v\n", float64(stats.MappedBytes)),
		fmt.Sprintf("\npostern_secret_arena_values %d\n", stats.Values),
		fmt.Sprintf("\npostern_secret_arena_locked %v\n", flag(stats.Locked)),
		fmt.Sprintf("\npostern_secret_arena_dontdump %v\n", flag(stats.DontDump)),
		"\ngo_goroutines ", "\ngo_memstats_heap_inuse_bytes ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("without %q", want)
		}
	}
	if strings.Contains(body, canary) {
		t.Error("the canary is in the metrics")
	}
}

func TestAuditHead(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	var seq uint64
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewAuditHead(func() (uint64, string) { return seq, fmt.Sprintf("%064x", seq) }, func() time.Time { return now }))
	o := options()
	o.Registry = reg
	h := Handler(o)
	shows := func(wantSeq, wantAnchor uint64) {
		t.Helper()
		body := ask(h, "GET", "/metrics").Body.String()
		anchor := fmt.Sprintf("\npostern_audit_anchor_info{head=\"%d:%064x\"} 1\n", wantAnchor, wantAnchor)
		if !strings.Contains(body, fmt.Sprintf("\npostern_audit_head_seq %d\n", wantSeq)) ||
			wantAnchor > 0 != strings.Contains(body, "postern_audit_anchor_info{") || wantAnchor > 0 && !strings.Contains(body, anchor) {
			t.Errorf("at %v with seq %d: %s", now, seq, body)
		}
	}
	shows(0, 0)
	seq = 3
	shows(3, 3)
	seq, now = 4, now.Add(59*time.Minute)
	shows(4, 3)
	now = now.Add(time.Minute)
	shows(4, 4)
	reg = prometheus.NewRegistry()
	reg.MustRegister(NewAuditHead(func() (uint64, string) { return 1, "aa" }, nil))
	o.Registry = reg
	if body := ask(Handler(o), "GET", "/metrics").Body.String(); !strings.Contains(body, `head="1:aa"`) {
		t.Error(body)
	}
}

// A client that sends its header a byte at a time is let go.
func TestServerLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		s := NewServer(options())
		l := &oneConn{conn: server, closed: make(chan struct{})}
		done := make(chan error)
		go func() { done <- s.Serve(l) }()
		start := time.Now()
		trickled := make(chan struct{})
		go func() {
			defer close(trickled)
			for {
				if _, err := client.Write([]byte("G")); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		io.Copy(io.Discard, client)
		if took := time.Since(start); took < ReadHeaderTimeout || took > ReadHeaderTimeout+2*time.Second {
			t.Errorf("held for %v", took)
		}
		s.Close()
		client.Close()
		<-trickled
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn   net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { close(l.closed); return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// Over a real connection: HEAD has no body, and a body that is sent is not waited for.
func TestServer(t *testing.T) {
	s := httptest.NewUnstartedServer(nil)
	s.Config = NewServer(options())
	s.Start()
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "HEAD /status HTTP/1.1\r\nHost: 10.1.2.3:8701\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost:8701\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(bufio.NewReader(conn))
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(b), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200") || !strings.HasPrefix(rest, "HTTP/1.1 200") || !strings.HasSuffix(rest, "\r\n\r\nok\n") {
		t.Errorf("%s", b)
	}
}
