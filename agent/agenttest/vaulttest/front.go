package vaulttest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Request is one request that a Front has seen, without its body.
type Request struct {
	Method string
	Path   string // below /v1/, escaped
	Query  string
	Header http.Header
}

// Front stands before a server, counts what reaches it, and can answer in its
// place. It may be used concurrently.
type Front struct {
	URL string

	mu        sync.Mutex
	requests  []Request
	intercept func(http.ResponseWriter, *http.Request) bool
}

// NewFront starts a Front of a plain HTTP server for the rest of the test.
func NewFront(t testing.TB, v *Vault) *Front {
	t.Helper()
	target, err := url.Parse(v.Address)
	if err != nil {
		t.Fatalf("vaulttest: %v", err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport,
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, _ error) {
			panic(http.ErrAbortHandler) // as if the server itself were away
		},
	}
	f := &Front{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, Request{
			Method: r.Method,
			Path:   strings.TrimPrefix(r.URL.EscapedPath(), "/v1/"),
			Query:  r.URL.RawQuery,
			Header: r.Header.Clone(),
		})
		intercept := f.intercept
		f.mu.Unlock()
		if intercept == nil || !intercept(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	f.URL = server.URL
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
	})
	return f
}

// Intercept sets what happens to each request before it is passed on: answer
// returns true if it has answered. Nil passes everything on.
func (f *Front) Intercept(answer func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intercept = answer
}

// Requests returns what was seen since the start or the last Reset.
func (f *Front) Requests() []Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

// Count is how many requests were seen whose path begins so.
func (f *Front) Count(pathPrefix string) int {
	n := 0
	for _, r := range f.Requests() {
		if strings.HasPrefix(r.Path, pathPrefix) {
			n++
		}
	}
	return n
}

// Reset forgets what was seen.
func (f *Front) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = nil
}
