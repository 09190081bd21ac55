// Package fake runs providers that speak the real wire formats over TLS, in
// process: for the demo and for tests. A Server knows a set of keys whose state
// changes at run time, records every request, and counts per key. It keeps the
// keys it was shown as plain strings: nothing but made-up keys belongs here.
package fake

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options says what a Server is. The zero value, but for Kind, is a provider
// without keys that answers at once.
type Options struct {
	// Kind is openai, anthropic, gemini, cohere, qubittron (OpenAI's formats) or
	// echo (see the package's echo.go: it repeats what it was sent). Required.
	Kind string
	// Keys are live from the start.
	Keys []string
	// Hosts are names the certificate holds beside localhost, 127.0.0.1 and ::1
	// ("api.openai.com", "*.api.openai.com"), for tests that dial by override.
	Hosts []string
	// Addr is where to listen; default 127.0.0.1:0.
	Addr string
	// CA signs the certificate; nil: one of the Server's own.
	CA *CA
	// Delay is how long a request waits before it is looked at.
	Delay time.Duration
	// Gap is the time between two events of a stream.
	Gap time.Duration
	// Words is how many words an answer has, and so how many text events a stream; default 8.
	Words int
	// Records bounds how many requests are remembered, the last ones; default 1024.
	Records int
	// Intercept sees every request first; where it returns true it has answered.
	Intercept func(w http.ResponseWriter, r *http.Request) bool
}

// Server is a running provider. All methods are safe for concurrent use.
type Server struct {
	o      Options
	serve  func(*Server, *exchange)
	ca     *CA
	addr   string
	http   *http.Server
	served chan struct{}
	done   chan struct{} // closed by Close: streams end
	once   sync.Once
	active sync.WaitGroup
	ids    atomic.Uint64

	mu     sync.Mutex
	closed bool
	keys   map[string]*keyState
	ring   []Request
	total  uint64
	files  files
}

var kinds = map[string]func(*Server, *exchange){
	"openai":    (*Server).openai,
	"qubittron": (*Server).openai,
	"anthropic": (*Server).anthropic,
	"gemini":    (*Server).gemini,
	"cohere":    (*Server).cohere,
	"echo":      (*Server).echo,
}

// New starts a provider. Errors: an unknown kind, an address that cannot be
// listened on. Close ends it.
func New(o Options) (*Server, error) {
	serve, ok := kinds[o.Kind]
	if !ok {
		return nil, fmt.Errorf("fake: kind %q: write openai, anthropic, gemini, cohere, qubittron or echo", o.Kind)
	}
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Words <= 0 {
		o.Words = 8
	}
	if o.Records <= 0 {
		o.Records = 1024
	}
	s := &Server{o: o, serve: serve, ca: o.CA, served: make(chan struct{}), done: make(chan struct{}), keys: map[string]*keyState{}}
	for _, k := range o.Keys {
		s.Allow(k)
	}
	if s.ca == nil {
		ca, err := NewCA()
		if err != nil {
			return nil, err
		}
		s.ca = ca
	}
	cert, err := s.ca.issue(append([]string{"localhost", "127.0.0.1", "::1"}, o.Hosts...))
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	s.addr = ln.Addr().String()
	s.http = &http.Server{
		Handler:           s,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // clients that do not trust the CA are part of the play
	}
	go func() {
		defer close(s.served)
		s.http.ServeTLS(ln, "", "")
	}()
	return s, nil
}

// Close ends every stream and connection, and waits until all is over. Calling
// it again does nothing.
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

// CloseIdle closes the connections on which nothing happens.
func (s *Server) CloseIdle() {
	s.http.SetKeepAlivesEnabled(false)
	s.http.SetKeepAlivesEnabled(true)
}

// Addr is the listener's IP:port.
func (s *Server) Addr() string { return s.addr }

// URL is https://localhost:port.
func (s *Server) URL() string {
	_, port, _ := net.SplitHostPort(s.addr)
	return "https://localhost:" + port
}

// CAPEM is the certificate of the CA that clients must trust.
func (s *Server) CAPEM() []byte { return s.ca.PEM() }

// Transport trusts the CA and dials the Server whatever host a URL names. The
// caller closes its idle connections.
func (s *Server) Transport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, s.addr)
		},
		TLSClientConfig:     &tls.Config{RootCAs: s.ca.Pool(), MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: 64,
		ForceAttemptHTTP2:   true,
	}
}

// ServeHTTP answers as the provider would.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		return
	}
	defer s.active.Done()
	x := &exchange{ResponseWriter: w, s: s, r: r, at: time.Now()}
	defer x.note(http.StatusOK) // of a handler that wrote nothing
	if s.o.Intercept != nil && s.o.Intercept(x, r) {
		return
	}
	if x.pause(s.o.Delay) {
		s.serve(s, x)
	}
}

// enter counts a request in, unless the Server is closing.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.active.Add(1)
	}
	return !s.closed
}

// id makes an identifier that no other answer of this Server has.
func (s *Server) id(prefix string) string { return fmt.Sprintf("%s%012x", prefix, s.ids.Add(1)) }

// words is the answer's text, piece by piece.
func (s *Server) words() []string {
	const text = "A postern is the small side gate of a bastion. "
	all := strings.SplitAfter(strings.TrimSuffix(text, " "), " ")
	out := make([]string, s.o.Words)
	for i := range out {
		out[i] = strings.TrimSuffix(all[i%len(all)], " ")
		if i+1 < len(out) {
			out[i] += " "
		}
	}
	return out
}

// cut shortens words to max, where max is more than 0, and reports whether it did.
func cut(words []string, max int) ([]string, bool) {
	if max > 0 && max < len(words) {
		return slices.Clone(words[:max]), true
	}
	return words, false
}
