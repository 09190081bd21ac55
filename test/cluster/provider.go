//go:build linux

package cluster

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Provider speaks OpenAI's wire format over TLS, and Anthropic's where it is asked
// for a message, with a certificate of the cluster's CA, and remembers which keys it
// was sent.
type Provider struct {
	Address string // host:port in the cluster's network

	mu     sync.Mutex
	calls  []Call
	valid  map[string]bool
	manage http.Handler
}

// Call is one request for a completion.
type Call struct {
	At     time.Time
	Key    string // as the provider has read it
	Client string // its User-Agent
	Status int
}

// StartProvider starts a provider that goes by these host names until the test
// ends. At [Full] pods find it by them; the port is 443 where the cluster has a
// network of its own.
func (c *Cluster) StartProvider(t testing.TB, keys []string, hosts ...string) *Provider {
	t.Helper()
	p := &Provider{valid: map[string]bool{}}
	p.Accept(keys...)
	port := 443
	if c.node == nil {
		port = 0
	}
	listener, err := c.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := c.CA.Server(append(slices.Clone(hosts), c.IP)...)
	if err != nil {
		t.Fatal(err)
	}
	p.Address = listener.Addr().String()
	for _, host := range hosts {
		if err := c.Name(host); err != nil {
			t.Fatal(err)
		}
	}
	server := &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}}))
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return p
}

// Port is where it listens.
func (p *Provider) Port() string {
	_, port, _ := net.SplitHostPort(p.Address)
	return port
}

// Accept makes these keys the only valid ones.
func (p *Provider) Accept(keys ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.valid)
	for _, key := range keys {
		p.valid[key] = true
	}
}

// Allow makes a key valid too.
func (p *Provider) Allow(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.valid[key] = true
}

// Manage answers what is asked about an organization, where credentials are made.
func (p *Provider) Manage(by http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.manage = by
}

func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if key == "" {
		key = r.Header.Get("X-Api-Key")
	}
	p.mu.Lock()
	if manage := p.manage; manage != nil && strings.HasPrefix(r.URL.Path, "/v1/organization/") {
		p.mu.Unlock()
		manage.ServeHTTP(w, r)
		return
	}
	status := http.StatusOK
	if !p.valid[key] {
		status = http.StatusUnauthorized
	}
	if r.Method == http.MethodPost {
		p.calls = append(p.calls, Call{At: time.Now(), Key: key, Client: r.UserAgent(), Status: status})
	}
	n := len(p.calls)
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	switch {
	case status != http.StatusOK:
		fmt.Fprint(w, `{"error": {"message": "Incorrect API key provided.", "type": "invalid_request_error", "code": "invalid_api_key"}}`)
	case strings.HasSuffix(r.URL.Path, "/models"):
		fmt.Fprint(w, `{"object": "list", "data": []}`)
	case strings.HasSuffix(r.URL.Path, "/messages"):
		fmt.Fprintf(w, `{"id": "msg_%d", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [{"type": "text", "text": "Hello %d"}], "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 1}}`, n, n)
	default:
		fmt.Fprintf(w, `{"id": "chatcmpl-%d", "object": "chat.completion", "model": "gpt-5-nano", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello %d"}}]}`, n, n)
	}
}

// Calls are all requests so far.
func (p *Provider) Calls() []Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

// AwaitCall waits for a request that is like that.
func (p *Provider) AwaitCall(t testing.TB, limit time.Duration, what string, like func(Call) bool) Call {
	t.Helper()
	var found Call
	if err := Within(limit, func() error {
		for _, call := range p.Calls() {
			if like(call) {
				found = call
				return nil
			}
		}
		return fmt.Errorf("no request %s among %d", what, len(p.Calls()))
	}); err != nil {
		t.Fatalf("not within %v: %v", limit, err)
	}
	return found
}
